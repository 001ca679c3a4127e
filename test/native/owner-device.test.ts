// The owner against SoftNIC's admin queue, sound and failing.

import test from 'ava';
import {
  legacyRead,
  legacyWrite,
  OwnerDevice,
  RetroVfError,
  type AdminCommand,
  type OwnerOptions,
} from '../../lib/index.js';
import { listQuery, listUse, notifyInfo } from '../../lib/virtio/admin-commands.js';
import { next, openOwner, softNic } from '../helpers/softnic.js';
import { until } from '../helpers/until.js';

const readStatus = (member = 1) => legacyRead('common', member, 0x12, 1);
const writeStatus = (value: number, member = 1) =>
  legacyWrite('common', member, 0x12, Buffer.of(value));
const codeOf = (error: unknown) => (error instanceof RetroVfError ? error.code : String(error));

test('an owner comes up with all legacy commands', async (t) => {
  const owner = await openOwner(t, await softNic(t));
  t.deepEqual(owner.state, { kind: 'ready' });
  t.deepEqual(owner.capabilities, { opcodes: 0x7fn, legacy: true, notifyInfo: true });
});

const capabilities = test.macro({
  title: (_, adminOpcodes: number, expected: string) =>
    `a PF that offers opcodes 0x${adminOpcodes.toString(16)} ${expected}`,
  async exec(
    t,
    adminOpcodes: number,
    _expected: string,
    legacy: boolean,
    notify: boolean,
    inUse: bigint,
  ) {
    const owner = await openOwner(t, await softNic(t, { adminOpcodes }));
    t.deepEqual(owner.capabilities, { opcodes: inUse, legacy, notifyInfo: notify });
  },
});
test(capabilities, 0x3f, 'is legacy capable, without notify addresses', true, false, 0x3fn);
test(capabilities, 0x03, 'is not legacy capable', false, false, 0x03n);
test(
  capabilities,
  0x1f,
  'with one legacy command missing is not legacy capable and uses none',
  false,
  false,
  0x03n,
);
test(capabilities, 0x43, 'with notify addresses alone uses none', false, false, 0x03n);

test('the LIST commands stay in use, so the list can be asked for again', async (t) => {
  const owner = await openOwner(t, await softNic(t));
  t.is((await owner.execute(listQuery())).readBigUInt64LE(), 0x7fn);
  await owner.execute(listUse(0x7fn));
});

test('a PF may refuse the list before its VFs are enabled; it is asked again when they have appeared', async (t) => {
  const host = await softNic(t, { vfs: 0 });
  const invalidGroup = { kind: 'command-status', opcode: 0, status: 22, qualifier: 4 } as const;
  host.inject({ ...invalidGroup, count: 2 });
  const owner = await openOwner(t, host);
  t.is(owner.capabilities, null);
  await t.throwsAsync(owner.execute(readStatus()), { code: 'ERR_ADMIN_UNSUPPORTED' });
  await t.throwsAsync(owner.negotiate(), { code: 'ERR_ADMIN_STATUS' });
  await host.setNumVfs(2);
  const [a, b] = await Promise.all([owner.negotiate(), owner.negotiate()]);
  t.true(a.legacy);
  t.is(a, b, 'concurrent calls share one negotiation');
  t.deepEqual(await owner.execute(readStatus(2)), Buffer.of(0));
});

test('a PF without an admin queue is refused', async (t) => {
  const host = await softNic(t, { adminOpcodes: 0 });
  const error = await t.throwsAsync<RetroVfError>(OwnerDevice.open(host, host.owner));
  t.like(error, { code: 'ERR_OWNER_NO_ADMIN_VQ', bdf: host.owner });
  await host.open(host.owner).close(); // given back
});

test('an owner can be opened once, and again after it was closed', async (t) => {
  const host = await softNic(t);
  const owner = await openOwner(t, host);
  await t.throwsAsync(OwnerDevice.open(host, host.owner), { code: 'ERR_DEVICE_BUSY' });
  await owner.close();
  await openOwner(t, host);
});

const badOption = test.macro({
  title: (_, name: string, value: number) =>
    `${name} ${value} is refused before anything is opened`,
  async exec(t, name: keyof OwnerOptions, value: number) {
    const host = await softNic(t);
    const error = await t.throwsAsync<RetroVfError>(
      OwnerDevice.open(host, host.owner, { [name]: value }),
    );
    t.like(error, { code: 'ERR_ARGUMENT', detail: { name, value } });
    await host.open(host.owner).close();
  },
});
test(badOption, 'commandTimeoutMs', 0);
test(badOption, 'resetTimeoutMs', 1.5);
test(badOption, 'healthIntervalMs', Number.NaN);

