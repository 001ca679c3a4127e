// Loading the addon, in processes of their own.

import { execFile } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import test from 'ava';

const index = new URL('../lib/index.ts', import.meta.url).href;
const root = fileURLToPath(new URL('..', import.meta.url));

async function run(code: string, env: Record<string, string> = {}): Promise<unknown> {
  const args = ['--import=tsx', '--input-type=module', '-e', code];
  const options = { cwd: root, env: { ...process.env, ...env } };
  const { stdout } = await promisify(execFile)(process.execPath, args, options);
  return JSON.parse(stdout);
}

const createAndReport = `
  const { SoftNicHost } = await import('${index}');
  try {
    await SoftNicHost.create();
    console.log('null');
  } catch (error) {
    console.log(JSON.stringify(error));
  }`;

test('an addon that does not load is ERR_NATIVE_LOAD with the reason of dlopen', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'retrovf-test-addon-'));
  t.teardown(() => rm(folder, { recursive: true }));
  const path = join(folder, 'broken.node');
  await writeFile(path, 'not a shared object');
  const error = (await run(createAndReport, { NAPI_RS_NATIVE_LIBRARY_PATH: path })) as {
    code: string;
    detail: { path: string; reason: string };
  };
  t.is(error.code, 'ERR_NATIVE_LOAD');
  t.is(error.detail.path, path);
  t.regex(error.detail.reason, /invalid ELF header|file too short/);
});

test('on another platform the package imports, its pure parts work, and native calls throw', async (t) => {
  const code = `
    Object.defineProperty(process, 'platform', { value: 'darwin' });
    const { parseBdf } = await import('${index}');
    if (parseBdf('03:00.1') !== '0000:03:00.1') throw new Error('parseBdf');
    ${createAndReport}`;
  const error = (await run(code)) as { code: string; detail: object };
  t.is(error.code, 'ERR_NATIVE_LOAD');
  t.deepEqual(error.detail, {
    path: `darwin-${process.arch}`,
    reason: 'only linux-x64 is supported',
  });
});

test('importing the package loads no native code and writes nothing', async (t) => {
  const code = `
    await import('${index}');
    const report = process.report.getReport();
    console.log(JSON.stringify(report.sharedObjects.filter((name) => name.endsWith('.node'))));`;
  t.deepEqual(
    ((await run(code)) as string[]).filter((name) => name.includes('retrovf')),
    [],
  );
});
