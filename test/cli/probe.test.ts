// `retrovf probe` on hosts that are folders, and on the SoftNIC.

import { readdir } from 'node:fs/promises';
import test from 'ava';
import { folder, start } from './retrovf.js';
import { writeSysfs, type FakeFunction } from './sysfs-tree.js';

const pf: FakeFunction = {
  bdf: '0000:5e:00.0',
  device: 0x1041,
  driver: 'vfio-pci',
  bars: [0, 0, 0, 0, 0x4000],
  virtfns: ['0000:5e:00.1', '0000:5e:00.2', '0000:5e:00.3'],
};
const vf = { device: 0x1041, driver: 'vfio-pci', bars: [0, 0, 0x1000], physfn: pf.bdf };
const host: readonly FakeFunction[] = [
  pf,
  { ...vf, bdf: '0000:5e:00.1' },
  { ...vf, bdf: '0000:5e:00.2', bars: [0x1000] },
  { ...vf, bdf: '0000:5e:00.3', device: 0x1050 },
];

interface Printed {
  readonly functions: readonly { bdf: string; role: string; verdict: Record<string, unknown> }[];
  readonly findings: readonly { path: string; problem: string }[];
}

test.serial('--json gives a verdict, with its reason and a hint, for each function', async (t) => {
  const root = await folder(t);
  await writeSysfs(root, host);
  const { code, stdout, stderr } = await start(['probe', '--sysfs', root, '--json']).ended;
  t.is(code, 0);
  t.is(stderr, '');
  const { functions, findings } = JSON.parse(stdout) as Printed;
  t.deepEqual(findings, []);
  t.deepEqual(
    functions.map(({ bdf, role, verdict }) => [bdf, role, verdict['kind'], verdict['reason']]),
    [
      ['0000:5e:00.0', 'pf', 'passthrough', 'not-a-vf'],
      ['0000:5e:00.1', 'vf', 'unverified', undefined],
      ['0000:5e:00.2', 'vf', 'passthrough', 'bar0-present'],
      ['0000:5e:00.3', 'vf', 'passthrough', 'unsupported-type'],
    ],
  );
  for (const { verdict } of functions) t.is(typeof verdict['hint'], 'string');
});

test.serial('the table has a line for each function, and each reason once', async (t) => {
  const root = await folder(t);
  await writeSysfs(root, host.with(3, { ...vf, bdf: '0000:5e:00.3', bars: [0x1000] }));
  const { code, stdout } = await start(['probe', '--sysfs', root]).ended;
  t.is(code, 0);
  t.deepEqual(stdout.split('\n'), [
    'FUNCTION      ROLE                  TYPE  IDS        DRIVER    GROUP  VERDICT',
    '0000:5e:00.0  PF, 3 of 8 VFs        net   1af4:1041  vfio-pci  7      owner',
    '0000:5e:00.1  VF 1 of 0000:5e:00.0  net   1af4:1041  vfio-pci  7      transitional, if its owner agrees',
    '0000:5e:00.2  VF 2 of 0000:5e:00.0  net   1af4:1041  vfio-pci  7      passthrough: bar0-present',
    '0000:5e:00.3  VF 3 of 0000:5e:00.0  net   1af4:1041  vfio-pci  7      passthrough: bar0-present',
    '',
    '0000:5e:00.1:',
    '  0000:5e:00.0 was not asked. --open does that; it resets 0000:5e:00.0 and all of its VFs.',
    '0000:5e:00.2 and 1 other:',
    '  its BAR0 is in use, where the legacy registers go. A PF that offers the legacy commands leaves',
    '  VF BAR0 empty; check its firmware.',
    '',
  ]);
});

test.serial('a function without domain is found, and is the only one reported', async (t) => {
  const root = await folder(t);
  await writeSysfs(root, host);
  const { stdout } = await start(['probe', '5E:00.2', '--sysfs', root, '--json']).ended;
  const { functions } = JSON.parse(stdout) as Printed;
  t.deepEqual(
    functions.map(({ bdf }) => bdf),
    ['0000:5e:00.2'],
  );
});

test.serial('a function that the host does not have is exit code 3', async (t) => {
  const root = await folder(t);
  await writeSysfs(root, host);
  const { code, stdout, stderr } = await start(['probe', '5e:00.7', '--sysfs', root, '--json'])
    .ended;
  t.is(code, 3);
  t.is(stdout, '');
  const failure = JSON.parse(stderr) as Record<string, unknown>;
  t.is(failure['code'], 'ERR_NO_SUCH_DEVICE');
  t.is(failure['bdf'], '0000:5e:00.7');
});

test.serial('text from sysfs can not steer the terminal', async (t) => {
  const root = await folder(t);
  await writeSysfs(root, [{ ...vf, bdf: '0000:5e:00.1', driver: 'x\u001b[2J\u0007' }]);
  const { code, stdout, stderr } = await start(['probe', '--sysfs', root]).ended;
  t.is(code, 0);
  t.notRegex(stdout + stderr, /[^\P{Cc}\n]/u);
});

test.serial('a host without virtio functions says so and prints nothing', async (t) => {
  const root = await folder(t);
  await writeSysfs(root, []);
  const { code, stdout, stderr } = await start(['probe', '--sysfs', root]).ended;
  t.is(code, 0);
  t.is(stdout, '');
  t.regex(stderr, /no virtio functions/);
});

test.serial(
  'opening an owner of the host needs a backend that is not there yet, and says so',
  async (t) => {
    const root = await folder(t);
    await writeSysfs(root, host);
    const { code, stdout } = await start(['probe', '5e:00.1', '--open', '--sysfs', root, '--json'])
      .ended;
    t.is(code, 0);
    const { functions } = JSON.parse(stdout) as Printed;
    t.is(functions[0]?.verdict['reason'], 'owner-no-access');
  },
);

test.serial('every VF of the SoftNIC proves transitional when its owner is asked', async (t) => {
  const { code, stdout, stderr } = await start([
    'probe',
    '--softnic',
    '--vfs',
    '3',
    '--open',
    '--json',
  ]).ended;
  t.is(code, 0, stderr);
  const { functions } = JSON.parse(stdout) as Printed;
  const members = functions.filter(({ role }) => role === 'vf');
  t.is(members.length, 3);
  for (const { verdict } of members) {
    t.is(verdict['kind'], 'transitional-capable');
    t.is(verdict['opcodes'], '0x7f');
  }
});

test.serial('two VFs of the SoftNIC can be named', async (t) => {
  const all = JSON.parse(
    (await start(['probe', '--softnic', '--vfs', '2', '--json']).ended).stdout,
  ) as Printed;
  const bdfs = all.functions.filter(({ role }) => role === 'vf').map(({ bdf }) => bdf);
  const { code, stdout } = await start([
    'probe',
    ...bdfs,
    '--softnic',
    '--vfs',
    '2',
    '--open',
    '--json',
  ]).ended;
  t.is(code, 0);
  const { functions } = JSON.parse(stdout) as Printed;
  t.deepEqual(
    functions.map(({ bdf, verdict }) => [bdf, verdict['kind']]),
    [
      [bdfs[0], 'transitional-capable'],
      [bdfs[1], 'transitional-capable'],
    ],
  );
});

test.serial('nothing is left in the folder for temporary files', async (t) => {
  const tmp = await folder(t);
  const { code } = await start(['probe', '--softnic', '--json'], { TMPDIR: tmp }).ended;
  t.is(code, 0);
  // tsx keeps its own cache there.
  t.deepEqual(
    (await readdir(tmp)).filter((name) => name.startsWith('retrovf')),
    [],
  );
});
