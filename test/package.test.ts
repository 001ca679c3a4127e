// The built package, as its users load it.

import { execFile } from 'node:child_process';
import { mkdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import test from 'ava';

const root = fileURLToPath(new URL('..', import.meta.url));
// Below the project, so that the build finds its dependencies.
const folder = join(root, 'test-results', `package-${process.pid}`);
const exec = promisify(execFile);

test.before('build', async () => {
  await mkdir(folder, { recursive: true });
  const tsc = join(root, 'node_modules/typescript/bin/tsc');
  const args = [tsc, '-p', join(root, 'tsconfig.json'), '--outDir', join(folder, 'dist')];
  await exec(process.execPath, args, { cwd: root });
});

test.after.always('remove the build', () => rm(folder, { recursive: true, force: true }));

async function run(name: string, code: string): Promise<string> {
  const path = join(folder, name);
  await writeFile(path, code);
  return (await exec(process.execPath, ['--no-warnings', path])).stdout.trim();
}

const use = `
  const error = new RetroVfError('ERR_CLOSED', 'x');
  console.log(parseBdf('03:00.1'), error.code, typeof probe, typeof serve);`;

test('a CommonJS program can require the package', async (t) => {
  const code = `const { parseBdf, probe, serve, RetroVfError } = require('./dist/index.js');${use}`;
  t.is(await run('program.cjs', code), '0000:03:00.1 ERR_CLOSED function function');
});

test('an ES module can import the package', async (t) => {
  const code = `import { parseBdf, probe, serve, RetroVfError } from './dist/index.js';${use}`;
  t.is(await run('program.mjs', code), '0000:03:00.1 ERR_CLOSED function function');
});
