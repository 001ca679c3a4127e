import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { SysfsWriter, type WriteRefused } from '../../lib/host/sysfs-writer.js';
import { until } from '../helpers/until.js';

async function root(t: ExecutionContext): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), 'retrovf-test-'));
  t.teardown(() => rm(path, { recursive: true, force: true }));
  return path;
}

test('a write reaches the file as it is', async (t) => {
  const folder = await root(t);
  await writeFile(join(folder, 'bind'), '');
  await new SysfsWriter(folder).write('bind', '0000:5e:00.0\n', { timeoutMs: 10_000 });
  t.is(await readFile(join(folder, 'bind'), 'utf8'), '0000:5e:00.0\n');
});

test('a file that is not there is not made, and the errno is told', async (t) => {
  const folder = await root(t);
  const write = new SysfsWriter(folder).write('bind', 'x', { timeoutMs: 10_000 });
  const error = await t.throwsAsync<WriteRefused>(write, { name: 'WriteRefused', code: 'ENOENT' });
  t.true(error?.message.includes(join(folder, 'bind')));
  await t.throwsAsync(readFile(join(folder, 'bind')), { code: 'ENOENT' });
});

test('what the kernel answers a write with is told', async (t) => {
  // The kernel takes no text for this file.
  const write = new SysfsWriter('/proc/self').write('oom_score_adj', 'text', { timeoutMs: 10_000 });
  await t.throwsAsync(write, { code: 'EINVAL' });
});

function commandLines(): string[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map((pid) => {
      try {
        return readFileSync(join('/proc', pid, 'cmdline'), 'latin1');
      } catch {
        return ''; // it has ended
      }
    });
}

// Opening a FIFO that nobody reads blocks, as unbinding a function that is open does.
async function stuck(t: ExecutionContext): Promise<string> {
  const folder = await root(t);
  execFileSync('mkfifo', [join(folder, 'unbind')]);
  return folder;
}

test('a write that is stuck is given up in time, with nothing left that would keep a process alive', async (t) => {
  const folder = await stuck(t);
  const program = `
    import { SysfsWriter } from './lib/host/sysfs-writer.ts';
    const write = new SysfsWriter(process.argv[1]).write('unbind', 'x', { timeoutMs: 300 });
    await write.catch(({ code }) => console.log(code));`;
  const args = ['--import=tsx', '--input-type=module', '-e', program, '--', folder];
  t.is(execFileSync(process.execPath, args, { encoding: 'utf8', timeout: 60_000 }), 'ETIMEDOUT\n');
  // The process that is stuck has the path among its arguments.
  await until('its process ends', () => !commandLines().some((line) => line.includes(folder)));
  t.pass();
});

test('a write that is stuck ends when its signal aborts, with the reason', async (t) => {
  const folder = await stuck(t);
  const controller = new AbortController();
  const options = { timeoutMs: 60_000, signal: controller.signal };
  const write = new SysfsWriter(folder).write('unbind', 'x', options);
  const reason = new Error('enough');
  setTimeout(() => controller.abort(reason), 100);
  await t.throwsAsync(write, { is: reason });
});