// Commands

test('registers of a member are written and read', async (t) => {
  const owner = await openOwner(t, await softNic(t, { vfs: 2 }));
  await owner.execute(writeStatus(3, 2));
  t.deepEqual(await owner.execute(readStatus(2)), Buffer.of(3));
  t.deepEqual(await owner.execute(readStatus(1)), Buffer.of(0), 'the other member has its own');
});

const refused = test.macro({
  title: (_, what: string, qualifier: string) => `${what} is refused by the device: ${qualifier}`,
  async exec(t, _what: string, qualifier: string, command: AdminCommand) {
    const owner = await openOwner(t, await softNic(t));
    const error = await t.throwsAsync<RetroVfError>(owner.execute(command));
    t.is(error?.code, 'ERR_ADMIN_STATUS');
    t.like(error?.detail, { status: 'EINVAL', qualifier, attempts: 1 });
    t.is(owner.state.kind, 'ready');
  },
});
test(refused, 'a member that is not enabled', 'INVALID_MEMBER', readStatus(2));
test(refused, 'member 0', 'INVALID_MEMBER', readStatus(0));
test(refused, 'a read over two registers', 'INVALID_FIELD', legacyRead('common', 1, 0x0e, 4));
test(
  refused,
  'a read past the device configuration',
  'INVALID_FIELD',
  legacyRead('device', 1, 200, 1),
);

test('a command that the device does not offer is not sent', async (t) => {
  const host = await softNic(t, { adminOpcodes: 0x3f });
  const owner = await openOwner(t, host);
  const before = owner.stats().submitted;
  const error = await t.throwsAsync<RetroVfError>(owner.execute(notifyInfo(1)));
  t.like(error, {
    code: 'ERR_ADMIN_UNSUPPORTED',
    detail: { command: 'LEGACY_NOTIFY_INFO', opcode: 6 },
  });
  t.is(owner.stats().submitted, before);
});

test('a device that asks to try again is asked again', async (t) => {
  const host = await softNic(t);
  const owner = await openOwner(t, host);
  host.inject({ kind: 'command-status', opcode: 3, status: 11, qualifier: 7, count: 3 });
  t.deepEqual(await owner.execute(readStatus()), Buffer.of(0));
});

test('a device that asks to try again for ever gets five attempts', async (t) => {
  const host = await softNic(t);
  const owner = await openOwner(t, host);
  host.inject({ kind: 'command-status', opcode: 3, status: 16, count: 1000 });
  const error = await t.throwsAsync<RetroVfError>(owner.execute(readStatus()));
  t.like(error?.detail, { status: 'EBUSY', attempts: 5 });
  t.is(owner.state.kind, 'ready');
});

test('commands of one member stay in order while others overtake a slow one', async (t) => {
  const host = await softNic(t, { vfs: 2 });
  const owner = await openOwner(t, host, { commandTimeoutMs: 5000 });
  host.inject({ kind: 'slow-completion', member: 1, delayMs: 100 });
  const order: string[] = [];
  await Promise.all([
    owner.execute(writeStatus(1, 1)).then(() => order.push('1 slow')),
    owner.execute(writeStatus(3, 1)).then(() => order.push('1 next')),
    owner.execute(writeStatus(1, 2)).then(() => order.push('2')),
  ]);
  t.deepEqual(order, ['2', '1 slow', '1 next']);
  t.deepEqual(await owner.execute(readStatus(1)), Buffer.of(3));
});

test('hundreds of commands of many members all complete', async (t) => {
  const host = await softNic(t, { vfs: 32 });
  const owner = await openOwner(t, host);
  const results = await Promise.all(
    Array.from({ length: 640 }, (_, i) => owner.execute(readStatus((i % 32) + 1))),
  );
  t.true(results.every((result) => result.equals(Buffer.of(0))));
});

test('an aborted command rejects with the signal’s reason; the next one of the member still waits for it', async (t) => {
  const host = await softNic(t);
  const owner = await openOwner(t, host, { commandTimeoutMs: 5000 });
  host.inject({ kind: 'slow-completion', opcode: 2, delayMs: 150 });
  const reason = new Error('enough');
  const controller = new AbortController();
  const write = owner.execute(writeStatus(1), { signal: controller.signal });
  const read = owner.execute(readStatus());
  controller.abort(reason);
  await t.throwsAsync(write, { is: reason });
  t.deepEqual(await read, Buffer.of(1), 'the write ran before the read');
});

