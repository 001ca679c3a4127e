import { setTimeout as sleep } from 'node:timers/promises';
import test from 'ava';
import { AdminLanes } from '../lib/admin-lanes.js';
import { ownerLost, type RetroVfError } from '../lib/errors.js';
import { legacyRead, legacyWrite } from '../lib/virtio/admin-commands.js';
import { answer, coded, FakeQueue } from './helpers/fake-queue.js';
import { until } from './helpers/until.js';

const bdf = '0000:5e:00.0';

function setUp() {
  const queue = new FakeQueue();
  const broken: RetroVfError[] = [];
  const lanes = new AdminLanes(bdf, queue, (cause) => broken.push(cause));
  const log: string[] = [];
  const read = (member: number, name: string, timeoutMs = 1000) =>
    lanes.run(legacyRead('common', member, 0x12, 1), timeoutMs, (error, result) =>
      log.push(`${name} ${error?.code ?? [...(result ?? [])]}`),
    );
  return { queue, broken, lanes, log, read };
}

test('an answer that the device gives at once arrives before run returns', (t) => {
  const { queue, log, read } = setUp();
  queue.now.push(answer(0, 0, [7]));
  read(1, 'a');
  t.deepEqual(log, ['a 7']);
});

test('a second command of a member is sent when the first is complete, and not before', (t) => {
  const { queue, lanes, log, read } = setUp();
  read(1, 'a');
  read(1, 'b');
  t.is(queue.sent.length, 1);
  lanes.complete(queue.last.id, null, answer(0, 0, [1]));
  t.is(queue.sent.length, 2);
  lanes.complete(queue.last.id, null, answer(0, 0, [2]));
  t.deepEqual(log, ['a 1', 'b 2']);
});

test('members do not wait for each other, and complete in any order', (t) => {
  const { queue, lanes, log, read } = setUp();
  read(1, 'a');
  read(2, 'b');
  t.deepEqual(
    queue.sent.map(({ member }) => member),
    [1, 2],
  );
  lanes.complete(queue.sent[1]!.id, null, answer(0, 0, [2]));
  lanes.complete(queue.sent[0]!.id, null, answer(0, 0, [1]));
  t.deepEqual(log, ['b 2', 'a 1']);
});

test('a command asked for while another completes takes its turn behind those that wait', (t) => {
  const { queue, lanes, log, read } = setUp();
  lanes.run(legacyRead('common', 1, 0x12, 1), 1000, () => read(1, 'c'));
  read(1, 'b');
  queue.now.push(answer(0, 0, [2]), answer(0, 0, [3]));
  lanes.complete(queue.sent[0]!.id, null, answer(0, 0, [1]));
  t.deepEqual(log, ['b 2', 'c 3']);
});

test('200 commands that complete at once do not exhaust the stack', (t) => {
  const { queue, lanes, log, read } = setUp();
  read(1, 'first');
  for (let i = 0; i < 200; i += 1) {
    read(1, `n${i}`);
    queue.now.push(answer(0, 0, [0]));
  }
  lanes.complete(queue.sent[0]!.id, null, answer(0, 0, [0]));
  t.is(log.length, 201);
});

const retried = test.macro({
  title: (_, name: string) => `${name} is tried again, and the member’s next command waits for it`,
  async exec(t, _name: string, status: number, qualifier: number) {
    const { queue, log, read } = setUp();
    queue.now.push(
      answer(status, qualifier),
      answer(status, qualifier),
      answer(0, 0, [5]),
      answer(0, 0, [6]),
    );
    read(1, 'a');
    read(1, 'b');
    await until('both answered', () => log.length === 2);
    t.is(queue.sent.length, 4);
    t.deepEqual(log, ['a 5', 'b 6']);
  },
});
test(retried, 'EAGAIN', 11, 0);
test(retried, 'ENOMEM', 12, 0);
test(retried, 'EBUSY', 16, 0);
test(retried, 'EINVAL with TRYAGAIN', 22, 7);
test(retried, 'EINVAL with NORESOURCE', 22, 6);

test('retries are bounded: the fifth refusal is the answer', async (t) => {
  const { queue, lanes } = setUp();
  for (let i = 0; i < 9; i += 1) queue.now.push(answer(11, 7));
  const error = await new Promise<RetroVfError | null>((resolve) =>
    lanes.run(legacyRead('common', 3, 0, 4), 1000, resolve),
  );
  t.is(queue.sent.length, 5);
  t.is(error?.code, 'ERR_ADMIN_STATUS');
  t.like(error?.detail, { status: 'EAGAIN', qualifier: 'TRYAGAIN', attempts: 5, member: 3 });
  t.is(error?.bdf, bdf);
});

test('a deadline covers all attempts', async (t) => {
  const { queue, log, read } = setUp();
  for (let i = 0; i < 9; i += 1) queue.now.push(answer(11, 0));
  read(1, 'a', 5);
  await until('answered', () => log.length === 1);
  t.true(queue.sent.length < 5);
  t.true(queue.sent.every(({ deadlineMs }) => deadlineMs <= 5));
  t.deepEqual(log, ['a ERR_ADMIN_STATUS']);
});

