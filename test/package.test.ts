// The built package (npm test builds it first), as its users load it: by its name.

import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import test from 'ava';
import * as source from '../lib/index.js';

async function run(name: string): Promise<string> {
  const path = fileURLToPath(new URL(`fixtures/${name}`, import.meta.url));
  const options = { env: { ...process.env, NODE_OPTIONS: '' } };
  const args = ['--no-warnings', path];
  return (await promisify(execFile)(process.execPath, args, options)).stdout.trim();
}

const found = '0000:03:00.1 ERR_CLOSED function function function';

test('a CommonJS program can require the package', async (t) => {
  t.is(await run('use-package.cjs'), found);
});

test('an ES module can import the package', async (t) => {
  t.is(await run('use-package.mjs'), found);
});

test('docs/api.md describes every value that the package exports', (t) => {
  const docs = readFileSync(new URL('../docs/api.md', import.meta.url), 'utf8');
  t.deepEqual(
    Object.keys(source).filter((name) => !docs.includes(`\`${name}`)),
    [],
  );
});
