// Setting up and tearing down a PF, on a folder with a writer that behaves as the kernel.
// On a real kernel: test/lab/l1/host.sh.

import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fc, testProp } from '@fast-check/ava';
import test, { type ExecutionContext } from 'ava';
import type { RetroVfError } from '../../lib/errors.js';
import { setUp, tearDown, type HostChangeOptions } from '../../lib/host/setup.js';
import { groupOf, KernelDouble, vfAddress, type Beginning } from '../helpers/kernel-double.js';
import { pf } from '../helpers/sysfs-tree.js';

const vfio = 'vfio-pci';

function kernel(t: ExecutionContext, beginning: Beginning = {}): KernelDouble {
  const double = new KernelDouble(beginning);
  t.teardown(() => double.remove());
  return double;
}

const setup = ({ machine }: KernelDouble, vfs = 2, options: HostChangeOptions = {}) =>
  setUp(pf, { machine, vfs, ...options });
const teardown = ({ machine }: KernelDouble, options: HostChangeOptions = {}) =>
  tearDown(pf, { machine, ...options });

test('a PF on virtio-pci comes to vfio-pci with its VFs, in steps that a shell can do too', async (t) => {
  const host = kernel(t, { module: false });
  const { changed, steps, functions } = await setup(host);
  t.true(changed);
  t.deepEqual(
    functions.map(({ bdf, role, driver }) => `${bdf} ${role} ${driver}`),
    [`${pf} pf ${vfio}`, `${vfAddress(0)} vf ${vfio}`, `${vfAddress(1)} vf ${vfio}`],
  );
  const sys = host.machine.sysfs.root;
  const device = `${sys}/bus/pci/devices/${pf}`;
  const probe = (n: number) =>
    `echo "$(basename "$(readlink ${device}/virtfn${n}))")" > ${sys}/bus/pci/drivers_probe`.replace(
      '))")"',
      ')")"',
    );
  t.deepEqual(
    steps.map(({ command, outcome }) => `${outcome}: ${command}`),
    [
      'done: modprobe vfio-pci',
      `done: echo Y > ${sys}/module/vfio_pci/parameters/enable_sriov`,
      `done: echo ${pf} > ${device}/driver/unbind`,
      `done: echo vfio-pci > ${device}/driver_override`,
      `done: echo ${pf} > ${sys}/bus/pci/drivers_probe`,
      `done: echo 0 > ${device}/sriov_drivers_autoprobe`,
      `done: echo 2 > ${device}/sriov_numvfs`,
      // vfio-pci reserves the VFs of its PF for itself.
      ...[0, 1].flatMap((n) => [
        `already: echo vfio-pci > ${device}/virtfn${n}/driver_override`,
        `already: ${probe(n)}`,
      ]),
      `done: echo 1 > ${device}/sriov_drivers_autoprobe`,
    ],
  );
});

test('run again it changes nothing, and asks the kernel for nothing', async (t) => {
  const host = kernel(t);
  await setup(host);
  const { length } = host.asked;
  const { changed, steps } = await setup(host);
  t.false(changed);
  t.deepEqual(steps, []);
  t.is(host.asked.length, length);
});

test('another number of VFs takes the VFs away and makes new ones, and leaves the PF bound', async (t) => {
  const host = kernel(t);
  await setup(host);
  const { length } = host.asked;
  const { functions } = await setup(host, 3);
  t.deepEqual(
    functions.map(({ driver }) => driver),
    [vfio, vfio, vfio, vfio],
  );
  t.false(host.asked.slice(length).some((each) => each.includes(`${pf}/driver/unbind`)));
});

test('a PF that has VFs under virtio-pci loses them before vfio-pci takes it', async (t) => {
  const host = kernel(t, { vfs: ['virtio-pci', null, 'virtio-pci'] });
  await setup(host, 1);
  t.deepEqual(host.drivers(), [vfio, vfio]);
  // Some drivers leave their VFs behind when they are unbound.
  const removal = host.asked.findIndex((each) => /^0 > .*sriov_numvfs$/.test(each));
  const unbinding = host.asked.findIndex((each) => each.includes(`${pf}/driver/unbind`));
  t.true(removal >= 0 && removal < unbinding);
});

