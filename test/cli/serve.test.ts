// `retrovf serve`: what it announces, how it ends, and what it leaves.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { access, mkdir, readdir, stat, writeFile } from 'node:fs/promises';
import { request, type IncomingMessage } from 'node:http';
import { connect, createServer } from 'node:net';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import test, { type ExecutionContext } from 'ava';
import { firstLine, folder, start, type Running } from './retrovf.js';

interface Announced {
  readonly bdf: string;
  readonly socket: string;
  readonly type: string;
  readonly presentation: string;
  readonly verdict: string;
  readonly bar0: number;
  readonly notify: { readonly kind: string };
  readonly mac: string;
  readonly qemu: readonly string[];
}

/** Serves, and ends with the test if that does not end it. */
function serve(t: ExecutionContext, ...args: string[]): Running {
  const running = start(['serve', '--softnic', ...args]);
  t.teardown(() => running.child.kill('SIGKILL'));
  return running;
}

async function announced(running: Running): Promise<Announced> {
  return JSON.parse(await firstLine(running)) as Announced;
}

function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}

/** Leaves a socket file that nobody listens on, as a killed process does. */
async function abandonSocket(path: string): Promise<void> {
  const script = `require('node:net').createServer().listen(${JSON.stringify(path)}, () => process.kill(process.pid, 'SIGKILL'))`;
  await once(spawn(process.execPath, ['-e', script]), 'close');
}

test.serial(
  'a device is announced once its socket accepts a client, with what attaches it',
  async (t) => {
    const socket = join(await folder(t), 'a.sock');
    const running = serve(t, '--socket', socket);
    const device = await announced(running);
    const client = connect(socket);
    await once(client, 'connect');
    client.destroy();
    t.is(device.socket, socket);
    t.is(device.type, 'net');
    t.is(device.presentation, 'transitional');
    t.is(device.verdict, 'transitional');
    t.is(device.bar0, 32);
    t.is(device.notify.kind, 'region');
    t.regex(device.bdf, /^[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$/);
    t.regex(device.mac, /^([0-9a-f]{2}:){5}[0-9a-f]{2}$/);
    const at = device.qemu.indexOf('-device');
    t.deepEqual(JSON.parse(device.qemu[at + 1] ?? ''), {
      driver: 'vfio-user-pci',
      socket: { path: socket, type: 'unix' },
    });
    t.true(device.qemu.some((argument) => /^memory-backend-memfd,.*share=on/.test(argument)));
    running.child.kill('SIGTERM');
    const { code, stderr } = await running.ended;
    t.is(code, 0);
    t.true(stderr.includes(`"path":"${socket}"`), stderr);
  },
);

test.serial('metrics are served next to the devices, and their socket goes too', async (t) => {
  const dir = await folder(t);
  const path = join(dir, 'metrics');
  const socket = join(dir, 'a.sock');
  const running = serve(t, '--socket', socket, '--metrics', `unix:${path}`, '--spin', '50');
  const { bdf } = await announced(running);
  const sent = request({ socketPath: path, path: '/metrics' }).end();
  const [response] = (await once(sent, 'response')) as [IncomingMessage];
  const lines = (await text(response)).split('\n');
  t.true(
    lines.includes(`retrovf_device_info{bdf="${bdf}",kind="transitional"} 1`),
    lines.join('\n'),
  );
  t.true(lines.includes(`retrovf_owner_ready{bdf="${bdf.replace(/.$/, '0')}"} 1`));
  running.child.kill('SIGTERM');
  t.is((await running.ended).code, 0);
  t.deepEqual(await readdir(dir), []);
});

test.serial('an address that no metrics can be at is a usage error', async (t) => {
  const socket = join(await folder(t), 'a.sock');
  for (const address of ['9090', 'unix:relative', 'localhost:99999']) {
    const { code, stderr } = await serve(t, '--socket', socket, '--metrics', address).ended;
    t.is(code, 2, stderr);
  }
});

test.serial('a CPU that is not there is refused before anything is served', async (t) => {
  const socket = join(await folder(t), 'a.sock');
  const { code, stderr } = await serve(t, '--socket', socket, '--doorbell-cpu', '1023').ended;
  t.is(code, 2, stderr);
  t.true(stderr.includes('CPU 1023'), stderr);
});

test.serial('a socket where nobody may make one ends it with 5', async (t) => {
  const { code, stderr } = await serve(t, '--socket', '/sys/retrovf.sock', '--json').ended;
  t.is(code, 5);
  // Found out in JavaScript, or by root only when the socket is bound.
  t.regex(stderr, /^\{"code":"(EACCES|ERR_NOT_PERMITTED)"/m);
});

const endsWell = test.macro(async (t: ExecutionContext, signal: NodeJS.Signals) => {
  const dir = await folder(t);
  const running = serve(t, '--socket', join(dir, 'a.sock'));
  await announced(running);
  running.child.kill(signal);
  const { code, signal: by } = await running.ended;
  t.deepEqual({ code, by }, { code: 0, by: null });
  t.deepEqual(await readdir(dir), []);
});

test.serial('SIGTERM ends it with 0 and no socket is left', endsWell, 'SIGTERM');
test.serial('SIGINT ends it with 0 and no socket is left', endsWell, 'SIGINT');

test.serial('a client that is connected does not keep it from ending', async (t) => {
  const dir = await folder(t);
  const socket = join(dir, 'a.sock');
  const running = serve(t, '--socket', socket);
  await announced(running);
  const client = connect(socket);
  await once(client, 'connect');
  // Its connection ends with the server, by a reset if bytes were under way.
  client.on('error', () => {});
  running.child.kill('SIGTERM');
  t.is((await running.ended).code, 0);
  client.destroy();
  t.deepEqual(await readdir(dir), []);
});

test.serial('each VF has a socket named by its address in the folder, which is made', async (t) => {
  const dir = join(await folder(t), 'run', 'sockets');
  const running = serve(t, '--vfs', '3', '--socket-dir', dir, '--presentation', 'legacy');
  await announced(running);
  running.child.kill('SIGTERM');
  const { code, stdout } = await running.ended;
  t.is(code, 0);
  const devices = stdout
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line) as Announced);
  t.is((await stat(dir)).mode & 0o777, 0o750);
  t.is(new Set(devices.map(({ mac }) => mac)).size, devices.length);
  for (const { bdf, socket, presentation } of devices) {
    t.is(socket, join(dir, `${bdf}.sock`));
    t.is(presentation, 'legacy');
  }
});

