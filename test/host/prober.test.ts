// The verdicts that need nothing opened, over made-up hosts. With owners opened: test/native.

import { mkdir, symlink } from 'node:fs/promises';
import { join } from 'node:path';
import test from 'ava';
import { probe, type PassthroughReason } from '../../lib/host/prober.js';
import { VfioHost } from '../../lib/host/vfio.js';
import { parseBdf } from '../../lib/host/bdf.js';
import {
  hostOf,
  nic,
  pf,
  sysfsTree,
  vf,
  virtioFunction,
  type FunctionFiles,
} from '../helpers/sysfs-tree.js';

type Tree = Record<string, FunctionFiles>;

async function probed(tree: Tree, bdf: string = vf(1)) {
  const { sysfs, remove } = await sysfsTree(tree);
  const report = await probe(hostOf(sysfs), { bdf }).finally(remove);
  const [subject] = report.functions;
  if (subject === undefined) throw new Error('no report');
  return { subject, findings: report.findings };
}

test('a sound VF is unverified until its owner is opened, and the hint says that this resets it', async (t) => {
  const { subject } = await probed(nic());
  t.like(subject, {
    role: 'vf',
    type: 'net',
    owner: parseBdf(pf),
    memberId: 1,
    bar0Absent: true,
    driver: 'vfio-pci',
    iommuGroup: '11',
  });
  t.is(subject.verdict.kind, 'unverified');
  t.regex(subject.verdict.kind === 'unverified' ? subject.verdict.hint : '', /resets/);
});

test('the second VF is member 2', async (t) => {
  t.is((await probed(nic(), vf(2))).subject.memberId, 2);
});

const change = (
  bdf: string,
  files: Record<string, string>,
  links?: Record<string, string>,
): Tree => {
  const tree = nic();
  const before = tree[bdf] ?? {};
  tree[bdf] = { files: { ...before.files, ...files }, links: links ?? before.links ?? {} };
  return tree;
};
const without = (bdf: string): Tree => {
  const tree = nic();
  delete tree[bdf];
  return tree;
};
const features = (...bits: number[]) =>
  Array.from({ length: 64 }, (_, bit) => (bits.includes(bit) ? '1' : '0')).join('');

const passthrough = test.macro({
  title: (_, what: string, reason: PassthroughReason) => `${what} is passthrough: ${reason}`,
  async exec(t, _what: string, reason: PassthroughReason, tree: Tree, bdf?: string) {
    const { verdict } = (await probed(tree, bdf)).subject;
    t.is(verdict.kind, 'passthrough');
    if (verdict.kind !== 'passthrough') return;
    t.is(verdict.reason, reason);
    t.true(verdict.detail.length > 0 && verdict.hint.length > 0);
  },
});
test(passthrough, 'a VF whose vendor cannot be read', 'unreadable', change(vf(1), { vendor: '?' }));
test(passthrough, 'a VF whose BARs cannot be read', 'unreadable', change(vf(1), { resource: '' }));
test(passthrough, 'a VF of another vendor', 'not-virtio', change(vf(1), { vendor: '0x8086' }));
test(passthrough, 'a transitional function', 'not-virtio', change(vf(1), { device: '0x1000' }));
test(passthrough, 'a virtio gpu', 'unsupported-type', change(vf(1), { device: '0x1050' }));
test(passthrough, 'a PF', 'not-a-vf', nic(), pf);
test(passthrough, 'a VF with a BAR0', 'bar0-present', nic({ vfBars: [0x1000, 0x2000, 0x4000] }));
test(passthrough, 'a VF whose PF is not on this host', 'no-owner', without(pf));
test(passthrough, 'a VF whose PF is not virtio', 'no-owner', change(pf, { vendor: '0x15b3' }));
test(
  passthrough,
  'a VF that its PF does not list',
  'not-member',
  change(pf, {}, { driver: '../vfio-pci' }),
);
test(
  passthrough,
  'a VF whose PF is bound to virtio-pci',
  'owner-driver',
  nic({ driver: 'virtio-pci' }),
);
test(
  passthrough,
  'a VF whose PF is bound to nothing',
  'owner-driver',
  change(pf, {}, { virtfn0: `../${vf(1)}` }),
);
test(
  passthrough,
  'a VF whose PF negotiated no ADMIN_VQ with virtio-pci',
  'owner-no-admin-vq',
  change(pf, { 'virtio0/features': features(32, 37) }),
);
test(
  passthrough,
  'a VF whose PF has ADMIN_VQ but belongs to virtio-pci',
  'owner-driver',
  (() => {
    const tree = nic({ driver: 'virtio-pci' });
    tree[pf] = {
      ...tree[pf],
      files: { ...tree[pf]?.files, 'virtio0/features': features(32, 37, 41) },
    };
    return tree;
  })(),
);

test('a VF with a BAR0 is reported with it', async (t) => {
  const { subject } = await probed(nic({ vfBars: [0x1000, 0x2000] }));
  t.false(subject.bar0Absent);
});

test('a probe of everything lists the virtio functions and leaves others out', async (t) => {
  const { sysfs, remove } = await sysfsTree({
    ...nic(),
    '0000:00:1f.0': { files: { ...virtioFunction(), vendor: '0x8086' } },
  });
  t.teardown(remove);
  const { functions, findings } = await probe(hostOf(sysfs));
  t.deepEqual(
    functions.map(({ bdf, role }) => `${bdf} ${role}`),
    [`${pf} pf`, `${vf(1)} vf`, `${vf(2)} vf`],
  );
  t.deepEqual(functions[0]?.sriov, { total: 8, enabled: 2 });
  t.deepEqual(findings, []);
});

test('one damaged function does not keep the others from being reported', async (t) => {
  const { sysfs, root, remove } = await sysfsTree(nic());
  t.teardown(remove);
  const devices = join(root, 'bus/pci/devices');
  await symlink('0000:00:00.0', join(devices, '0000:00:00.0')); // a loop
  await mkdir(join(devices, '0000:00:01.0')); // empty
  const { functions, findings } = await probe(hostOf(sysfs));
  t.is(functions.length, 3);
  t.is(findings.length, 2);
});

test('a function asked for by address is reported though it is not virtio', async (t) => {
  const { subject } = await probed(
    { '0000:00:1f.0': { files: { ...virtioFunction(), vendor: '0x8086' } } },
    '00:1f.0',
  );
  t.is(subject.role, 'function');
});

test('a function asked for by address that does not exist is an error', async (t) => {
  await t.throwsAsync(probed({}), { code: 'ERR_NO_SUCH_DEVICE' });
});

test('an owner that cannot be opened is a verdict, not an error', async (t) => {
  const { sysfs, remove } = await sysfsTree(nic());
  t.teardown(remove);
  const { functions } = await probe(new VfioHost({ sysfs }), { open: true });
  const verdicts = functions
    .slice(1)
    .map(({ verdict }) => (verdict.kind === 'passthrough' ? verdict.reason : verdict.kind));
  t.false(verdicts.includes('unverified'));
  t.deepEqual(new Set(verdicts).size, 1);
  t.deepEqual(verdicts[0], 'owner-no-access');
});

test('an aborted probe throws the signal’s reason', async (t) => {
  const reason = new Error('enough');
  await t.throwsAsync(probe(new VfioHost(), { signal: AbortSignal.abort(reason) }), { is: reason });
});