test('a VF on another driver is bound again, the others are left alone', async (t) => {
  const host = kernel(t, { driver: vfio, override: vfio, vfs: [vfio, 'virtio-pci', null] });
  const { steps } = await setup(host, 3);
  t.deepEqual(host.drivers(), [vfio, vfio, vfio, vfio]);
  t.false(steps.some(({ does }) => does.includes('VF 1 ')));
});

test('a dry run names the steps and the interfaces, and asks the kernel for nothing', async (t) => {
  const host = kernel(t, { netdev: { name: 'eth7', up: true } });
  const before = host.state();
  const told: string[] = [];
  const { changed, steps, netdevs } = await setup(host, 2, {
    dryRun: true,
    onStep: ({ does }) => void told.push(does),
  });
  t.false(changed);
  t.true(steps.length > 5 && steps.every(({ outcome }) => outcome === 'planned'));
  t.deepEqual(
    told,
    steps.map(({ does }) => does),
  );
  t.deepEqual(netdevs, ['eth7']);
  t.deepEqual(host.asked, []);
  t.deepEqual(host.state(), before);
});

test('teardown gives back what setup took', async (t) => {
  const host = kernel(t, { enableSriov: true });
  const before = host.state();
  await setup(host);
  const { changed, functions } = await teardown(host);
  t.true(changed);
  t.deepEqual(
    functions.map(({ driver }) => driver),
    ['virtio-pci'],
  );
  t.deepEqual(host.state(), before);
  const again = await teardown(host);
  t.false(again.changed);
  t.deepEqual(again.steps, []);
});

test('teardown removes VFs though vfio-pci may make none any more, and leaves it so', async (t) => {
  const host = kernel(t, { driver: vfio, override: vfio, vfs: [vfio], enableSriov: false });
  await teardown(host);
  t.deepEqual(host.state(), new KernelDouble({ enableSriov: false }).state());
});

test('teardown leaves a PF alone that another driver has', async (t) => {
  const host = kernel(t, { vfs: ['virtio-pci', vfio] });
  const { changed } = await teardown(host);
  t.false(changed);
  t.deepEqual(host.drivers(), ['virtio-pci', 'virtio-pci', vfio]);
});

test('a PF whose usual driver is not loaded is left without one, and the outcome says so', async (t) => {
  const host = kernel(t, { driver: vfio, override: vfio, usual: null });
  const { steps } = await teardown(host);
  t.is(steps.at(-1)?.outcome, 'no-driver');
  t.deepEqual(host.drivers(), [null]);
  t.false((await teardown(host)).changed);
});

const anyDriver = fc.constantFrom('virtio-pci', vfio, null);
const beginnings: fc.Arbitrary<Beginning> = fc.record({
  driver: anyDriver,
  override: fc.constantFrom(vfio, null),
  vfs: fc.array(anyDriver, { maxLength: 3 }),
  autoprobe: fc.boolean(),
  enableSriov: fc.boolean(),
});
// An unbound PF has no VFs: both drivers remove them.
const possible = ({ driver, vfs = [] }: Beginning) => driver !== null || vfs.length === 0;

testProp(
  'from any state setup leads to what was asked for, and finds nothing to do then; so does teardown',
  [beginnings.filter(possible), fc.integer({ min: 1, max: 8 })],
  async (t, beginning, vfs) => {
    const host = new KernelDouble(beginning);
    try {
      await setup(host, vfs);
      t.deepEqual(
        host.drivers(),
        Array.from({ length: vfs + 1 }, () => vfio),
      );
      t.is((host.state() as { autoprobe: string }).autoprobe, beginning.autoprobe ? '1' : '0');
      t.deepEqual((await setup(host, vfs, { dryRun: true })).steps, []);
      await teardown(host);
      t.is(host.drivers().length, 1);
      t.deepEqual((await teardown(host, { dryRun: true })).steps, []);
    } finally {
      host.remove();
    }
  },
  { numRuns: 60 },
);

