// The device that a guest gets, through the API, over SoftNIC.

import { fc, testProp } from '@fast-check/ava';
import test from 'ava';
import {
  openDevice,
  OwnerDevice,
  PassthroughDevice,
  RetroVfError,
  SoftNicHost,
  TransitionalDevice,
} from '../../lib/index.js';
import { walkCapabilities } from '../../lib/pci/capabilities.js';
import { ConfigView } from '../helpers/config-space.js';
import {
  enable,
  memberOf,
  next,
  openOwner,
  openTransitional,
  softNic,
} from '../helpers/softnic.js';
import { until } from '../helpers/until.js';

const status = 0x12;

test('a VF is presented as a transitional network device', async (t) => {
  const device = await openTransitional(t, await softNic(t));
  t.is(device.kind, 'transitional');
  t.is(device.type.name, 'net');
  t.is(device.memberId, 1);
  t.deepEqual(device.configRead(0, 4), Buffer.of(0xf4, 0x1a, 0x00, 0x10));
  t.deepEqual(device.configRead(0x2c, 4), Buffer.of(0xf4, 0x1a, 0x01, 0x00));
  t.deepEqual(device.regionInfo(0), { size: 32, readable: true, writable: true });
  t.is(device.regionInfo(7).size, 4096);
});

test('registers are served from the owner', async (t) => {
  const device = await openTransitional(t, await softNic(t, { mac: '52:54:00:12:34:56' }));
  enable(device);
  t.is((await device.bar0Read(0x00, 4)).readUInt32LE(), Number(device.features));
  await device.bar0Write(status, Buffer.of(1));
  t.deepEqual(await device.bar0Read(status, 1), Buffer.of(1));
  t.deepEqual(
    await device.bar0Read(20, 6),
    Buffer.of(0x52, 0x54, 0, 0x12, 0x34, 0x57),
    'the first address after the PF’s',
  );
  t.deepEqual(await device.bar0Read(0x0c, 2), Buffer.of(0, 1), '256 entries');
});

test('a wide access over several registers gives what single ones give', async (t) => {
  const device = await openTransitional(t, await softNic(t));
  enable(device);
  await device.bar0Write(0x0e, Buffer.of(1, 0));
  const wide = await device.bar0Read(0x08, 12);
  const parts = [
    [0x08, 4],
    [0x0c, 2],
    [0x0e, 2],
    [0x10, 2],
    [0x12, 1],
    [0x13, 1],
  ] as const;
  const single: Buffer[] = [];
  for (const [offset, length] of parts) single.push(await device.bar0Read(offset, length));
  t.deepEqual(wide, Buffer.concat(single));
});

test('the device configuration moves from 20 to 24 with the guest’s MSI-X enable bit', async (t) => {
  const device = await openTransitional(t, await softNic(t));
  enable(device);
  const mac = await device.bar0Read(20, 6);
  const msix = walkCapabilities(device.configRead(0, 256)).capabilities.find(
    ({ id }) => id === 0x11,
  );
  device.configWrite((msix?.offset ?? 0) + 2, Buffer.of(0, 0x80));
  t.deepEqual(await device.bar0Read(24, 6), mac);
  t.deepEqual(await device.bar0Read(20, 2), Buffer.of(0xff, 0xff), 'no vector is set');
});

test('with several queue pairs BAR0 has 64 bytes and max_virtqueue_pairs stays in reach', async (t) => {
  const device = await openTransitional(t, await softNic(t, { queuePairs: 4 }));
  enable(device);
  t.is(device.regionInfo(0).size, 64);
  t.deepEqual(await device.bar0Read(28, 2), Buffer.of(4, 0));
});

test('accesses outside BAR0 are a mistake of the caller, not of the guest', async (t) => {
  const device = await openTransitional(t, await softNic(t));
  for (const [offset, length] of [
    [32, 1],
    [31, 2],
    [-1, 1],
    [0, 0],
    [0.5, 1],
  ] as const) {
    t.throws(() => device.bar0Read(offset, length), { code: 'ERR_ARGUMENT' });
  }
  t.throws(() => device.notify(65536), { code: 'ERR_ARGUMENT' });
});