test('EINVAL is not tried again, and names status and qualifier', (t) => {
  const { queue, lanes } = setUp();
  queue.now.push(answer(22, 3));
  lanes.run(legacyWrite('common', 1, 0x12, Buffer.of(1)), 1000, (error) => {
    t.like(error?.detail, { status: 'EINVAL', qualifier: 'INVALID_FIELD', attempts: 1 });
    t.regex(error?.message ?? '', /LEGACY_COMMON_CFG_WRITE for member 1: EINVAL, INVALID_FIELD/);
  });
  t.is(queue.sent.length, 1);
});

const short = test.macro({
  title: (_, bytes: number) => `${bytes} written bytes for a 4-byte read are an error, not a value`,
  exec(t, bytes: number) {
    const { queue, lanes } = setUp();
    queue.now.push(answer(0, 0, [1, 2, 3, 4]).subarray(0, bytes));
    lanes.run(legacyRead('common', 1, 0, 4), 1000, (error, result) => {
      t.is(error?.code, 'ERR_ADMIN_SHORT_RESULT');
      t.is(result, null);
    });
  },
});
test(short, 0);
test(short, 2);
test(short, 7);
test(short, 8);
test(short, 11);

test('a refusal needs no result', (t) => {
  const { queue, log, read } = setUp();
  queue.now.push(answer(22, 5));
  read(1, 'a');
  t.deepEqual(log, ['a ERR_ADMIN_STATUS']);
});

test('a full queue is tried again until there is room', async (t) => {
  const { queue, broken, log, read } = setUp();
  queue.now.push(coded('ERR_ADMIN_FULL'), coded('ERR_ADMIN_FULL'), answer(0, 0, [9]));
  read(1, 'a');
  await until('answered', () => log.length === 1);
  t.deepEqual(log, ['a 9']);
  t.deepEqual(broken, []);
});

test('a full queue is an error once the deadline is over', async (t) => {
  const { queue, log, read } = setUp();
  for (let i = 0; i < 50; i += 1) queue.now.push(coded('ERR_ADMIN_FULL'));
  read(1, 'a', 5);
  await until('answered', () => log.length === 1);
  t.deepEqual(log, ['a ERR_ADMIN_FULL']);
});

test('a timeout is reported to its command, and as a broken queue', (t) => {
  const { queue, lanes, broken, log, read } = setUp();
  read(1, 'a', 250);
  lanes.complete(queue.last.id, 'ERR_ADMIN_TIMEOUT', null);
  t.deepEqual(log, ['a ERR_ADMIN_TIMEOUT']);
  t.is(broken[0]?.code, 'ERR_ADMIN_TIMEOUT');
  t.is(broken[0]?.detail['timeoutMs'], 250);
});

test('end rejects what is in flight, what waits, what waits for a retry, and what comes later', async (t) => {
  const { queue, lanes, log, read } = setUp();
  read(1, 'flying');
  read(1, 'waiting');
  queue.now.push(answer(11, 0));
  read(2, 'retrying');
  lanes.end(ownerLost(bdf, 'gone'));
  read(3, 'later');
  const lost = 'ERR_OWNER_LOST';
  t.deepEqual(log.sort(), [
    `flying ${lost}`,
    `later ${lost}`,
    `retrying ${lost}`,
    `waiting ${lost}`,
  ]);
  await sleep(10);
  lanes.complete(queue.sent[0]!.id, null, answer(0, 0, [1]));
  t.is(log.length, 4, 'a completion after the end changes nothing');
  t.is(queue.sent.length, 2, 'nothing is sent after the end');
});

test('a command given up before it was sent is not sent', (t) => {
  const { queue, lanes, log, read } = setUp();
  read(1, 'a');
  const cancel = read(1, 'b');
  cancel();
  lanes.complete(queue.last.id, null, answer(0, 0, [1]));
  t.is(queue.sent.length, 1);
  t.deepEqual(log, ['a 1']);
});

test('a command given up in flight still keeps its member’s next command back', (t) => {
  const { queue, lanes, log, read } = setUp();
  read(1, 'a')();
  read(1, 'b');
  t.is(queue.sent.length, 1);
  lanes.complete(queue.last.id, null, answer(0, 0, [1]));
  lanes.complete(queue.last.id, null, answer(0, 0, [2]));
  t.deepEqual(log, ['b 2']);
});

test('a member may have 256 commands waiting, and no more', (t) => {
  const { log, read } = setUp();
  for (let i = 0; i < 257; i += 1) read(1, 'a');
  t.deepEqual(log, []);
  read(1, 'b');
  t.deepEqual(log, ['b ERR_ADMIN_BACKLOG']);
});

test('who watches sees every command that ended, with its result or error', (t) => {
  const queue = new FakeQueue();
  const seen: unknown[] = [];
  const lanes = new AdminLanes(
    bdf,
    queue,
    () => {},
    ({ command, result, error }) =>
      seen.push([command.opcode, result && [...result], error?.code ?? null]),
  );
  queue.now.push(answer(0, 0, [7]), answer(22, 3));
  lanes.run(legacyRead('common', 1, 0x12, 1), 1000, () => {});
  lanes.run(legacyWrite('common', 1, 0x12, Buffer.of(1)), 1000, () => {});
  t.deepEqual(seen, [
    [3, [7], null],
    [2, null, 'ERR_ADMIN_STATUS'],
  ]);
});

test('a completion nobody asked for is ignored', (t) => {
  const { lanes, log } = setUp();
  lanes.complete(12345, null, answer());
  t.deepEqual(log, []);
});