testProp(
  'whichever request the kernel refuses, setup leaves the host as it was and says which step it was',
  [fc.boolean(), fc.boolean(), fc.nat({ max: 9 })],
  async (t, module, autoprobe, nth) => {
    const host = new KernelDouble({ module, autoprobe });
    try {
      const before = host.state();
      host.faults.set(nth, 'EIO');
      const error = await setup(host).then(
        () => null,
        (thrown: RetroVfError) => thrown,
      );
      // Setup may have needed fewer requests.
      if (error === null) return t.true(nth >= host.asked.length);
      t.is(error.code, 'ERR_HOST_STEP');
      t.deepEqual(error.detail['left'], []);
      t.is((error.detail['undone'] as string[]).length, nth);
      return t.deepEqual(host.state(), before);
    } finally {
      host.remove();
    }
  },
  { numRuns: 30 },
);

test('what cannot be taken back is listed', async (t) => {
  const host = kernel(t);
  // Requests: allow, unbind, reserve, probe; then take back reserve, bind, allow.
  host.faults.set(3, 'EIO');
  host.faults.set(5, 'EIO');
  const error = await t.throwsAsync<RetroVfError>(setup(host), { code: 'ERR_HOST_STEP' });
  t.deepEqual(error?.detail['left'], [
    `could not bind ${pf} to virtio-pci (bus/pci/drivers/virtio-pci/bind refused the write (EIO))`,
  ]);
  t.regex(error?.message ?? '', /Not all was taken back: could not bind/);
});

test('a step that is not answered ends in time, names who has the function open, and is taken back', async (t) => {
  const host = kernel(t);
  const before = host.state();
  host.faults.set(1, 'silence');
  // One that comes while setup is at work: it refuses to begin if there is one before.
  host.onRequest = () => {
    if (host.asked.length === 1) host.addHolder(4711, 'qemu', `vfio/${groupOf(pf)}`);
  };
  const error = await t.throwsAsync<RetroVfError>(setup(host, 2, { stepTimeoutMs: 50 }), {
    code: 'ERR_HOST_TIMEOUT',
  });
  t.deepEqual(error?.detail['holders'], [{ pid: 4711, name: 'qemu' }]);
  t.regex(error?.message ?? '', /unbind .* in 50 ms; qemu \(pid 4711\) holds it open/);
  t.deepEqual(host.state(), before);
});

test('a step that has its effect after its time is taken back as well', async (t) => {
  // Requests: allow, unbind, reserve, probe, autoprobe, VFs.
  for (const nth of [0, 1, 2, 3, 4, 5]) {
    const host = kernel(t);
    const before = host.state();
    host.faults.set(nth, 'late');
    await t.throwsAsync(setup(host, 2, { stepTimeoutMs: 50 }), { code: 'ERR_HOST_TIMEOUT' });
    t.deepEqual(host.state(), before);
  }
});

test('an abort in the middle takes back what was done, then rejects with its reason', async (t) => {
  for (let nth = 0; nth < 6; nth += 1) {
    const host = kernel(t);
    const before = host.state();
    const controller = new AbortController();
    const reason = new Error('enough');
    host.onRequest = () => {
      if (host.asked.length === nth) controller.abort(reason);
    };
    await t.throwsAsync(setup(host, 2, { signal: controller.signal }), { is: reason });
    t.deepEqual(host.state(), before);
  }
});

test('an abort after which something cannot be taken back says what that is', async (t) => {
  const host = kernel(t);
  const controller = new AbortController();
  const reason = new Error('enough');
  // Requests: allow, unbind, reserve; then take back reserve, bind.
  host.onRequest = () => {
    if (host.asked.length === 2) controller.abort(reason);
  };
  host.faults.set(4, 'EIO');
  const error = await t.throwsAsync<RetroVfError>(setup(host, 2, { signal: controller.signal }), {
    code: 'ERR_HOST_STEP',
  });
  t.is(error?.cause, reason);
  t.regex(error?.message ?? '', /enough\. Not all was taken back: could not bind [^;]*$/);
});

interface Refusal {
  readonly beginning?: Beginning;
  readonly prepare?: (host: KernelDouble) => void;
  readonly vfs?: number;
  readonly code: string;
  readonly says: RegExp;
}