test('with I/O space disabled reads are all ones and writes do nothing', async (t) => {
  const device = await openTransitional(t, await softNic(t));
  t.deepEqual(await device.bar0Read(status, 1), Buffer.of(0xff));
  await device.bar0Write(status, Buffer.of(1));
  enable(device);
  t.deepEqual(await device.bar0Read(status, 1), Buffer.of(0));
  t.is(device.stats().accesses.gated, 2);
});

test('a driver that forgets bus mastering gets it with its DRIVER bit', async (t) => {
  const device = await openTransitional(t, await softNic(t));
  enable(device, 0x01);
  await device.bar0Write(status, Buffer.of(1));
  t.is(device.configRead(0x04, 1).readUInt8() & 4, 0);
  await device.bar0Write(status, Buffer.of(3));
  t.is(device.configRead(0x04, 1).readUInt8() & 4, 4);
  t.is(device.stats().accesses.busMasterFixes, 1);
});

test('a reset forgets the driver’s state and disables I/O space, and keeps BAR0', async (t) => {
  const device = await openTransitional(t, await softNic(t));
  enable(device);
  device.configWrite(0x10, Buffer.of(0, 0xc0, 0, 0));
  await device.bar0Write(status, Buffer.of(7));
  await device.reset();
  t.is(device.configRead(0x04, 1).readUInt8() & 1, 0);
  t.is(device.configRead(0x10, 4).readUInt32LE(), 0xc001);
  enable(device);
  t.deepEqual(await device.bar0Read(status, 1), Buffer.of(0));
});

test('a reset by the guest, through the PCI Express capability, does the same', async (t) => {
  const device = await openTransitional(t, await softNic(t));
  const { capabilities } = walkCapabilities(device.configRead(0, 256));
  const express = capabilities.find(({ id }) => id === 0x10)!.offset;
  const msix = capabilities.find(({ id }) => id === 0x11)!.offset;
  enable(device);
  device.configWrite(0x10, Buffer.of(0, 0xc0, 0, 0));
  device.configWrite(msix + 3, Buffer.of(0x80));
  await device.bar0Write(status, Buffer.of(7));
  device.configWrite(express + 8, Buffer.of(0, 0x80));
  t.is(device.configRead(0x04, 1).readUInt8() & 5, 0);
  t.is(device.configRead(0x10, 4).readUInt32LE(), 0xc001);
  t.is(device.configRead(msix + 3, 1).readUInt8() & 0x80, 0);
  enable(device);
  t.deepEqual(await device.bar0Read(status, 1), Buffer.of(0));
});

test('presentation legacy shows no virtio capability, transitional shows them all', async (t) => {
  const host = await softNic(t, { vfs: 2 });
  const owner = await openOwner(t, host);
  const ids = (device: TransitionalDevice) =>
    walkCapabilities(device.configRead(0, 256)).capabilities.map(({ id }) => id);
  const legacy = await openTransitional(t, host, { owner, presentation: 'legacy' }, 1);
  const transitional = await openTransitional(t, host, { owner }, 2);
  t.false(ids(legacy).includes(0x09));
  t.true(ids(legacy).includes(0x11));
  t.true(ids(transitional).includes(0x09));
});

test('a VF without MSI-X works, with its configuration always at 20', async (t) => {
  const device = await openTransitional(t, await softNic(t, { msixVectors: 0 }));
  enable(device);
  t.is((await device.bar0Read(20, 6)).length, 6);
  t.false(
    device.overlay.some(({ resets, width, mask }) => resets && width === 2 && mask === 0xc000),
  );
});

// The overlay in Rust and its model in the tests

const write = fc.tuple(fc.nat(255), fc.uint8Array({ minLength: 1, maxLength: 8 }));
testProp(
  'configuration space reads what the overlay table says, after any writes to what is ours',
  [fc.constantFrom('legacy' as const, 'transitional' as const), fc.array(write, { maxLength: 8 })],
  async (t, presentation, writes) => {
    const host = await SoftNicHost.create();
    try {
      const bdf = memberOf(host);
      const fn = host.open(host.members()[0]!);
      const raw = fn.configRead(0, 256);
      await fn.close();
      const device = await TransitionalDevice.open(host, bdf, { presentation });
      const model = new ConfigView(raw, device.overlay);
      // Bytes that are all ours, or the guest could change the device itself.
      const ours = (at: number) =>
        device.overlay.some(
          ({ offset, width, mask }) =>
            at >= offset && at < offset + width && ((mask >>> (8 * (at - offset))) & 0xff) === 0xff,
        );
      for (const [offset, data] of writes) {
        for (const [i, value] of [...data].entries()) {
          if (offset + i > 255 || !ours(offset + i)) continue;
          device.configWrite(offset + i, Buffer.of(value));
          model.write(offset + i, [value]);
        }
      }
      t.deepEqual(device.configRead(0, 256), model.read(0, 256));
      await device.close();
    } finally {
      await host.close();
    }
  },
  { numRuns: 25 },
);

