// PFs that offer less, or fail: each VF is served as well as its PF allows, and the operator is told
// why.

import test, { type ExecutionContext } from 'ava';
import { scene } from '../vm/scene.js';
import { bootL1, type L1, type L1Options } from './lib/l1.js';
import { node } from './lib/program.js';

interface Announced {
  readonly verdict: string;
  readonly reason?: string;
  readonly notify: { readonly kind: string; readonly of?: string; readonly why?: string } | null;
}

/** Serves both VFs of such a PF and returns what was announced of the first. */
const served = (
  pfProperties: NonNullable<L1Options['pfProperties']>,
  judge: (t: ExecutionContext, announced: Announced, l1: L1) => void,
) =>
  scene(async (t, s) => {
    const l1 = await bootL1(s, { pfProperties, script: node('fallback') });
    await l1.done(360);
    t.log(l1.one('announced'));
    for (const driven of l1.all('driven')) t.log(driven);
    judge(t, JSON.parse(l1.one('announced')) as Announced, l1);
  });

function bothDriven(t: ExecutionContext, l1: L1): void {
  const driven = l1.all('driven');
  t.is(driven.length, 2);
  for (const line of driven) t.regex(line, /^10\.0\.2\.\d+ 20\/20$/);
}

test(
  'kicks go to the first notify address that the device lists, here the owner’s',
  served({ 'x-admin-notify': 3 }, (t, { verdict, notify }, l1) => {
    t.is(verdict, 'transitional');
    t.like(notify, { kind: 'region', of: 'owner' });
    bothDriven(t, l1);
  }),
);

test(
  'a PF that lists notify addresses in its own BAR only serves its VFs',
  served({ 'x-admin-notify': 1 }, (t, { verdict, notify }, l1) => {
    t.is(verdict, 'transitional');
    t.like(notify, { kind: 'region', of: 'owner' });
    bothDriven(t, l1);
  }),
);

test(
  'a PF that lists no notify address serves its VFs by commands',
  served({ 'x-admin-notify': 0 }, (t, { verdict, notify }, l1) => {
    t.is(verdict, 'transitional');
    t.like(notify, { kind: 'command', why: 'no-usable-entry' });
    bothDriven(t, l1);
  }),
);

test(
  'a PF without NOTIFY_INFO serves its VFs by commands',
  served({ 'x-admin-cmds': 0x3f }, (t, { verdict, notify }, l1) => {
    t.is(verdict, 'transitional');
    t.like(notify, { kind: 'command', why: 'not-offered' });
    bothDriven(t, l1);
  }),
);

test(
  'VFs of a PF without legacy commands are passed through, and the operator is told why',
  served({ 'x-admin-cmds': 3 }, (t, { verdict, reason }, l1) => {
    t.is(verdict, 'passthrough');
    t.is(reason, 'missing-opcodes');
    t.is(l1.all('driven').length, 0);
  }),
);

test(
  'VFs of a PF without an admin queue are passed through, and the operator is told why',
  served({ 'x-admin-vq': 'off' }, (t, { verdict, reason }, l1) => {
    t.is(verdict, 'passthrough');
    t.is(reason, 'owner-no-admin-vq');
    t.is(l1.all('driven').length, 0);
  }),
);

const [readCommonConfig, hour] = [1 << 3, 3_600_000];

test(
  'a PF that completes no command keeps no guest waiting, and recovers when it can',
  scene(async (t, s) => {
    const l1 = await bootL1(s, { vfs: 1, script: node('owner-in-trouble', 'stuck') });
    await l1.said('phase=well', 120);
    await l1.setPf('x-admin-delay-ms', hour);
    await l1.said('phase=trouble', 120);
    await l1.setPf('x-admin-delay-ms', 0);
    await l1.done(360);
    t.true(Number(l1.one('waited_ms')) < 4000, l1.one('waited_ms'));
    t.is(l1.one('pings_in_trouble'), '20');
    t.is(l1.one('features_again'), l1.one('features'));
    t.is(l1.one('pings_again'), '20');
  }),
);

test(
  'a command that fails is all ones to the guest, whose data path goes on',
  scene(async (t, s) => {
    const l1 = await bootL1(s, { vfs: 1, script: node('owner-in-trouble', 'failing') });
    await l1.said('phase=well', 120);
    await l1.setPf('x-admin-fail', readCommonConfig);
    await l1.said('phase=trouble', 120);
    await l1.setPf('x-admin-fail', 0);
    await l1.done(360);
    t.is(l1.one('pings_in_trouble'), '20');
    t.is(l1.one('owner_in_trouble'), 'ready');
    t.is(l1.one('features_again'), l1.one('features'));
    t.is(l1.one('pings_again'), '20');
  }),
);