const refused = test.macro({
  title: (_, what: string) => `${what} is refused before anything is changed`,
  async exec(t, _what: string, { beginning = {}, prepare, vfs, code, says }: Refusal) {
    const host = kernel(t, beginning);
    prepare?.(host);
    const error = await t.throwsAsync<RetroVfError>(setup(host, vfs), { code });
    t.regex(error?.message ?? '', says);
    t.is(error?.bdf ?? pf, pf);
    t.deepEqual(host.asked, []);
  },
});
test(refused, 'a PF whose interface is up', {
  beginning: { netdev: { name: 'eth7', up: true } },
  code: 'ERR_NETDEV_IN_USE',
  says: /eth7, which is up/,
});
const route = (host: KernelDouble, file: string, text: string) => {
  mkdirSync(join(host.root, 'proc/net'));
  writeFileSync(join(host.root, 'proc/net', file), text);
};
test(refused, 'a PF whose interface has the default route', {
  beginning: { netdev: { name: 'eth7', up: false } },
  prepare: (host) =>
    route(
      host,
      'route',
      'Iface\teth7\neth7\t00000000\t0100A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n',
    ),
  code: 'ERR_NETDEV_IN_USE',
  says: /eth7, which carries a default route/,
});
test(refused, 'a PF whose interface has the default route of IPv6', {
  beginning: { netdev: { name: 'eth7', up: false } },
  prepare: (host) => {
    const zero = '0'.repeat(32);
    route(host, 'ipv6_route', `${zero} 00 ${zero} 00 ${zero} 0 1 0 00000003     eth7\n`);
  },
  code: 'ERR_NETDEV_IN_USE',
  says: /eth7, which carries a default route/,
});
const vda1 = `../../devices/pci0000:5d/0000:5d:00.0/${pf}/virtio0/block/vda/vda1`;
const mounted = (host: KernelDouble, path: string, text: string, links: Record<string, string>) => {
  mkdirSync(join(host.root, 'proc/self'));
  writeFileSync(join(host.root, 'proc', path), text);
  for (const [link, target] of Object.entries(links)) {
    const at = join(host.machine.sysfs.root, link);
    mkdirSync(dirname(at), { recursive: true });
    symlinkSync(target, at);
  }
};
const diskInUse = (says: RegExp, prepare: Refusal['prepare'] & object): Refusal => ({
  prepare,
  code: 'ERR_DISK_IN_USE',
  says,
});
test(
  refused,
  'a PF with a mounted disk',
  diskInUse(/mounted at \/srv$/, (host) =>
    mounted(host, 'self/mountinfo', '36 1 253:1 / /srv rw shared:1 - ext4 /dev/root rw\n', {
      'dev/block/253:1': vda1,
    }),
  ),
);
test(
  refused,
  'a PF with a disk that is mounted under another number, as with btrfs',
  diskInUse(/mounted at \/srv$/, (host) =>
    mounted(host, 'self/mountinfo', '36 1 0:31 / /srv rw - btrfs /dev/vda1 rw\n', {
      'class/block/vda1': vda1,
    }),
  ),
);
test(
  refused,
  'a PF with a disk under a mounted logical volume',
  diskInUse(/mounted at \/$/, (host) =>
    mounted(host, 'self/mountinfo', '22 1 254:0 / / rw - ext4 /dev/mapper/root rw\n', {
      'devices/virtual/block/dm-0/slaves/vda1': vda1,
      'dev/block/254:0': '../../devices/virtual/block/dm-0',
    }),
  ),
);
test(
  refused,
  'a PF with swap',
  diskInUse(/swap$/, (host) =>
    mounted(host, 'swaps', 'Filename\tType\n/dev/vda1   partition\t1\t0\t-2\n', {
      'class/block/vda1': vda1,
    }),
  ),
);
test('a disk of another function does not matter', async (t) => {
  const host = kernel(t);
  mounted(host, 'self/mountinfo', '36 1 253:1 / /srv rw - ext4 /dev/vda1 rw\n', {
    'dev/block/253:1': vda1.replace(pf, '0000:5e:00.7'),
  });
  t.true((await setup(host)).changed);
});
test(refused, 'a PF without IOMMU', {
  beginning: { iommu: false },
  code: 'ERR_IOMMU_ABSENT',
  says: /no IOMMU group/,
});
test(refused, 'a PF that shares its group with a function on a driver of the host', {
  prepare: (host) => host.addNeighbour('0000:5e:00.7', 'igb'),
  code: 'ERR_IOMMU_GROUP_NOT_VIABLE',
  says: /also holds 0000:5e:00.7 \(igb\)/,
});
test(refused, 'more VFs than the PF has', {
  vfs: 9,
  code: 'ERR_TOO_MANY_VFS',
  says: /has 8 VFs at most, not 9/,
});
test(refused, 'no VFs', { vfs: 0, code: 'ERR_ARGUMENT', says: /vfs must be a number from 1/ });
test(refused, 'taking away a VF that a process has open', {
  beginning: { driver: vfio, override: vfio, vfs: [vfio, vfio] },
  prepare: (host) => host.addHolder(4711, 'qemu', `vfio/${groupOf(vfAddress(1))}`),
  vfs: 3,
  code: 'ERR_DEVICE_BUSY',
  says: /open in qemu \(pid 4711\)/,
});