// Notifications

const kicks = (host: SoftNicHost, bdf: string) =>
  host.stats().find((row) => row.bdf === bdf)?.kicks ?? 0;

/** Sets a queue up, as a queue that does not exist takes no notifications. */
async function startQueue(device: TransitionalDevice): Promise<void> {
  enable(device);
  await device.bar0Write(status, Buffer.of(3));
  await device.bar0Write(0x0e, Buffer.of(1, 0));
  await device.bar0Write(0x08, Buffer.of(1, 0, 0, 0));
  await device.bar0Write(status, Buffer.of(7));
}

test('a SoftNIC is no memory, so it has no notify word, and calls are counted', async (t) => {
  const device = await openTransitional(t, await softNic(t));
  t.is(device.notifyWord, null);
  device.notify(0);
  device.notify(65_535);
  t.is(device.stats().kicks, 2);
  t.is(device.stats().served.notifies, 0);
  for (const queue of [-1, 65_536, 1.5, Number.NaN, 2 ** 32, '1' as never, undefined as never]) {
    t.throws(() => device.notify(queue), { code: 'ERR_ARGUMENT' });
  }
});

const notified = test.macro({
  title: (_, notify: string) =>
    `legacy interface, driver: notifications use the listed address (${notify})`,
  async exec(t, notify: 'member' | 'owner' | 'none', plan: object) {
    const host = await softNic(t, { notify });
    const device = await openTransitional(t, host);
    t.like(device.notifyPlan, plan);
    await startQueue(device);
    const before = kicks(host, device.bdf);
    device.notify(1);
    await until('kicked', () => kicks(host, device.bdf) > before);
  },
});
test(notified, 'member', { kind: 'region', of: 'member' });
test(notified, 'owner', { kind: 'region', of: 'owner' });
test(notified, 'none', { kind: 'command', why: 'not-offered' });

test('a notify within a wider write rings the doorbell', async (t) => {
  const host = await softNic(t);
  const device = await openTransitional(t, host);
  await startQueue(device);
  const before = kicks(host, device.bdf);
  await device.bar0Write(0x0e, Buffer.of(0, 0, 1, 0));
  await until('kicked', () => kicks(host, device.bdf) > before);
  t.deepEqual(await device.bar0Read(0x0e, 2), Buffer.of(0, 0), 'and the queue was selected');
});

test('notifications by command work again after the owner was recovered', async (t) => {
  const host = await softNic(t, { notify: 'none' });
  const device = await openTransitional(t, host, { ownerOptions: { healthIntervalMs: 10 } });
  const lost = next(device, 'degraded');
  host.inject({ kind: 'device-reset', bdf: host.owner });
  await lost;
  await device.owner.recover();
  await startQueue(device);
  const before = kicks(host, device.bdf);
  device.notify(1);
  await until('kicked', () => kicks(host, device.bdf) > before);
  t.is(device.stats().owner, 'ready');
});

type Entry = readonly [flags: number, bar: number, offset: number];
function entries(...list: Entry[]): Buffer {
  const bytes = Buffer.alloc(64);
  for (const [i, [flags, bar, offset]] of list.entries()) {
    bytes.writeUInt8(flags, 16 * i);
    bytes.writeUInt8(bar, 16 * i + 1);
    bytes.writeBigUInt64LE(BigInt(offset), 16 * i + 8);
  }
  return bytes;
}

