import { execFileSync } from 'node:child_process';
import { rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import test from 'ava';
import type { RetroVfError } from '../../lib/errors.js';
import { parseBdf, type Bdf } from '../../lib/host/bdf.js';
import { Sysfs } from '../../lib/host/sysfs.js';
import {
  nic,
  pf,
  sysfsTree,
  vf,
  virtioFunction,
  type FunctionFiles,
} from '../helpers/sysfs-tree.js';

const owner = parseBdf(pf);
const first = parseBdf(vf(1));

test('a VF is read with its ids, driver, group, BARs and PF', async (t) => {
  const { sysfs, remove } = await sysfsTree(nic());
  t.teardown(remove);
  const info = await sysfs.read(first);
  t.like(info, {
    vendor: 0x1af4,
    device: 0x1041,
    subsystemVendor: 0x1af4,
    subsystem: 0x1100,
    revision: 1,
    classCode: 0x020000,
    driver: 'vfio-pci',
    iommuGroup: '11',
    physfn: owner,
    sriov: null,
    virtioFeatures: null,
  });
  t.deepEqual(
    info.bars?.map(({ size }) => size),
    [0, 0x2000, 0x4000, 0, 0, 0],
  );
  t.deepEqual(info.findings, []);
});

test('a PF is read with its VFs, virtfn0 being VF 1', async (t) => {
  const { sysfs, remove } = await sysfsTree(nic());
  t.teardown(remove);
  const info = await sysfs.read(owner);
  t.deepEqual(
    [...info.virtfns],
    [
      [1, first],
      [2, parseBdf(vf(2))],
    ],
  );
  t.deepEqual(info.sriov, { total: 8, enabled: 2 });
});

test('eleven VFs are in the order of their numbers, not of their names', async (t) => {
  const links = Object.fromEntries(
    Array.from({ length: 11 }, (_, i) => [`virtfn${i}`, `../0000:5e:0${i >> 3}.${i & 7}`]).slice(1),
  );
  const { sysfs, remove } = await sysfsTree({ '0000:60:00.0': { files: virtioFunction(), links } });
  t.teardown(remove);
  const info = await sysfs.read(parseBdf('0000:60:00.0'));
  t.deepEqual([...info.virtfns.keys()], [2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
});

test('one VF of many is found by few links, and in a damaged tree by all', async (t) => {
  const address = (i: number) => parseBdf(`0000:5e:0${i >> 3}.${i & 7}`);
  const links = Array.from({ length: 12 }, (_, i) => [`virtfn${i}`, `../${address(i)}`]);
  const sound = Object.fromEntries(links);
  const { sysfs, remove } = await sysfsTree({
    '0000:60:00.0': { files: virtioFunction(), links: { ...sound, virtfn11: '../rubbish' } },
    '0000:61:00.0': {
      files: virtioFunction(),
      links: { ...sound, virtfn2: `../${address(9)}`, virtfn9: `../${address(2)}` },
    },
  });
  t.teardown(remove);
  const find = (pf: string, member: Bdf) => sysfs.read(parseBdf(pf), { member });
  const first = await find('0000:60:00.0', address(0));
  t.deepEqual([[...first.virtfns], first.findings], [[[1, address(0)]], []]);
  const swapped = await find('0000:61:00.0', address(2));
  t.is(swapped.virtfns.get(10), address(2));
  const absent = await find('0000:60:00.0', address(12));
  t.deepEqual([absent.virtfns.size, absent.findings.length], [11, 1]);
});

test('the features of a PF on virtio-pci are read, bit 0 first', async (t) => {
  const bits = Array.from({ length: 64 }, (_, bit) =>
    [32, 37, 41].includes(bit) ? '1' : '0',
  ).join('');
  const { sysfs, remove } = await sysfsTree({
    [pf]: { files: { ...virtioFunction(), 'virtio3/features': `${bits}\n` } },
  });
  t.teardown(remove);
  t.is((await sysfs.read(owner)).virtioFeatures, (1n << 32n) | (1n << 37n) | (1n << 41n));
});

test('I/O BARs are told from memory BARs', async (t) => {
  const line = '0x000000000000c000 0x000000000000c01f 0x0000000000040101';
  const resource = `${line}\n${'0x0 0x0 0x0\n'.repeat(12)}`;
  const { sysfs, remove } = await sysfsTree({ [pf]: { files: { ...virtioFunction(), resource } } });
  t.teardown(remove);
  t.deepEqual((await sysfs.read(owner)).bars?.[0], { index: 0, size: 32, kind: 'io' });
});

test('an address that is not there is ERR_NO_SUCH_DEVICE', async (t) => {
  const { sysfs, remove } = await sysfsTree({});
  t.teardown(remove);
  const error = await t.throwsAsync<RetroVfError>(sysfs.read(first));
  t.is(error?.code, 'ERR_NO_SUCH_DEVICE');
  t.is(error?.bdf, first);
});

test('a host without PCI has no functions, and says where it looked', async (t) => {
  const { addresses, findings } = await new Sysfs('/nonexistent').addresses();
  t.deepEqual(addresses, []);
  t.deepEqual(findings, [
    { path: '/nonexistent/bus/pci/devices', problem: 'cannot be read (ENOENT)' },
  ]);
});

interface Damage {
  readonly fn: FunctionFiles;
  readonly file: string;
  readonly problem: RegExp;
}

const damaged = test.macro({
  title: (_, what: string) => `${what} is a finding, and the rest is still read`,
  async exec(t, _what: string, { fn, file, problem }: Damage) {
    const { sysfs, remove } = await sysfsTree({
      [pf]: { files: { ...virtioFunction(), ...fn.files }, links: fn.links ?? {} },
    });
    t.teardown(remove);
    const info = await sysfs.read(owner);
    t.is(info.vendor ?? info.device, file === 'vendor' ? 0x1041 : 0x1af4);
    t.is(info.findings.length, 1);
    t.true(info.findings[0]?.path.endsWith(file));
    t.regex(info.findings[0]?.problem ?? '', problem);
  },
});
const files = (content: Record<string, string>): FunctionFiles => ({ files: content });
const links = (targets: Record<string, string>): FunctionFiles => ({ links: targets });
test(damaged, 'an empty vendor file', {
  fn: files({ vendor: '' }),
  file: 'vendor',
  problem: /not a number/,
});
test(damaged, 'a vendor of five digits', {
  fn: files({ vendor: '0x11af4' }),
  file: 'vendor',
  problem: /not a number/,
});
test(damaged, 'garbage in the class', {
  fn: files({ class: '\x1b[31m\0\0\xff' }),
  file: 'class',
  problem: /^[\x20-\x7e]*$/,
});
test(damaged, 'a resource of one line', {
  fn: files({ resource: '0x0 0x0 0x0\n' }),
  file: 'resource',
  problem: /six BARs/,
});
test(damaged, 'a BAR that ends before it starts', {
  fn: files({ resource: '0x2 0x1 0x0\n'.repeat(6) }),
  file: 'resource',
  problem: /six BARs/,
});
test(damaged, 'a number of VFs that is none', {
  fn: files({ sriov_totalvfs: '8', sriov_numvfs: 'many' }),
  file: 'sriov_numvfs',
  problem: /"many"/,
});
test(damaged, 'a file longer than 4096 bytes', {
  fn: files({ class: '0'.repeat(1 << 20) }),
  file: 'class',
  problem: /longer than 4096/,
});
test(damaged, 'a physfn that is a file', {
  fn: files({ physfn: '0000:00:00.0' }),
  file: 'physfn',
  problem: /EINVAL/,
});
test(damaged, 'a physfn that points nowhere sensible', {
  fn: links({ physfn: '../../../../etc' }),
  file: 'physfn',
  problem: /not to another PCI function/,
});
test(damaged, 'a physfn that points to itself', {
  fn: links({ physfn: `../${pf}` }),
  file: 'physfn',
  problem: /not to another/,
});
test(damaged, 'a virtfn that points nowhere sensible', {
  fn: links({ virtfn0: '../x' }),
  file: 'virtfn0',
  problem: /"x"/,
});
test(damaged, 'feature bits of other digits', {
  fn: files({ 'virtio0/features': '0120' }),
  file: 'features',
  problem: /not feature bits/,
});

test('a link that loops is a finding', async (t) => {
  const { sysfs, root, remove } = await sysfsTree({ [pf]: { files: virtioFunction() } });
  t.teardown(remove);
  const folder = join(root, 'bus/pci/devices', pf);
  await rm(join(folder, 'vendor'));
  await symlink('vendor', join(folder, 'vendor'));
  const { vendor, device, findings } = await sysfs.read(owner);
  t.is(vendor, null);
  t.is(device, 0x1041);
  t.deepEqual(
    findings.map(({ problem }) => problem),
    ['cannot be read (ELOOP)'],
  );
});

test('a FIFO in place of a file does not hold the reader', async (t) => {
  const { sysfs, root, remove } = await sysfsTree({ [pf]: { files: virtioFunction() } });
  t.teardown(remove);
  const path = join(root, 'bus/pci/devices', pf, 'class');
  await rm(path);
  execFileSync('mkfifo', [path]);
  const { classCode, findings } = await sysfs.read(owner);
  t.is(classCode, null);
  t.deepEqual(
    findings.map(({ problem }) => problem),
    ['is not a regular file'],
  );
});

test('names that are no addresses are findings without control characters', async (t) => {
  const { sysfs, root, remove } = await sysfsTree({ [pf]: { files: virtioFunction() } });
  t.teardown(remove);
  await writeFile(join(root, 'bus/pci/devices', 'evil\x1b[2J'), '');
  const { addresses, findings } = await sysfs.addresses();
  t.deepEqual(addresses, [owner]);
  t.is(findings.length, 1);
  t.regex(findings[0]?.path ?? '', /^[\x20-\x7e]*$/);
});

test('configuration bytes are read up to 4096, and more is an error', async (t) => {
  const { sysfs, remove } = await sysfsTree({
    [pf]: { files: { config: Buffer.alloc(4096, 7) } },
    [vf(1)]: { files: { config: Buffer.alloc(4097) } },
  });
  t.teardown(remove);
  t.deepEqual(await sysfs.config(owner), Buffer.alloc(4096, 7));
  await t.throwsAsync(sysfs.config(first), { code: 'ERR_SYSFS' });
});