test('an open VF does not keep a stray one from being bound', async (t) => {
  const host = kernel(t, { driver: vfio, override: vfio, vfs: [vfio, null] });
  host.addHolder(4711, 'qemu', `vfio/${groupOf(vfAddress(0))}`);
  await setup(host);
  t.deepEqual(host.drivers(), [vfio, vfio, vfio]);
});

test('an interface in use goes down if that is allowed, and one that is not goes down anyway', async (t) => {
  const up = kernel(t, { netdev: { name: 'eth7', up: true } });
  t.deepEqual((await setup(up, 2, { yes: true })).netdevs, ['eth7']);
  const down = kernel(t, { netdev: { name: 'eth7', up: false } });
  t.deepEqual((await setup(down)).netdevs, []);
});

test('a neighbour without a driver, or on a driver that shares, does no harm', async (t) => {
  const host = kernel(t);
  host.addNeighbour('0000:5e:00.6', null);
  host.addNeighbour('0000:5e:00.5', vfio);
  t.true((await setup(host)).changed);
});

test('a VF is not taken for a PF, and the hint names its PF', async (t) => {
  const { machine } = kernel(t, { vfs: [null] });
  const error = await t.throwsAsync<RetroVfError>(setUp(vfAddress(0), { machine, vfs: 1 }), {
    code: 'ERR_NOT_A_PF',
  });
  t.regex(error?.hint ?? '', new RegExp(pf));
});

const explained = test.macro({
  title: (_, errno: string, what: string) => `${errno} ${what} is explained`,
  async exec(t, errno: string, _what: string, nth: number, says: RegExp) {
    const host = kernel(t);
    host.faults.set(nth, errno);
    const error = await t.throwsAsync<RetroVfError>(setup(host), { code: 'ERR_HOST_STEP' });
    t.regex(`${error?.message} ${error?.hint}`, says);
    t.like(error?.cause, { code: errno });
  },
});
// Requests: allow, unbind, reserve, probe, autoprobe, VFs.
test(explained, 'EACCES', 'from the first write', 0, /not permitted.*as root/);
test(explained, 'EINVAL', 'from the driver', 3, /IOMMU group/);
test(explained, 'ENOENT', 'from sriov_numvfs', 5, /enable_sriov/);
test(explained, 'ENOMEM', 'from sriov_numvfs', 5, /pci=realloc/);

test('a module that cannot be loaded is explained', async (t) => {
  const host = kernel(t, { module: false });
  host.faults.set(0, 'FATAL: Module vfio-pci not found');
  const error = await t.throwsAsync<RetroVfError>(setup(host), { code: 'ERR_HOST_STEP' });
  t.like(error?.cause, { message: 'modprobe vfio-pci: FATAL: Module vfio-pci not found' });
  t.regex(error?.hint ?? '', /modules of the running kernel/);
});