const malformed = test.macro({
  title: (_, what: string) => `with ${what} notifications go by command, and arrive`,
  async exec(t, _what: string, list: readonly Entry[]) {
    const host = await softNic(t);
    host.inject({ kind: 'notify-info', entries: entries(...list) });
    const device = await openTransitional(t, host);
    t.deepEqual(device.notifyPlan, { kind: 'command', why: 'no-usable-entry' });
    await startQueue(device);
    const before = kicks(host, device.bdf);
    device.notify(1);
    await until('kicked', () => kicks(host, device.bdf) > before);
  },
});
test(malformed, 'an empty list', []);
test(malformed, 'an address in BAR0', [[2, 0, 0]]);
test(malformed, 'an odd address', [[2, 4, 0x4001]]);
test(malformed, 'an address past the BAR', [[2, 4, 0x8000]]);
test(malformed, 'entries of unknown kinds only', [
  [3, 4, 0],
  [4, 4, 0],
  [255, 255, 0],
]);
test(malformed, 'the only good entry behind the end of the list', [
  [0, 0, 0],
  [2, 4, 0x4000],
]);

test('a device that refuses LEGACY_NOTIFY_INFO gets notifications by command', async (t) => {
  const host = await softNic(t);
  host.inject({ kind: 'command-status', opcode: 6, status: 22, qualifier: 3 });
  const device = await openTransitional(t, host);
  t.deepEqual(device.notifyPlan, { kind: 'command', why: 'refused' });
});

// Failures

test('a register that the device refuses reads as all ones, and nobody else notices', async (t) => {
  const host = await softNic(t);
  const device = await openTransitional(t, host);
  enable(device);
  host.inject({ kind: 'command-status', opcode: 3, status: 22, qualifier: 3 });
  t.deepEqual(await device.bar0Read(0x00, 4), Buffer.alloc(4, 0xff));
  t.is((await device.bar0Read(0x00, 4)).readUInt32LE(), Number(device.features));
  t.is(device.stats().accesses.failed, 1);
  t.is(device.stats().owner, 'ready');
});

test('a slow device is waited for, and keeps the order of the guest', async (t) => {
  const host = await softNic(t);
  const device = await openTransitional(t, host);
  enable(device);
  host.inject({ kind: 'slow-completion', opcode: 2, delayMs: 100 });
  const write = device.bar0Write(status, Buffer.of(1));
  t.deepEqual(await device.bar0Read(status, 1), Buffer.of(1));
  await write;
  t.is(device.stats().accesses.timedOut, 0);
});

test('a register access is answered in time though the command has longer, and order survives', async (t) => {
  const host = await softNic(t);
  const device = await openTransitional(t, host, {
    accessTimeoutMs: 30,
    ownerOptions: { commandTimeoutMs: 5000 },
  });
  enable(device);
  host.inject({ kind: 'slow-completion', opcode: 2, delayMs: 200 });
  await device.bar0Write(status, Buffer.of(1));
  t.is(device.stats().accesses.timedOut, 1);
  await until('the write arrived', () => device.owner.stats().inFlight === 0);
  t.deepEqual(await device.bar0Read(status, 1), Buffer.of(1));
  t.is(device.owner.state.kind, 'ready');
});

test('a lost owner degrades its device: registers are all ones, notifications go on', async (t) => {
  const host = await softNic(t);
  const device = await openTransitional(t, host, { ownerOptions: { commandTimeoutMs: 50 } });
  await startQueue(device);
  host.inject({ kind: 'no-completion', opcode: 3 });
  const degraded = next(device, 'degraded');
  t.deepEqual(await device.bar0Read(status, 1), Buffer.of(0xff));
  t.like((await degraded)[0], { code: 'ERR_OWNER_LOST', detail: { reason: 'timeout' } });
  t.is(device.stats().owner, 'failed');
  t.deepEqual(await device.bar0Read(0, 4), Buffer.alloc(4, 0xff), 'at once');
  const before = kicks(host, device.bdf);
  device.notify(1);
  await until('kicked', () => kicks(host, device.bdf) > before);
});

test('a recovered owner makes the registers work again', async (t) => {
  const host = await softNic(t);
  const device = await openTransitional(t, host, { ownerOptions: { commandTimeoutMs: 50 } });
  enable(device);
  host.inject({ kind: 'no-completion', opcode: 3 });
  await device.bar0Read(status, 1);
  const recovered = next(device, 'recovered');
  await device.owner.recover();
  await recovered;
  t.is((await device.bar0Read(0, 4)).readUInt32LE(), Number(device.features));
});

test('a VF that is gone keeps answering its guest', async (t) => {
  const host = await softNic(t);
  const device = await openTransitional(t, host);
  enable(device);
  host.inject({ kind: 'function-gone', bdf: device.bdf });
  t.is((await device.bar0Read(status, 1)).length, 1);
  await device.bar0Write(status, Buffer.of(3));
  device.notify(0);
  await device.close();
});

