// Serving devices to vfio-user clients: our own guest drives what a VMM would.

import { existsSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import test, { type ExecutionContext } from 'ava';
import {
  connectGuest,
  RetroVfError,
  serve,
  serveAll,
  startDoorbell,
  type Bdf,
  type Host,
  type LegacyGuest,
  type Served,
  type ServiceEntry,
  type SoftNicHost,
} from '../../lib/index.js';
import type { FunctionEvent } from '../../lib/native.js';
import {
  enable,
  memberOf,
  next,
  openTransitional,
  socketFolder,
  softNic,
} from '../helpers/softnic.js';
import { until } from '../helpers/until.js';

async function guestOf(t: ExecutionContext, path: string): Promise<LegacyGuest> {
  const guest = await connectGuest(path);
  t.teardown(() => guest.close());
  return guest;
}

async function served(t: ExecutionContext, host: SoftNicHost) {
  const device = await openTransitional(t, host, { presentation: 'legacy' });
  const socket = await socketFolder(t);
  const handle = serve(device, { path: socket('vf') });
  t.teardown(() => handle.close());
  return { device, handle };
}

test('a legacy guest enumerates, starts, gets an address and pings', async (t) => {
  const host = await softNic(t, { uplink: { kind: 'gateway' } });
  const { device, handle } = await served(t, host);
  const guest = await guestOf(t, handle.path);
  t.like(await guest.enumerate(), {
    vendor: 0x1af4,
    device: 0x1000,
    revision: 0,
    subsystem: 1,
    bar0Size: 32,
    interruptPin: 0,
  });
  t.like(await guest.start(), {
    offered: Number(device.features),
    linkUp: true,
    queueSizes: [256, 256],
  });
  const lease = await guest.dhcp(10_000);
  t.like(await guest.ping(lease.router ?? '', 3, 5000), { sent: 3, received: 3 });
  const counters = handle.counters();
  t.true(counters.notifies > 0);
  t.is(counters.timedOutAccesses + counters.protocolErrors + counters.gatedAccesses, 0);
  t.is(device.stats().accesses.failed, 0);
});

// Serial: these run before the others, which the blocked loop would hold up.

test.serial(
  'kicks and interrupts flow while the event loop is blocked for two seconds',
  async (t) => {
    const host = await softNic(t, { uplink: { kind: 'gateway' } });
    const { handle } = await served(t, host);
    const guest = await guestOf(t, handle.path);
    await guest.enumerate();
    await guest.start();
    const lease = await guest.dhcp(10_000);
    const pings = guest.ping(lease.router ?? '', 200, 5000);
    block(2000);
    const { received, rtt } = await pings;
    t.is(received, 200);
    t.true(rtt.max < 1_500_000_000, 'no ping waited for the event loop');
    const doorbells = guest.measureDoorbell(1000);
    block(2000);
    t.true((await doorbells).max < 1_500_000_000, 'no notification waited for the event loop');
  },
);

test.serial(
  'a register access while the event loop is blocked is answered in time, with all ones',
  async (t) => {
    const device = await openTransitional(t, await softNic(t));
    const socket = await socketFolder(t);
    const handle = serve(device, { path: socket('vf'), accessTimeoutMs: 100 });
    t.teardown(() => handle.close());
    const guest = await guestOf(t, handle.path);
    await guest.enumerate();
    await guest.start();
    const reads = guest.measureControl(3);
    block(2000);
    t.true((await reads).max < 1_500_000_000);
    t.true(handle.counters().timedOutAccesses > 0);
    t.like(await guest.measureControl(3), { count: 3 }, 'and the session is still in step');
  },
);

function block(ms: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
}

test('a second client is refused while the first is there, and welcome after it', async (t) => {
  const { handle } = await served(t, await softNic(t));
  const first = await guestOf(t, handle.path);
  await first.enumerate();
  const refusal = next(handle.device, 'client-refused');
  await t.throwsAsync(connectGuest(handle.path), { instanceOf: RetroVfError });
  await refusal;
  t.is(handle.state.kind, 'connected');
  first.close();
  await until('the first has left', () => handle.state.kind === 'listening');
  const second = await guestOf(t, handle.path);
  t.like(await second.enumerate(), { device: 0x1000 });
});

test('a client that comes and goes is an event of the session and of the device', async (t) => {
  const { device, handle } = await served(t, await softNic(t));
  const seen: string[] = [];
  handle.on('event', (kind) => seen.push(kind));
  const connected = next(device, 'client-connected');
  const guest = await guestOf(t, handle.path);
  await connected;
  const gone = next(device, 'client-disconnected');
  guest.close();
  await gone;
  t.deepEqual([seen[0], seen.at(-1)], ['client-connected', 'client-disconnected']);
});

test('closing a session removes its socket, ends its client, and leaves the device usable', async (t) => {
  const { device, handle } = await served(t, await softNic(t));
  const guest = await guestOf(t, handle.path);
  await Promise.all([handle.close(), handle.close()]);
  t.is(handle.state.kind, 'closed');
  t.false(existsSync(handle.path));
  await t.throwsAsync(guest.enumerate());
  enable(device);
  t.is((await device.bar0Read(0, 4)).readUInt32LE(), Number(device.features));
  const again = serve(device, { path: handle.path });
  t.teardown(() => again.close());
  t.like(await (await guestOf(t, again.path)).enumerate(), { device: 0x1000 });
});

test('a device closed under its client ends its accesses without a crash', async (t) => {
  const { device, handle } = await served(t, await softNic(t));
  const guest = await guestOf(t, handle.path);
  await guest.enumerate();
  await handle.close();
  await device.close();
  await t.throwsAsync(guest.start());
});

const badPath = test.macro({
  title: (_, what: string) => `a socket path that is ${what} is refused`,
  async exec(t, _what: string, path: string) {
    const device = await openTransitional(t, await softNic(t));
    t.throws(() => serve(device, { path }), { code: 'ERR_ARGUMENT' });
  },
});
test(badPath, 'relative', 'vf.sock');
test(badPath, 'longer than the kernel takes', `/tmp/${'x'.repeat(103)}`);

test('a socket path that is another file is refused, and the file stays', async (t) => {
  const device = await openTransitional(t, await softNic(t));
  const path = (await socketFolder(t))('file');
  await writeFile(path, 'precious');
  t.throws(() => serve(device, { path }), { code: 'ERR_SOCKET_PATH' });
  t.true(existsSync(path));
});

test('a time to spin outside its range is refused, one inside serves', async (t) => {
  const host = await softNic(t);
  const device = await openTransitional(t, host);
  const socket = await socketFolder(t);
  for (const spinMicros of [-1, 0.5, 1_000_001, Number.NaN]) {
    t.throws(() => serve(device, { path: socket('vf'), spinMicros }), { code: 'ERR_ARGUMENT' });
  }
  const handle = serve(device, { path: socket('vf'), spinMicros: 100 });
  t.teardown(() => handle.close());
  const guest = await guestOf(t, handle.path);
  await guest.enumerate();
  await guest.start();
  t.is((await guest.measureDoorbell(100)).count, 100);
});

test('the doorbell thread is started once', (t) => {
  t.throws(() => startDoorbell({ mode: 'busy', cpu: 5000 }), { code: 'ERR_ARGUMENT' });
  t.throws(() => startDoorbell({ mode: 'adaptive', spinMicros: -1 }), { code: 'ERR_ARGUMENT' });
  startDoorbell({ mode: 'adaptive', spinMicros: 20 });
  t.throws(() => startDoorbell({ mode: 'blocking' }), { code: 'ERR_BUSY' });
});

test('a device is served once at a time', async (t) => {
  const { device, handle } = await served(t, await softNic(t));
  t.throws(() => serve(device, { path: `${handle.path}2` }), { code: 'ERR_DEVICE_BUSY' });
});

test('a degraded device keeps its guest’s traffic going, and recovers under it', async (t) => {
  const host = await softNic(t, { uplink: { kind: 'gateway' } });
  const { device, handle } = await served(t, host);
  const guest = await guestOf(t, handle.path);
  await guest.enumerate();
  await guest.start();
  const router = (await guest.dhcp(10_000)).router ?? '';
  const degraded = next(device, 'degraded');
  host.inject({ kind: 'device-reset', bdf: host.owner });
  await degraded;
  t.like(await guest.ping(router, 3, 5000), { received: 3 });
  t.is((await guest.measureControl(1)).count, 1, 'a register access is answered');
  await device.owner.recover();
  t.like(await guest.ping(router, 3, 5000), { received: 3 });
});

// Many devices

async function service(t: ExecutionContext, host: SoftNicHost, entries: readonly ServiceEntry[]) {
  const all = await serveAll(host, entries);
  t.teardown(() => all.close());
  return all;
}

test('two guests on two VFs get addresses of their own through one owner', async (t) => {
  const host = await softNic(t, { vfs: 2, uplink: { kind: 'gateway' } });
  const socket = await socketFolder(t);
  const entries = [1, 2].map((n) => ({ bdf: memberOf(host, n), path: socket(`vf${n}`) }));
  const all = await service(t, host, entries);
  t.is(all.owners.length, 1);
  t.deepEqual(all.failures, []);
  const leases = [];
  for (const { path } of entries) {
    const guest = await guestOf(t, path);
    await guest.enumerate();
    await guest.start();
    leases.push(await guest.dhcp(10_000));
  }
  t.not(leases[0]?.address, leases[1]?.address);
});

test('a device that cannot be served stands in failures, and the others are served', async (t) => {
  const host = await softNic(t, { vfs: 2 });
  const socket = await socketFolder(t);
  await writeFile(socket('taken'), '');
  const all = await service(t, host, [
    { bdf: 'nonsense', path: socket('a') },
    { bdf: '0000:77:00.0', path: socket('b') },
    { bdf: memberOf(host, 1), path: socket('taken') },
    { bdf: memberOf(host, 2), path: socket('good') },
  ]);
  t.deepEqual(
    all.failures.map(({ error }) => error.code),
    ['ERR_BDF_SYNTAX', 'ERR_NO_SUCH_DEVICE', 'ERR_SOCKET_PATH'],
  );
  t.deepEqual(
    all.served.map(({ device }) => device.bdf),
    [host.members()[1]!],
  );
  await host.open(host.members()[0]!).close(); // the third was given back
});

test('a VF that does not qualify is served as plain passthrough, and says why', async (t) => {
  const host = await softNic(t, { adminOpcodes: 0 });
  const socket = await socketFolder(t);
  const all = await service(t, host, [{ bdf: memberOf(host), path: socket('vf') }]);
  t.like(all.served[0]?.device.stats(), { kind: 'passthrough', reason: 'owner-no-admin-vq' });
  const guest = await guestOf(t, socket('vf'));
  await t.throwsAsync(
    guest.enumerate().then(() => guest.start()),
    undefined,
    'a legacy driver does not take it',
  );
});

test('devices added at once to one PF share its owner, and none is added to a closed service', async (t) => {
  const host = await softNic(t, { vfs: 2 });
  const socket = await socketFolder(t);
  const all = await service(t, host, []);
  const entries = [1, 2].map((n) => ({ bdf: memberOf(host, n), path: socket(`vf${n}`) }));
  await Promise.all(entries.map((entry) => all.add(entry)));
  t.deepEqual(all.failures, []);
  t.is(all.owners.length, 1);
  await all.close();
  await t.throwsAsync(all.add(entries[0]!), { code: 'ERR_CLOSED' });
});

test('closing a service gives everything back and removes the sockets', async (t) => {
  const host = await softNic(t, { vfs: 2 });
  const socket = await socketFolder(t);
  const all = await service(
    t,
    host,
    [1, 2].map((n) => ({ bdf: memberOf(host, n), path: socket(`vf${n}`) })),
  );
  const sessions: readonly Served[] = all.served;
  await Promise.all([all.close(), all.close()]);
  t.false(sessions.some(({ path }) => existsSync(path)));
  for (const bdf of [host.owner, ...host.members()]) await host.open(bdf).close();
});

/** The SoftNIC, with a say for the test in what the host wants of a function. */
function unplugging(host: SoftNicHost): {
  host: Host;
  tell: (bdf: string, event: FunctionEvent) => void;
} {
  const listeners = new Map<string, (event: FunctionEvent) => void>();
  const { sysfs, openableDrivers } = host;
  return {
    host: {
      sysfs,
      openableDrivers,
      open(bdf, onEvent) {
        listeners.set(bdf, onEvent);
        return host.open(bdf);
      },
      close: () => host.close(),
    },
    tell: (bdf, event) => listeners.get(bdf)?.(event),
  };
}

async function twoVfs(t: ExecutionContext) {
  const nic = await softNic(t, { vfs: 2, uplink: { kind: 'gateway' } });
  const { host, tell } = unplugging(nic);
  const socket = await socketFolder(t);
  const entries = [1, 2].map((n) => ({ bdf: memberOf(nic, n), path: socket(`vf${n}`) }));
  const all = await serveAll(host, entries);
  t.teardown(() => all.close());
  return { nic, tell, all, paths: entries.map(({ path }) => path) };
}

test('a VF that the host wants back is closed under its client, and the other goes on', async (t) => {
  const { nic, tell, all, paths } = await twoVfs(t);
  const [first = '', second = ''] = paths;
  const guest = await guestOf(t, first);
  await guest.enumerate();
  await guest.start();
  await guestOf(t, second);
  tell(memberOf(nic, 2), 'unplug-requested');
  tell(memberOf(nic, 2), 'unplug-requested');
  await until('the VF is given back', () => all.served.length === 1);
  t.false(existsSync(second));
  await nic.open(memberOf(nic, 2) as Bdf).close();
  const lease = await guest.dhcp(10_000);
  t.like(await guest.ping(lease.router ?? '', 1, 5000), { received: 1 });
  await all.add({ bdf: memberOf(nic, 2), path: second });
  t.deepEqual(all.failures, []);
});

test('a PF that the host wants back is closed after all of its VFs', async (t) => {
  const { nic, tell, all, paths } = await twoVfs(t);
  const [owner] = all.owners;
  tell(nic.owner, 'unplug-requested');
  await until('the PF is given back', () => all.owners.length === 0);
  t.is(owner?.state.kind, 'closed');
  t.is(all.served.length, 0);
  t.deepEqual(
    paths.filter((path) => existsSync(path)),
    [],
  );
  for (const bdf of [nic.owner, ...nic.members()]) await nic.open(bdf).close();
});

test('an error of the bus is an event of the device and of the owner', async (t) => {
  const { nic, tell, all } = await twoVfs(t);
  const heard: string[] = [];
  all.served[1]?.device.on('device-error', () => heard.push('device'));
  all.owners[0]?.on('device-error', () => heard.push('owner'));
  tell(memberOf(nic, 2), 'device-error');
  tell(nic.owner, 'device-error');
  t.deepEqual(heard, ['device', 'owner']);
  t.is(all.served.length, 2);
});

test('a service recovers its lost owners in one call', async (t) => {
  const host = await softNic(t);
  const socket = await socketFolder(t);
  const all = await serveAll(host, [{ bdf: memberOf(host), path: socket('vf') }], {
    owner: { healthIntervalMs: 10 },
  });
  t.teardown(() => all.close());
  host.inject({ kind: 'device-reset', bdf: host.owner });
  await until('lost', () => all.owners[0]?.state.kind === 'failed');
  await all.recover();
  t.is(all.owners[0]?.state.kind, 'ready');
});

test('an aborted start closes what was opened and throws the signal’s reason', async (t) => {
  const host = await softNic(t);
  const socket = await socketFolder(t);
  const reason = new Error('enough');
  const starting = serveAll(host, [{ bdf: memberOf(host), path: socket('vf') }], {
    signal: AbortSignal.abort(reason),
  });
  await t.throwsAsync(starting, { is: reason });
  await host.open(host.owner).close();
});
