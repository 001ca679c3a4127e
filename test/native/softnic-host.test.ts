// The SoftNIC as a host: its folder, and the prober over it, with and without opening.

import { existsSync } from 'node:fs';
import test from 'ava';
import { probe, SoftNicHost } from '../../lib/index.js';
import { memberOf, openOwner, openTransitional, softNic } from '../helpers/softnic.js';

test('its folder describes PF and VFs as sysfs would, without findings', async (t) => {
  const host = await softNic(t, { vfs: 3, totalVfs: 8 });
  const pf = await host.sysfs.read(host.owner);
  t.like(pf, {
    vendor: 0x1af4,
    device: 0x1041,
    classCode: 0x020000,
    driver: 'softnic',
    sriov: { total: 8, enabled: 3 },
    findings: [],
  });
  t.deepEqual([...pf.virtfns.values()], host.members());
  const vf = await host.sysfs.read(host.members()[2]!);
  t.like(vf, { physfn: host.owner, driver: 'softnic', findings: [] });
  t.is(vf.bars?.[0]?.size, 0);
  t.true((vf.bars?.[4]?.size ?? 0) > 0);
  t.not(vf.iommuGroup, pf.iommuGroup);
  t.is((await host.sysfs.config(host.owner)).length, 4096);
});

test('its folder follows the number of VFs', async (t) => {
  const host = await softNic(t, { vfs: 1 });
  await host.setNumVfs(2);
  t.is((await host.sysfs.addresses()).addresses.length, 3);
  await host.setNumVfs(0);
  t.deepEqual((await host.sysfs.addresses()).addresses, [host.owner]);
});

test('the number of VFs does not change while one is open', async (t) => {
  const host = await softNic(t);
  await openTransitional(t, host);
  await t.throwsAsync(host.setNumVfs(2), { code: 'ERR_DEVICE_BUSY' });
  t.is((await host.sysfs.read(host.owner)).sriov?.enabled, 1);
});

test('its folder goes when it is closed, and it opens nothing any more', async (t) => {
  const host = await softNic(t);
  const { root } = host.sysfs;
  const { owner } = host;
  t.true(existsSync(root));
  await Promise.all([host.close(), host.close()]);
  t.false(existsSync(root));
  t.throws(() => host.open(owner), { code: 'ERR_CLOSED' });
});

const bad = test.macro({
  title: (_, what: string) => `options with ${what} are refused, and leave nothing behind`,
  async exec(t, _what: string, options: object, code: string) {
    await t.throwsAsync(SoftNicHost.create(options), { code });
  },
});
test(bad, 'more VFs than the PF has', { vfs: 9, totalVfs: 8 }, 'ERR_SOFTNIC_CONFIG');
test(bad, 'a queue size that is no power of two', { queueSize: 100 }, 'ERR_SOFTNIC_CONFIG');
test(bad, 'a multicast MAC address', { mac: '01:00:00:00:00:00' }, 'ERR_SOFTNIC_CONFIG');
test(bad, 'a malformed BDF', { bdf: 'nonsense' }, 'ERR_BDF_SYNTAX');
test(bad, 'an unknown uplink', { uplink: { kind: 'pigeon' } }, 'ERR_INVALID_ARG');

// The prober

const reasons = (report: Awaited<ReturnType<typeof probe>>) =>
  report.functions.map(({ verdict }) =>
    verdict.kind === 'passthrough' ? verdict.reason : verdict.kind,
  );

test('a probe without opening leaves VFs unverified', async (t) => {
  const host = await softNic(t, { vfs: 2 });
  t.deepEqual(reasons(await probe(host)), ['not-a-vf', 'unverified', 'unverified']);
});

test('a probe with opening reports opcodes and notify addresses, and gives the PF back', async (t) => {
  const host = await softNic(t, { vfs: 2 });
  const report = await probe(host, { open: true });
  t.deepEqual(reasons(report), ['not-a-vf', 'transitional-capable', 'transitional-capable']);
  t.like(report.functions[1]?.verdict, {
    opcodes: 0x7fn,
    notify: { kind: 'region', of: 'member', bar: 4 },
  });
  await openOwner(t, host);
});

const unfit = test.macro({
  title: (_, adminOpcodes: number, reason: string) =>
    `a probe with opening finds that opcodes 0x${adminOpcodes.toString(16)} mean ${reason}`,
  async exec(t, adminOpcodes: number, reason: string) {
    const host = await softNic(t, { adminOpcodes });
    t.deepEqual(reasons(await probe(host, { open: true })), ['not-a-vf', reason]);
  },
});
test(unfit, 0, 'owner-no-admin-vq');
test(unfit, 0x03, 'missing-opcodes');
test(unfit, 0x3f, 'transitional-capable');

const faulty = test.macro({
  title: (_, what: string, reason: string) => `a probe with opening reports ${what} as ${reason}`,
  async exec(t, _what: string, reason: string, status: number, qualifier: number) {
    const host = await softNic(t);
    host.inject({ kind: 'command-status', opcode: 3, status, qualifier });
    t.deepEqual(reasons(await probe(host, { open: true })), ['not-a-vf', reason]);
  },
});
test(faulty, 'a member that the device does not know', 'not-member', 22, 5);
test(faulty, 'a member that the device refuses otherwise', 'member-failed', 22, 3);

test('a probe with opening reports a PF in use as owner-no-access', async (t) => {
  const host = await softNic(t);
  await openOwner(t, host);
  t.deepEqual(reasons(await probe(host, { open: true })), ['not-a-vf', 'owner-no-access']);
});

test('a probe with opening reports a PF that does not answer as owner-failed, and goes on', async (t) => {
  const host = await softNic(t);
  host.inject({ kind: 'no-completion', opcode: 0 });
  t.deepEqual(reasons(await probe(host, { open: true })), ['not-a-vf', 'owner-failed']);
  await openOwner(t, host);
});

test('an aborted probe with opening throws the signal’s reason and gives the PF back', async (t) => {
  const host = await softNic(t);
  host.inject({ kind: 'slow-completion', opcode: 3, delayMs: 300 });
  const reason = new Error('enough');
  const controller = new AbortController();
  setTimeout(() => controller.abort(reason), 100);
  await t.throwsAsync(probe(host, { open: true, signal: controller.signal }), { is: reason });
  await openOwner(t, host);
});

test('a probe of one VF reports it alone', async (t) => {
  const host = await softNic(t, { vfs: 4 });
  const { functions } = await probe(host, { bdf: memberOf(host, 3) });
  t.is(functions.length, 1);
  t.is(functions[0]?.memberId, 3);
});
