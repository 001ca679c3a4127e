// A legacy Linux guest on a VF of the lab: the kernel's way and ours, on the same device.

import test, { type ExecutionContext } from 'ava';
import { scene } from '../vm/scene.js';
import { bootL1, type L1 } from './lib/l1.js';
import { l2Command, l2Files } from './lib/l2.js';
import { serve } from './lib/program.js';

const kernel = 'trixie-backports';

function legacyGuestIsWell(t: ExecutionContext, l1: L1): void {
  const said = {
    one: (key: string) => l1.one(key, 'GUEST'),
    all: (key: string) => l1.all(key, 'GUEST'),
  };
  for (const line of l1.child.lines.all) if (line.startsWith('GUEST ')) t.log(line);
  t.is(said.one('vendor'), '0x1af4');
  t.is(said.one('device'), '0x1000');
  t.is(said.one('revision'), '0x00');
  t.is(said.one('subsystem_device'), '0x0001');
  t.is(said.one('driver'), 'virtio-pci');
  t.is(said.one('version_1'), '0', 'the driver is not a legacy one');
  t.regex(said.one('ip'), /^10\.0\.2\./);
  t.regex(said.one('ping'), /^50\/50 /);
  const [, sent, answer] = /^(\w{32}) answer=(\w{32})$/.exec(said.one('digest')) ?? [];
  t.truthy(sent, said.one('digest'));
  t.is(answer, sent, 'TCP changed the data');
  const irqs = said.all('irq');
  t.true(irqs.length > 1, irqs.join(' | '));
  for (const irq of irqs) t.regex(irq, /MSI-?X/);
  t.true(
    irqs.some((irq) => /^\d+: [1-9]\d* .*virtio0-(input|virtqueues)/.test(irq)),
    irqs.join(' | '),
  );
}

test(
  'a legacy guest runs on a VF through the kernel’s driver and vfio-pci',
  scene(async (t, s) => {
    const l1 = await bootL1(s, {
      kernel,
      vfs: 1,
      pf: 'virtio-pci',
      vf: 'virtio_vfio_pci',
      kvm: true,
      files: await l2Files(kernel),
      script: l2Command('"vfio-pci,host=$VF"'),
    });
    await l1.done(300);
    legacyGuestIsWell(t, l1);
  }),
);

test(
  'a legacy guest runs on a VF through retrovf serve and vfio-user-pci',
  scene(async (t, s) => {
    const device = { driver: 'vfio-user-pci', socket: { path: '/tmp/vf.sock', type: 'unix' } };
    const l1 = await bootL1(s, {
      kernel,
      vfs: 1,
      kvm: true,
      files: await l2Files(kernel),
      script: `
cd /tmp
${serve('"$VF" --socket /tmp/vf.sock')}
cat served
${l2Command(`'${JSON.stringify(device)}'`)}
status=$?
kill $server
wait $server || status=1
[ $status = 0 ] || cat serve.err
return $status
`,
    });
    await l1.done(300);
    legacyGuestIsWell(t, l1);
  }),
);