// Opening and closing

const unfit = test.macro({
  title: (_, adminOpcodes: number, reason: string) =>
    `a VF whose PF offers opcodes 0x${adminOpcodes.toString(16)} is passthrough: ${reason}`,
  async exec(t, adminOpcodes: number, reason: string) {
    const host = await softNic(t, { adminOpcodes });
    const error = await t.throwsAsync<RetroVfError>(TransitionalDevice.open(host, memberOf(host)));
    t.like(error, { code: 'ERR_NOT_TRANSITIONAL', detail: { reason } });
    const device = await openDevice(host, memberOf(host));
    t.teardown(() => device.close());
    t.is(device.kind, 'passthrough');
    t.like(device.stats(), { kind: 'passthrough', reason });
    t.deepEqual(device.configRead(0, 4), Buffer.of(0xf4, 0x1a, 0x41, 0x10), 'as it is');
    t.is(device.regionInfo(0).size, 0);
    await host.open(host.owner).close(); // the PF was given back
  },
});
test(unfit, 0, 'owner-no-admin-vq');
test(unfit, 0x03, 'missing-opcodes');

test('a sound VF opens as transitional by openDevice', async (t) => {
  const host = await softNic(t);
  const device = await openDevice(host, memberOf(host));
  t.teardown(() => device.close());
  t.is(device.kind, 'transitional');
});

test('a sound VF opens as passthrough when asked for', async (t) => {
  const host = await softNic(t);
  const device = await PassthroughDevice.open(host, memberOf(host));
  t.teardown(() => device.close());
  t.is(device.cause.reason, 'requested');
});

test('a passing failure of the owner is an error and not a reason for passthrough', async (t) => {
  const host = await softNic(t);
  await openOwner(t, host);
  await t.throwsAsync(openDevice(host, memberOf(host)), { code: 'ERR_DEVICE_BUSY' });
});

test('a VF opens once; what was opened for the second try is given back', async (t) => {
  const host = await softNic(t, { vfs: 2 });
  const owner = await openOwner(t, host);
  await openTransitional(t, host, { owner });
  await t.throwsAsync(TransitionalDevice.open(host, memberOf(host), { owner }), {
    code: 'ERR_DEVICE_BUSY',
  });
  await openTransitional(t, host, { owner }, 2);
});

test('an owner that is not the VF’s PF is refused', async (t) => {
  const host = await softNic(t);
  const other = await softNic(t, { bdf: '0000:60:00.0' });
  const owner = await openOwner(t, other);
  await t.throwsAsync(TransitionalDevice.open(host, memberOf(host), { owner }), {
    code: 'ERR_ARGUMENT',
  });
});

test('an aborted open rejects with the signal’s reason and gives PF and VF back', async (t) => {
  const host = await softNic(t);
  host.inject({ kind: 'slow-completion', opcode: 6, delayMs: 200 });
  const reason = new Error('enough');
  const controller = new AbortController();
  setTimeout(() => controller.abort(reason), 50);
  const opening = TransitionalDevice.open(host, memberOf(host), {
    signal: controller.signal,
    ownerOptions: { commandTimeoutMs: 5000 },
  });
  await t.throwsAsync(opening, { is: reason });
  await openTransitional(t, host);
});

test('a device closes its own PF, and leaves one that it was given', async (t) => {
  const host = await softNic(t);
  const own = await TransitionalDevice.open(host, memberOf(host));
  await own.close();
  t.is(own.owner.state.kind, 'closed');
  const owner = await OwnerDevice.open(host, host.owner);
  const device = await TransitionalDevice.open(host, memberOf(host), { owner });
  await device.close();
  t.is(owner.state.kind, 'ready');
  t.is(owner.listenerCount('lost'), 0);
  await owner.close();
});

test('closing twice, and using a closed device, is clean', async (t) => {
  const host = await softNic(t);
  const device = await openTransitional(t, host);
  await Promise.all([device.close(), device.close()]);
  t.throws(() => device.configRead(0, 4), { code: 'ERR_CLOSED' });
  t.throws(() => device.notify(0), { code: 'ERR_CLOSED' });
  await t.throwsAsync(device.reset(), { code: 'ERR_CLOSED' });
  t.throws(() => device.stats(), { code: 'ERR_CLOSED' });
});