test('a signal that is aborted already sends nothing', async (t) => {
  const owner = await openOwner(t, await softNic(t));
  const before = owner.stats().submitted;
  const reason = new Error('no');
  await t.throwsAsync(owner.execute(readStatus(), { signal: AbortSignal.abort(reason) }), {
    is: reason,
  });
  t.is(owner.stats().submitted, before);
});

// Loss and recovery

test('a command without completion fails the owner, and everything that waits, with a reason', async (t) => {
  const host = await softNic(t, { vfs: 2 });
  const owner = await openOwner(t, host, { commandTimeoutMs: 50 });
  host.inject({ kind: 'no-completion', member: 1 });
  const lost = next(owner, 'lost');
  const outcomes = await Promise.allSettled([
    owner.execute(writeStatus(1)),
    owner.execute(writeStatus(3)),
    owner.execute(readStatus()),
  ]);
  t.deepEqual(
    outcomes.map((outcome) =>
      outcome.status === 'rejected' ? codeOf(outcome.reason) : 'fulfilled',
    ),
    ['ERR_ADMIN_TIMEOUT', 'ERR_OWNER_LOST', 'ERR_OWNER_LOST'],
  );
  const [cause] = await lost;
  t.like(cause, { code: 'ERR_OWNER_LOST', detail: { reason: 'timeout' } });
  t.like(owner.state, { kind: 'failed', cause });
  await t.throwsAsync(owner.execute(readStatus(2)), { code: 'ERR_OWNER_LOST' });
  await t.throwsAsync(owner.negotiate(), { code: 'ERR_OWNER_LOST' });
});

test('a lost owner is recovered once, however many ask', async (t) => {
  const host = await softNic(t);
  const owner = await openOwner(t, host, { commandTimeoutMs: 50 });
  host.inject({ kind: 'no-completion', opcode: 3 });
  await t.throwsAsync(owner.execute(readStatus()));
  let recovered = 0;
  owner.on('recovered', () => (recovered += 1));
  const first = owner.recover();
  t.is(owner.state.kind, 'recovering');
  await t.throwsAsync(owner.execute(readStatus()), { code: 'ERR_OWNER_LOST' });
  await Promise.all([first, owner.recover(), owner.recover()]);
  t.is(recovered, 1);
  t.is(owner.state.kind, 'ready');
  t.deepEqual(await owner.execute(readStatus()), Buffer.of(0));
});

test('late answers of the old admin queue are not taken for those of the new one', async (t) => {
  // Command ids start again with each queue, and closing the old one completes what was stuck there.
  const host = await softNic(t, { vfs: 16 });
  const owner = await openOwner(t, host, { commandTimeoutMs: 100 });
  const members = Array.from({ length: 16 }, (_, i) => i + 1);
  for (let round = 0; round < 3; round += 1) {
    host.inject({ kind: 'no-completion', opcode: 3, count: 16 });
    await Promise.allSettled(members.map((member) => owner.execute(readStatus(member))));
    await owner.recover();
    host.inject({ kind: 'slow-completion', opcode: 2, delayMs: 20, count: 16 });
    await Promise.all(members.map((member) => owner.execute(writeStatus(1, member))));
    t.is(owner.state.kind, 'ready');
  }
});

test('recovering an owner that is well does nothing', async (t) => {
  const owner = await openOwner(t, await softNic(t));
  const before = owner.stats().submitted;
  await owner.recover();
  t.is(owner.stats().submitted, before);
});

test('NEEDS_RESET is noticed without any command, and recovery clears it', async (t) => {
  const host = await softNic(t);
  const owner = await openOwner(t, host, { healthIntervalMs: 10 });
  const lost = next(owner, 'lost');
  host.inject({ kind: 'device-reset', bdf: host.owner });
  t.like((await lost)[0], { detail: { reason: 'needs-reset' } });
  await owner.recover();
  t.deepEqual(await owner.execute(readStatus()), Buffer.of(0));
});

test('a PF that somebody else resets is noticed without any command, and recovery brings it back', async (t) => {
  const owner = await openOwner(t, await softNic(t), { healthIntervalMs: 10 });
  const lost = next(owner, 'lost');
  await owner.function.reset();
  t.like((await lost)[0], { detail: { reason: 'was-reset' } });
  await owner.recover();
  t.deepEqual(await owner.execute(readStatus()), Buffer.of(0));
});

