// Examinations of hosts that are folders. Of a real one: test/lab/l1/host.sh.

import { mkdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import type { CheckId, CheckState } from '../../lib/host/doctor/check.js';
import { examineHost, type ExamineOptions } from '../../lib/host/doctor/examine.js';
import type { Machine } from '../../lib/host/machine.js';
import { setUp } from '../../lib/host/setup.js';
import { groupOf, KernelDouble, vfAddress, type Beginning } from '../helpers/kernel-double.js';
import { pf } from '../helpers/sysfs-tree.js';

const vfio = 'vfio-pci';
const ready: Beginning = { driver: vfio, override: vfio, vfs: [vfio], enableSriov: true };
const runtime = { platform: 'linux', arch: 'x64', node: '22.13.0' };

/** Files of the folder that is the host, by path. */
type Files = Readonly<Record<string, string>>;

const soundFiles: Files = {
  'proc/interrupts': ' 24:  1  0  IR-PCI-MSI-0000:5e:00.0  0-edge  virtio0-config\n',
  'proc/self/status': 'Name:\tnode\nCapEff:\t0000000000000000\n',
  'proc/self/limits':
    'Max locked memory         unlimited            unlimited            bytes     \n',
  'proc/meminfo':
    'HugePages_Total:       0\nHugePages_Free:        0\nHugepagesize:       2048 kB\n',
  'proc/sys/kernel/osrelease': '6.12.0-test\n',
  'modules/6.12.0-test/modules.dep': 'kernel/drivers/vfio/pci/vfio-pci.ko.xz: kernel/x.ko.xz\n',
  'dev/vfio/vfio': '',
};

interface World {
  readonly beginning?: Beginning;
  readonly files?: Files;
  readonly without?: readonly string[];
  readonly qemu?: { readonly version: string; readonly devices?: string } | null;
  readonly options?: ExamineOptions;
  readonly prepare?: (host: KernelDouble) => void;
}

const goodQemu = { version: '10.2.2', devices: 'name "vfio-user-pci", bus PCI' };

function world(
  t: ExecutionContext,
  { beginning = ready, files, without, qemu = goodQemu, prepare }: World,
) {
  const host = new KernelDouble(beginning);
  t.teardown(() => host.remove());
  const groups = [pf, ...(beginning.vfs ?? []).map((_, i) => vfAddress(i))].map(groupOf);
  const nodes = Object.fromEntries(groups.map((group) => [`dev/vfio/${group}`, '']));
  for (const [path, text] of Object.entries({ ...soundFiles, ...nodes, ...files })) {
    mkdirSync(dirname(join(host.root, path)), { recursive: true });
    writeFileSync(join(host.root, path), text);
  }
  for (const path of without ?? []) rmSync(join(host.root, path), { recursive: true });
  prepare?.(host);
  const run: Machine['run'] = async (_file, args) => {
    if (qemu === null) return { code: null, stdout: '', stderr: 'ENOENT' };
    const asksVersion = args[0] === '--version';
    const stdout = asksVersion ? `QEMU emulator version ${qemu.version}\n` : (qemu.devices ?? '');
    return { code: 0, stdout, stderr: '' };
  };
  return { host, machine: { ...host.machine, run } };
}

test('a host that has all of it passes, and nothing needs mending', async (t) => {
  const { machine } = world(t, {});
  const { ok, checks } = await examineHost({ machine, runtime });
  t.true(ok);
  t.deepEqual(
    checks
      .filter(({ state }) => state !== 'ok')
      .map(({ id, bdf, state }) => `${id} ${bdf} ${state}`),
    // Only opening the PF would tell.
    [`pf-admin-queue ${pf} unknown`],
  );
  t.deepEqual(
    new Set(checks.map(({ bdf }) => bdf as string | null)),
    new Set([null, pf, vfAddress(0)]),
  );
});

test('an examination changes nothing', async (t) => {
  const { host, machine } = world(t, { beginning: { vfs: [null] } });
  const before = host.state();
  await examineHost({ machine, runtime });
  t.deepEqual(host.state(), before);
  t.deepEqual(host.asked, []);
});

interface Expected {
  readonly id: CheckId;
  readonly state: CheckState;
  readonly detail?: RegExp;
  readonly mend?: RegExp;
}

const found = test.macro({
  title: (_, what: string, _world: World, { id, state }: Expected) => `${what}: ${id} ${state}`,
  async exec(t, _what: string, given: World, { id, state, detail, mend }: Expected) {
    const { machine } = world(t, given);
    const { ok, checks } = await examineHost({ machine, runtime, ...given.options });
    const one = checks.find((each) => each.id === id);
    t.is(one?.state, state, one?.detail);
    if (detail !== undefined) t.regex(one?.detail ?? '', detail);
    if (mend === undefined) t.deepEqual(one?.mend, []);
    else t.regex(one?.mend.join('\n') ?? '', mend);
    if (state === 'fail') t.false(ok);
  },
});

const on = (change: Partial<typeof runtime>): World => ({
  options: { runtime: { ...runtime, ...change } },
});
test(found, 'another system', on({ platform: 'darwin' }), { id: 'platform', state: 'fail' });
test(found, 'another processor', on({ arch: 'arm64' }), {
  id: 'platform',
  state: 'fail',
  detail: /arm64/,
});
test(found, 'Node.js 20.19', on({ node: '20.19.0' }), { id: 'node', state: 'ok' });
test(found, 'Node.js 26', on({ node: '26.1.0' }), { id: 'node', state: 'ok' });
test(found, 'Node.js 22.12', on({ node: '22.12.9' }), { id: 'node', state: 'fail', mend: /lts/ });

test(
  found,
  'no IOMMU on an Intel machine',
  { beginning: { iommu: false }, files: { 'proc/cpuinfo': 'vendor_id\t: GenuineIntel\n' } },
  { id: 'iommu', state: 'fail', mend: /intel_iommu=on iommu=pt[\s\S]*update-grub\nreboot$/ },
);
test(
  found,
  'no IOMMU on an AMD machine',
  { beginning: { iommu: false }, files: { 'proc/cpuinfo': 'vendor_id\t: AuthenticAMD\n' } },
  { id: 'iommu', state: 'fail', mend: /&iommu=pt / },
);
const plainInterrupts = {
  'proc/interrupts': ' 24:  1  0  PCI-MSI-0000:5e:00.0  0-edge  virtio0\n',
};
const unsafe = 'sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts';
test(
  found,
  'no remapped interrupt',
  { files: plainInterrupts },
  {
    id: 'interrupt-remapping',
    state: 'fail',
    mend: /echo Y > .*allow_unsafe_interrupts$/,
  },
);
test(
  found,
  'no remapped interrupt, allowed',
  { files: { ...plainInterrupts, [unsafe]: 'Y\n' } },
  { id: 'interrupt-remapping', state: 'warn' },
);
test(
  found,
  'a hidden list of interrupts',
  { without: ['proc/interrupts'] },
  {
    id: 'interrupt-remapping',
    state: 'unknown',
  },
);

const unloaded: Beginning = { module: false };
test(
  found,
  'vfio-pci not loaded',
  { beginning: unloaded },
  {
    id: 'vfio-pci',
    state: 'warn',
    mend: /^modprobe vfio-pci$/,
  },
);
test(
  found,
  'a kernel without vfio-pci',
  {
    beginning: unloaded,
    files: { 'modules/6.12.0-test/modules.dep': 'kernel/vfio-pci-core.ko:\n' },
  },
  { id: 'vfio-pci', state: 'fail', mend: /linux-modules-extra-6\.12\.0-test/ },
);
test(
  found,
  'a release of the kernel that is none',
  { beginning: unloaded, files: { 'proc/sys/kernel/osrelease': '../../etc\n' } },
  { id: 'vfio-pci', state: 'unknown', mend: /^modprobe vfio-pci$/ },
);
test(
  found,
  'vfio-pci that may not make VFs',
  { beginning: {} },
  {
    id: 'vfio-sriov',
    state: 'warn',
    mend: /^echo Y > .*enable_sriov\n/,
  },
);
test(
  found,
  'vfio-pci that cannot make VFs',
  {
    without: ['sys/module/vfio_pci/parameters/enable_sriov'],
    files: { 'sys/module/vfio_pci/x': '' },
  },
  { id: 'vfio-sriov', state: 'fail' },
);
test(
  found,
  'no container node',
  { without: ['dev/vfio/vfio'] },
  {
    id: 'vfio-container',
    state: 'fail',
    mend: /modprobe vfio_iommu_type1/,
  },
);
test(found, 'no iommufd', {}, { id: 'iommufd', state: 'ok', detail: /no iommufd/ });

const limited = (bytes: number, capabilities = '0') => ({
  'proc/self/limits': `Max locked memory         ${bytes}              ${bytes}              bytes\n`,
  'proc/self/status': `CapEff:\t${capabilities.padStart(16, '0')}\n`,
});
const gib = 2 ** 30;
test(
  found,
  'a limit below the guests',
  { files: limited(gib - 1) },
  {
    id: 'memlock',
    state: 'fail',
    detail: /1023 MiB; guests of 1024 MiB.*LimitMEMLOCK=infinity/,
    mend: /ulimit -l unlimited/,
  },
);
test(found, 'a limit of just the guests', { files: limited(gib) }, { id: 'memlock', state: 'ok' });
test(
  found,
  'a limit below larger guests',
  { files: limited(gib), options: { guestMemoryMiB: 2048 } },
  { id: 'memlock', state: 'fail', mend: /ulimit/ },
);
test(
  found,
  'a limit that does not count',
  { files: limited(0, '4000') },
  { id: 'memlock', state: 'ok' },
);
test(
  found,
  'an unknown limit',
  { without: ['proc/self/limits'] },
  { id: 'memlock', state: 'unknown' },
);
const hugepages = (total: number, free: number) => ({
  'proc/meminfo': `HugePages_Total: ${total}\nHugePages_Free: ${free}\nHugepagesize: 2048 kB\n`,
});
test(
  found,
  'too few free huge pages',
  { files: hugepages(600, 100) },
  {
    id: 'hugepages',
    state: 'warn',
    // 500 in use and 512 for 1024 MiB.
    mend: /^sysctl vm\.nr_hugepages=1012$/,
  },
);
test(
  found,
  'enough free huge pages',
  { files: hugepages(600, 512) },
  { id: 'hugepages', state: 'ok' },
);

test(found, 'no QEMU', { qemu: null }, { id: 'qemu', state: 'warn', mend: /apt-get install/ });
test(
  found,
  'QEMU 10.0',
  { qemu: { version: '10.0.9' } },
  { id: 'qemu', state: 'warn', detail: /10\.0\.9/ },
);
test(
  found,
  'QEMU without vfio-user',
  { qemu: { version: '11.0.0', devices: '"vfio-pci"' } },
  {
    id: 'qemu',
    state: 'warn',
    detail: /built without/,
  },
);

test(
  found,
  'a PF on virtio-pci',
  { beginning: {} },
  {
    id: 'pf-driver',
    state: 'fail',
    mend: new RegExp(`^retrovf setup ${pf} --vfs 8$`),
  },
);
test(
  found,
  'a PF with an interface in use',
  { beginning: { netdev: { name: 'eth7', up: true } } },
  { id: 'pf-driver', state: 'fail', detail: /takes down eth7/, mend: /--vfs 8 --yes$/ },
);
test(
  found,
  'a PF without VFs',
  { beginning: { ...ready, vfs: [] } },
  {
    id: 'pf-vfs',
    state: 'fail',
    mend: /retrovf setup/,
  },
);
const features = (...bits: number[]) =>
  Array.from({ length: 64 }, (_, bit) => (bits.includes(bit) ? '1' : '0')).join('');
const featureFile = `sys/bus/pci/devices/${pf}/virtio0/features`;
test(
  found,
  'a PF with admin queue',
  { beginning: {}, files: { [featureFile]: features(32, 41) } },
  {
    id: 'pf-admin-queue',
    state: 'ok',
  },
);
test(
  found,
  'a PF without admin queue',
  { beginning: {}, files: { [featureFile]: features(32) } },
  {
    id: 'pf-admin-queue',
    state: 'warn',
  },
);
test(
  found,
  'a VF on virtio-pci',
  { beginning: { ...ready, vfs: ['virtio-pci'] } },
  {
    id: 'vf-driver',
    state: 'fail',
    mend: new RegExp(`^retrovf setup ${pf} --vfs 1$`),
  },
);
test(
  found,
  'a VF of a PF on virtio-pci',
  { beginning: { vfs: [vfio] } },
  {
    id: 'vf-legacy',
    state: 'fail',
    detail: /bound to virtio-pci/,
    mend: new RegExp(`^retrovf setup ${pf} --vfs 1$`),
  },
);
test(
  found,
  'a neighbour on a driver of the host',
  { prepare: (host) => host.addNeighbour('0000:5e:00.7', 'igb') },
  {
    id: 'iommu-group',
    state: 'fail',
    detail: /0000:5e:00\.7 \(igb\)/,
    mend: /00\.7\/driver\/unbind$/,
  },
);
test(
  found,
  'a function in no group',
  { beginning: { iommu: false } },
  { id: 'iommu-group', state: 'fail' },
);
test(
  found,
  'a node that is not passed in',
  { without: [`dev/vfio/${groupOf(pf)}`] },
  {
    id: 'vfio-node',
    state: 'fail',
    detail: /does not exist/,
  },
);
test(
  found,
  'a node that is open',
  { prepare: (host) => host.addHolder(4711, 'qemu', `vfio/${groupOf(pf)}`) },
  { id: 'vfio-node', state: 'ok', detail: /open in qemu \(pid 4711\)/ },
);

test('a function that was named is examined though it is not virtio, and no other', async (t) => {
  const { host, machine } = world(t, {});
  const other = '0000:5e:00.7';
  host.addNeighbour(other, null);
  writeFileSync(join(machine.sysfs.root, 'bus/pci/devices', other, 'vendor'), '0x8086\n');
  const { checks } = await examineHost({ machine, runtime, bdfs: [other] });
  t.deepEqual(
    checks.filter(({ bdf }) => bdf !== null).map(({ id, bdf, state }) => `${id} ${bdf} ${state}`),
    [`virtio ${other} fail`],
  );
});

test('a function that is not there is an error', async (t) => {
  const { machine } = world(t, {});
  const examination = examineHost({ machine, runtime, bdfs: ['0000:77:00.0'] });
  await t.throwsAsync(examination, { code: 'ERR_NO_SUCH_DEVICE' });
});

test('a host without virtio functions fails for that', async (t) => {
  const { machine } = world(t, { without: ['sys/bus/pci/devices'] });
  const { ok, checks } = await examineHost({ machine, runtime });
  t.false(ok);
  t.is(checks.at(-1)?.id, 'functions');
});

test('a damaged tree is examined to the end', async (t) => {
  const { host, machine } = world(t, {
    files: { 'proc/self/limits': '\0\xff', 'proc/meminfo': 'x' },
  });
  const folder = join(machine.sysfs.root, 'bus/pci/devices', pf);
  rmSync(join(folder, 'driver'));
  symlinkSync('driver', join(folder, 'driver'));
  writeFileSync(join(folder, 'sriov_totalvfs'), 'many');
  writeFileSync(join(machine.sysfs.root, 'bus/pci/devices/evil\x1b'), '');
  const { ok, checks } = await examineHost({ machine, runtime });
  t.false(ok);
  t.true(checks.length > 10);
  t.deepEqual(host.asked, []);
});

test('what doctor finds missing on a plain host, setup provides', async (t) => {
  const { host, machine } = world(t, { beginning: {} });
  const fails = async () =>
    (await examineHost({ machine, runtime })).checks
      .filter(({ state }) => state === 'fail')
      .map(({ id }) => id);
  t.deepEqual(await fails(), ['pf-driver', 'pf-vfs']);
  await setUp(pf, { machine: host.machine, vfs: 1 });
  writeFileSync(join(machine.dev, 'vfio', String(groupOf(vfAddress(0)))), '');
  t.deepEqual(await fails(), []);
});
