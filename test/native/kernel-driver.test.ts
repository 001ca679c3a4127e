// The second half of test/kernel-driver.test.ts: facts about Linux' virtio_vfio_pci that take a device.

import test from 'ava';
import { openDevice, TransitionalDevice } from '../../lib/index.js';
import { enable, memberOf, next, openTransitional, softNic } from '../helpers/softnic.js';

test('kernel 1: without NOTIFY_INFO or an admin queue the VF is plain; unlike the kernel we say why', async (t) => {
  const host = await softNic(t, { adminOpcodes: 0 });
  const device = await openDevice(host, memberOf(host));
  t.teardown(() => device.close());
  t.is(device.kind, 'passthrough');
  t.is(device.kind === 'passthrough' ? device.cause.reason : '', 'owner-no-admin-vq');
});

test('unlike the kernel 1: opcodes 2 to 5 are enough, NOTIFY_INFO is optional as in the specification', async (t) => {
  const device = await openTransitional(t, await softNic(t, { adminOpcodes: 0x3f }));
  t.deepEqual(device.notifyPlan, { kind: 'command', why: 'not-offered' });
});

test('unlike the kernel 1: a device opened again has no command bit or BAR0 value of its last user', async (t) => {
  const host = await softNic(t);
  const first = await TransitionalDevice.open(host, memberOf(host));
  enable(first);
  first.configWrite(0x10, Buffer.of(0, 0xc0, 0, 0));
  await first.close();
  const second = await openTransitional(t, host);
  t.is(second.configRead(0x04, 1).readUInt8() & 1, 0);
  t.is(second.configRead(0x10, 4).readUInt32LE(), 1);
});

test('kernel 4: BAR0 is a region of 32 bytes to read and write', async (t) => {
  const device = await openTransitional(t, await softNic(t));
  t.deepEqual(device.regionInfo(0), { size: 32, readable: true, writable: true });
});

test('kernel 4: other regions are those of the VF', async (t) => {
  const host = await softNic(t);
  const bars = (await host.sysfs.read(host.members()[0]!)).bars ?? [];
  const device = await openTransitional(t, host);
  for (const { index, size } of bars.slice(1))
    t.is(device.regionInfo(index).size, size, `BAR ${index}`);
});

test('unlike the kernel 5: an access of no bytes, or past BAR0, is refused before the device', async (t) => {
  const device = await openTransitional(t, await softNic(t));
  enable(device);
  t.throws(() => device.bar0Read(0, 0), { code: 'ERR_ARGUMENT' });
  t.throws(() => device.bar0Read(30, 4), { code: 'ERR_ARGUMENT' });
});

test('unlike the kernel 5: a stuck PF blocks no register access for longer than its deadline', async (t) => {
  const host = await softNic(t);
  const options = { accessTimeoutMs: 50, ownerOptions: { commandTimeoutMs: 10_000 } };
  const device = await openTransitional(t, host, options);
  enable(device);
  host.inject({ kind: 'no-completion', opcode: 3 });
  t.deepEqual(await device.bar0Read(0x12, 1), Buffer.of(0xff));
  t.deepEqual(await device.bar0Read(0x13, 1), Buffer.of(0xff));
  t.is(device.stats().accesses.timedOut, 2);
});

test('unlike the kernel 5: EAGAIN is tried again and not given to the VMM', async (t) => {
  const host = await softNic(t);
  const device = await openTransitional(t, host);
  enable(device);
  host.inject({ kind: 'command-status', opcode: 3, status: 11, count: 2 });
  t.is((await device.bar0Read(0, 4)).readUInt32LE(), Number(device.features));
});

test('kernel 5: a notification does not wait for a command that is under way', async (t) => {
  const host = await softNic(t);
  const device = await openTransitional(t, host);
  enable(device);
  host.inject({ kind: 'slow-completion', opcode: 2, delayMs: 200 });
  let written = false;
  const write = device.bar0Write(0x0e, Buffer.of(1, 0)).then(() => (written = true));
  device.notify(0);
  t.false(written);
  t.is(device.stats().kicks, 1);
  await write;
});

test('kernel 6: a reset of the function clears the driver’s registers', async (t) => {
  const device = await openTransitional(t, await softNic(t));
  enable(device);
  await device.bar0Write(0x0e, Buffer.of(1, 0));
  await device.bar0Write(0x12, Buffer.of(3));
  await device.reset();
  enable(device);
  t.deepEqual(await device.bar0Read(0x12, 1), Buffer.of(0));
  t.deepEqual(await device.bar0Read(0x0e, 2), Buffer.of(0, 0));
});

test('kernel 6: after a PF reset commands fail until it is up again, and the VF stays', async (t) => {
  const host = await softNic(t);
  const device = await openTransitional(t, host, { ownerOptions: { healthIntervalMs: 10 } });
  enable(device);
  const degraded = next(device, 'degraded');
  host.inject({ kind: 'device-reset', bdf: host.owner });
  await degraded;
  t.deepEqual(await device.bar0Read(0x12, 1), Buffer.of(0xff));
  t.deepEqual(device.configRead(0, 4), Buffer.of(0xf4, 0x1a, 0x00, 0x10));
  await device.owner.recover();
  t.is((await device.bar0Read(0, 4)).readUInt32LE(), Number(device.features));
});

test('kernel 7: a vector register keeps what the device can map, and reads 0xffff otherwise', async (t) => {
  const device = await openTransitional(t, await softNic(t, { msixVectors: 4 }));
  enable(device);
  const msix = device.overlay.find(({ mask }) => mask === 0xc000);
  device.configWrite(msix?.offset ?? 0, Buffer.of(0, 0x80));
  await device.bar0Write(0x14, Buffer.of(3, 0));
  t.deepEqual(await device.bar0Read(0x14, 2), Buffer.of(3, 0));
  await device.bar0Write(0x14, Buffer.of(4, 0));
  t.deepEqual(await device.bar0Read(0x14, 2), Buffer.of(0xff, 0xff));
});