test('a PF that is gone is noticed; recovery fails while it is gone, and works when it is back', async (t) => {
  const host = await softNic(t);
  const owner = await openOwner(t, host, { healthIntervalMs: 10 });
  const lost = next(owner, 'lost');
  host.inject({ kind: 'function-gone', bdf: host.owner });
  t.like((await lost)[0], { detail: { reason: 'gone' } });
  await t.throwsAsync(owner.recover(), { instanceOf: RetroVfError });
  t.like(owner.state, { kind: 'failed', cause: { detail: { reason: 'recovery-failed' } } });
  host.clearFaults();
  await owner.recover();
  t.deepEqual(await owner.execute(readStatus()), Buffer.of(0));
});

test('a bring-up whose first command never completes is an error, and gives the PF back', async (t) => {
  const host = await softNic(t);
  host.inject({ kind: 'no-completion', opcode: 0 });
  await t.throwsAsync(OwnerDevice.open(host, host.owner, { commandTimeoutMs: 30 }), {
    code: 'ERR_ADMIN_TIMEOUT',
  });
  await openOwner(t, host);
});

test('a bring-up whose list is refused for good is an error, and gives the PF back', async (t) => {
  const host = await softNic(t);
  host.inject({ kind: 'command-status', opcode: 1, status: 22, qualifier: 3 });
  await t.throwsAsync(OwnerDevice.open(host, host.owner), { code: 'ERR_ADMIN_STATUS' });
  await openOwner(t, host);
});

test('an aborted bring-up rejects with the signal’s reason, and gives the PF back', async (t) => {
  const host = await softNic(t);
  host.inject({ kind: 'slow-completion', opcode: 0, delayMs: 200 });
  const reason = new Error('enough');
  const controller = new AbortController();
  setTimeout(() => controller.abort(reason), 20);
  const opening = OwnerDevice.open(host, host.owner, {
    signal: controller.signal,
    commandTimeoutMs: 5000,
  });
  await t.throwsAsync(opening, { is: reason });
  await openOwner(t, host);
});

// Closing

test('closing rejects what is in flight and what comes later, and may be repeated', async (t) => {
  const host = await softNic(t);
  const owner = await openOwner(t, host, { commandTimeoutMs: 5000 });
  host.inject({ kind: 'no-completion', opcode: 3 });
  const stuck = owner.execute(readStatus());
  const closing = owner.close();
  await t.throwsAsync(stuck, { code: 'ERR_CLOSED' });
  await Promise.all([closing, owner.close()]);
  t.is(owner.state.kind, 'closed');
  await t.throwsAsync(owner.execute(readStatus()), { code: 'ERR_CLOSED' });
  await t.throwsAsync(owner.recover(), { code: 'ERR_CLOSED' });
  t.throws(() => owner.stats(), { code: 'ERR_CLOSED' });
});

const badCommand = test.macro({
  title: (_, what: string) => `a command with ${what} is refused before it is sent`,
  async exec(t, _what: string, make: () => AdminCommand, timeoutMs: number = 100) {
    const owner = await openOwner(t, await softNic(t));
    const before = owner.stats().submitted;
    const run = async () => owner.execute(make(), { timeoutMs });
    await t.throwsAsync(run(), { code: 'ERR_ARGUMENT' });
    t.is(owner.stats().submitted, before);
  },
});
test(badCommand, 'a negative member', () => readStatus(-1));
test(badCommand, 'half a member', () => readStatus(0.5));
test(badCommand, 'an offset above 255', () => legacyRead('common', 1, 256, 1));
test(badCommand, 'a negative offset', () => legacyWrite('device', 1, -1, Buffer.of(0)));
test(badCommand, 'a result of a gigabyte', () => legacyRead('device', 1, 0, 2 ** 30));
test(badCommand, 'no time', () => readStatus(), 0);

test('closing during a recovery waits for it, and the owner ends closed', async (t) => {
  const host = await softNic(t);
  const owner = await openOwner(t, host, { healthIntervalMs: 10 });
  const lost = next(owner, 'lost');
  host.inject({ kind: 'device-reset', bdf: host.owner });
  await lost;
  const recovering = owner.recover().catch(() => {});
  await owner.close();
  await recovering;
  t.is(owner.state.kind, 'closed');
  await host.open(host.owner).close();
});

test('an owner that is lost can be closed', async (t) => {
  const host = await softNic(t);
  const owner = await openOwner(t, host, { healthIntervalMs: 10, resetTimeoutMs: 100 });
  host.inject({ kind: 'function-gone', bdf: host.owner });
  await until('failed', () => owner.state.kind === 'failed');
  await owner.close();
  t.is(owner.state.kind, 'closed');
});

test('await using closes the owner', async (t) => {
  const host = await softNic(t);
  {
    await using owner = await OwnerDevice.open(host, host.owner);
    t.is(owner.state.kind, 'ready');
  }
  await host.open(host.owner).close();
});
