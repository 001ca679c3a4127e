// The choice among LEGACY_NOTIFY_INFO entries: each driver rule of "Legacy Interfaces: Notification
// Information", and what we do where it leaves a choice.

import { fc, testProp } from '@fast-check/ava';
import test from 'ava';
import { chooseNotify, type NotifyPlan } from '../lib/notify.js';

const sizes = {
  member: (bar: number) => ({ 2: 0x4000, 4: 0x1000 })[bar] ?? 0,
  owner: (bar: number) => ({ 2: 0x8000 })[bar] ?? 0,
};

type Entry = readonly [flags: number, bar: number, offset: number | bigint];

function choose(...entries: Entry[]) {
  return chooseNotify(
    entries.map(([flags, bar, offset]) => ({ flags, bar, offset: BigInt(offset) })),
    sizes,
  );
}

const member = (bar: number, offset: number): NotifyPlan => ({
  kind: 'region',
  of: 'member',
  bar,
  offset,
});
const command: NotifyPlan = { kind: 'command', why: 'no-usable-entry' };

test('a member entry is a word in a BAR of the member', (t) => {
  t.deepEqual(choose([2, 4, 0x10]), { plan: member(4, 0x10), ignored: [] });
});

test('an owner entry is a word in a BAR of the owner, which the kernel ignores', (t) => {
  const { plan } = choose([1, 2, 0x7000], [2, 4, 0]);
  t.deepEqual(plan, { kind: 'region', of: 'owner', bar: 2, offset: 0x7000 });
});

test('the first usable entry is taken: the order is the device’s preference', (t) => {
  t.deepEqual(choose([2, 4, 2], [2, 2, 0], [1, 2, 0]).plan, member(4, 2));
});

test('legacy interface, driver: entries after the first with flags 0 are ignored', (t) => {
  t.deepEqual(choose([0, 0, 0], [2, 4, 0]), { plan: command, ignored: [] });
});

const bad = test.macro({
  title: (_, rule: string) =>
    `legacy interface, driver: an entry ${rule} is ignored and the next one is taken`,
  exec(t, _rule: string, entry: Entry, why: RegExp) {
    const { plan, ignored } = choose(entry, [2, 4, 0x20]);
    t.deepEqual(plan, member(4, 0x20));
    t.is(ignored.length, 1);
    t.regex(ignored[0]?.why ?? '', why);
  },
});
test(bad, 'with flags other than 1 or 2', [3, 4, 0], /flags 3/);
test(bad, 'with flags of the reserved bits', [0x82, 4, 0], /flags 130/);
test(bad, 'for BAR 0', [2, 0, 0], /not 1 to 5/);
test(bad, 'for a BAR above 5', [2, 6, 0], /not 1 to 5/);
test(bad, 'for a BAR that the member does not have', [2, 1, 0], /does not exist/);
test(
  bad,
  'for a BAR that the owner does not have, though the member has',
  [1, 4, 0],
  /does not exist/,
);
test(bad, 'that is not 2-byte aligned', [2, 4, 0x11], /odd/);
test(bad, 'that ends past its BAR', [2, 4, 0x1000], /outside/);
test(bad, 'whose offset wraps', [2, 4, 0xffff_ffff_ffff_fffen], /outside/);

test('the last word of a BAR is usable', (t) => {
  t.deepEqual(choose([2, 4, 0xffe]).plan, member(4, 0xffe));
});

test('a fourth entry is not read: it can only end the list', (t) => {
  const { plan, ignored } = choose([3, 4, 0], [3, 4, 0], [3, 4, 0], [2, 4, 0]);
  t.deepEqual(plan, command);
  t.is(ignored.length, 3);
});

test('without a usable entry, notifications are admin commands', (t) => {
  t.deepEqual(choose().plan, command);
});

const anyEntry = fc.record({
  flags: fc.nat(255),
  bar: fc.nat(255),
  offset: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
});

testProp(
  'no entries lead to an address that is odd or outside its BAR',
  [fc.array(anyEntry, { maxLength: 4 })],
  (t, entries) => {
    const { plan } = chooseNotify(entries, sizes);
    if (plan.kind === 'command') {
      t.pass();
    } else {
      const size = plan.of === 'member' ? sizes.member(plan.bar) : sizes.owner(plan.bar);
      t.true(plan.offset % 2 === 0 && plan.offset + 2 <= size);
    }
  },
);