test.serial('a socket that nobody listens on is replaced', async (t) => {
  const socket = join(await folder(t), 'a.sock');
  await abandonSocket(socket);
  t.true(await exists(socket));
  const running = serve(t, '--socket', socket);
  t.is((await announced(running)).socket, socket);
  running.child.kill('SIGTERM');
  t.is((await running.ended).code, 0);
});

test.serial('a socket that is in use is left alone, with exit code 6', async (t) => {
  const socket = join(await folder(t), 'a.sock');
  const server = createServer().listen(socket);
  await once(server, 'listening');
  t.teardown(() => server.close());
  const { code, stdout, stderr } = await serve(t, '--socket', socket, '--json').ended;
  t.is(code, 6, stderr);
  t.is(stdout, '');
  t.regex(stderr, /in use/);
  t.true(await exists(socket));
});

test.serial(
  'a device whose socket is in use does not keep another from being served',
  async (t) => {
    const dir = await folder(t);
    const first = serve(t, '--vfs', '2', '--socket-dir', dir);
    const { socket } = await announced(first);
    first.child.kill('SIGTERM');
    await first.ended;
    const server = createServer().listen(socket);
    await once(server, 'listening');
    t.teardown(() => server.close());
    const second = serve(t, '--vfs', '2', '--socket-dir', dir);
    const other = await announced(second);
    t.not(other.socket, socket);
    second.child.kill('SIGTERM');
    const { code, stdout, stderr } = await second.ended;
    t.is(code, 0);
    t.is(stdout.trimEnd().split('\n').length, 1);
    t.regex(stderr, /in use/);
  },
);

test.serial('a file that is no socket is left alone', async (t) => {
  const path = join(await folder(t), 'a.sock');
  await writeFile(path, 'precious');
  const { code, stdout } = await serve(t, '--socket', path).ended;
  t.not(code, 0);
  t.is(stdout, '');
  t.true(await exists(path));
});

test.serial('a path that a UNIX socket can not have is refused with its length', async (t) => {
  const dir = join(await folder(t), 'x'.repeat(100));
  await mkdir(dir);
  const { code, stderr } = await serve(t, '--socket-dir', dir).ended;
  t.is(code, 2);
  t.regex(stderr, /has \d+ bytes, a UNIX socket takes at most 107/);
});

test.serial('a folder that does not exist is a precondition, not made for --socket', async (t) => {
  const dir = join(await folder(t), 'missing');
  const { code } = await serve(t, '--socket', join(dir, 'a.sock')).ended;
  t.is(code, 4);
  t.false(await exists(dir));
});

test.serial('--msix 0 takes the MSI-X capability away', async (t) => {
  const socket = join(await folder(t), 'a.sock');
  const running = serve(t, '--socket', socket, '--msix', '0');
  t.is((await announced(running)).verdict, 'transitional');
  running.child.kill('SIGTERM');
  t.is((await running.ended).code, 0);
});

test.serial('a function that the host does not have is exit code 3', async (t) => {
  const socket = join(await folder(t), 'a.sock');
  const { code, stdout } = await start(['serve', 'ffff:ff:1f.7', '--socket', socket]).ended;
  t.is(code, 3);
  t.is(stdout, '');
});

test.serial('logs are JSON with --json and say less with --log-level', async (t) => {
  const socket = join(await folder(t), 'a.sock');
  const loud = serve(t, '--socket', socket, '--json');
  await announced(loud);
  loud.child.kill('SIGTERM');
  const lines = (await loud.ended).stderr.trimEnd().split('\n');
  for (const line of lines)
    t.is(typeof (JSON.parse(line) as { message: unknown }).message, 'string');
  const quiet = serve(t, '--socket', socket, '--json', '--log-level', 'error');
  await announced(quiet);
  quiet.child.kill('SIGTERM');
  t.is((await quiet.ended).stderr, '');
});
