// `retrovf doctor`, `setup` and `teardown` on hosts that are folders. On a real one: test/lab/l1/host.sh.

import { rm, symlink } from 'node:fs/promises';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { KernelDouble, type Beginning } from '../helpers/kernel-double.js';
import { pf } from '../helpers/sysfs-tree.js';
import { folder, retrovf } from './retrovf.js';

const vfio = 'vfio-pci';
const ready: Beginning = { driver: vfio, override: vfio, vfs: [vfio], enableSriov: true };

function sysfs(t: ExecutionContext, beginning: Beginning): string {
  const host = new KernelDouble(beginning);
  t.teardown(() => host.remove());
  return host.machine.sysfs.root;
}

interface Printed {
  readonly ok: boolean;
  readonly checks: readonly { id: string; bdf: string | null; state: string; mend: string[] }[];
}

test.serial('doctor exits with 4 when a check fails, and prints all checks', async (t) => {
  const root = sysfs(t, {});
  const { code, stdout, stderr } = await retrovf(['doctor', '--sysfs', root, '--json']);
  t.is(code, 4);
  t.is(stderr, '');
  const { ok, checks } = JSON.parse(stdout) as Printed;
  t.false(ok);
  const failed = checks.filter(({ state }) => state === 'fail').map(({ id }) => id);
  t.true(failed.includes('pf-driver') && failed.includes('pf-vfs'));
});

test.serial('doctor shows each command that mends on a line that can be copied', async (t) => {
  const root = sysfs(t, {});
  const { stdout } = await retrovf(['doctor', '5e:00.0', '--sysfs', root]);
  t.regex(stdout, /^ {2}fail +pf-driver +It is bound to virtio-pci\.$/m);
  t.regex(stdout, new RegExp(`^ +\\$ retrovf setup ${pf} --vfs 8$`, 'm'));
  t.regex(stdout, /^\d+ checks failed/m);
  for (const line of stdout.split('\n')) t.true(/ \$ /.test(line) || line.length <= 100, line);
});

test.serial('doctor counts the memory of the guests that are wanted', async (t) => {
  const root = sysfs(t, ready);
  const { stdout } = await retrovf(['doctor', '--sysfs', root, '--guest-memory', '7', '--json']);
  const { checks } = JSON.parse(stdout) as Printed;
  t.true(checks.some(({ id }) => id === 'memlock'));
  t.true(
    checks
      .filter(({ bdf }) => bdf === pf)
      .every(({ id, state }) => id === 'vfio-node' || state !== 'fail'),
  );
});

test.serial('doctor of a function that is not there exits with 3', async (t) => {
  const { code, stderr } = await retrovf(['doctor', '77:00.0', '--sysfs', sysfs(t, {})]);
  t.is(code, 3);
  t.regex(stderr, /0000:77:00\.0/);
});

test.serial('text from sysfs can not steer the terminal', async (t) => {
  const root = sysfs(t, ready);
  const link = join(root, 'bus/pci/devices', pf, 'driver');
  await rm(link);
  await symlink('../x\u001b[2J\u0007', link);
  for (const args of [['doctor'], ['setup', pf, '--vfs', '1', '--dry-run']]) {
    const { stdout, stderr } = await retrovf([...args, '--sysfs', root]);
    t.true(stdout.length > 0);
    t.notRegex(stdout + stderr, /[^\P{Cc}\n]/u);
  }
});

test.serial(
  'setup --dry-run prints a script on stdout and notes the interface it takes down',
  async (t) => {
    const root = sysfs(t, { netdev: { name: 'eth7', up: true } });
    const { code, stdout, stderr } = await retrovf([
      'setup',
      pf,
      '--vfs',
      '2',
      '--dry-run',
      '--sysfs',
      root,
    ]);
    t.is(code, 0);
    t.regex(stderr, /takes down eth7: it needs --yes/);
    const lines = stdout.trimEnd().split('\n');
    t.true(
      lines.every((line) => /^(echo .* > |modprobe )/.test(line)),
      stdout,
    );
    t.true(
      lines.some((line) =>
        line.startsWith(`echo 2 > ${root}/bus/pci/devices/${pf}/sriov_numvfs # `),
      ),
    );
  },
);

test.serial('setup of what is set up says that there is nothing to do', async (t) => {
  const root = sysfs(t, ready);
  const { code, stdout, stderr } = await retrovf([
    'setup',
    pf,
    '--vfs',
    '1',
    '--dry-run',
    '--sysfs',
    root,
  ]);
  t.deepEqual({ code, stdout }, { code: 0, stdout: '' });
  t.regex(stderr, /nothing to do/);
});

test.serial('teardown --dry-run --json gives the steps as data', async (t) => {
  const root = sysfs(t, ready);
  const { code, stdout, stderr } = await retrovf([
    'teardown',
    pf,
    '--dry-run',
    '--json',
    '--sysfs',
    root,
  ]);
  t.is(code, 0);
  t.is(stderr, '');
  const printed = JSON.parse(stdout) as { changed: boolean; steps: { outcome: string }[] };
  t.false(printed.changed);
  t.deepEqual(new Set(printed.steps.map(({ outcome }) => outcome)), new Set(['planned']));
});

const failing = test.macro(
  async (
    t: ExecutionContext,
    args: string[],
    expected: { code: string; exit: number },
    beginning: Beginning = {},
  ) => {
    const root = sysfs(t, beginning);
    const { code, stdout, stderr } = await retrovf([
      ...args,
      '--dry-run',
      '--json',
      '--sysfs',
      root,
    ]);
    t.is(stdout, '');
    t.is((JSON.parse(stderr) as { code: string }).code, expected.code);
    t.is(code, expected.exit);
  },
);
const usage = { code: 'ERR_USAGE', exit: 2 };
test.serial('setup without --vfs is a usage error', failing, ['setup', pf], usage);
test.serial('setup without a PF is a usage error', failing, ['setup', '--vfs', '2'], usage);
test.serial('teardown of two PFs is a usage error', failing, ['teardown', pf, '5e:00.1'], usage);
test.serial('more VFs than there are exits with 2', failing, ['setup', pf, '--vfs', '9'], {
  code: 'ERR_TOO_MANY_VFS',
  exit: 2,
});
test.serial(
  'a PF without IOMMU exits with 4',
  failing,
  ['setup', pf, '--vfs', '2'],
  {
    code: 'ERR_IOMMU_ABSENT',
    exit: 4,
  },
  { iommu: false },
);
test.serial(
  'a VF in place of a PF exits with 4',
  failing,
  ['setup', '5e:01.0', '--vfs', '2'],
  {
    code: 'ERR_NOT_A_PF',
    exit: 4,
  },
  ready,
);
test.serial('a PF that is not there exits with 3', failing, ['teardown', '77:00.0'], {
  code: 'ERR_NO_SUCH_DEVICE',
  exit: 3,
});

test.serial('a made-up sysfs is for dry runs', async (t) => {
  const { code, stderr } = await retrovf(['teardown', pf, '--sysfs', await folder(t)]);
  t.is(code, 2);
  t.regex(stderr, /--sysfs needs --dry-run/);
});
