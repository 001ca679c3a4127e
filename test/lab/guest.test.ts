// A legacy Linux guest on a VF of the lab: the kernel's way and ours, on the same device.

import test from 'ava';
import { scene } from '../vm/scene.js';
import { bootL1 } from './lib/l1.js';
import { assigned, l2Command, l2Files, legacyGuestIsWell, nested, served } from './lib/l2.js';
import { serve } from './lib/program.js';

const kernel = 'trixie-backports';

test(
  'a legacy guest runs on a VF through the kernel’s driver and vfio-pci',
  nested(
    scene(async (t, s) => {
      const l1 = await bootL1(s, {
        kernel,
        vfs: 1,
        pf: 'virtio-pci',
        vf: 'virtio_vfio_pci',
        kvm: true,
        files: await l2Files(kernel),
        script: l2Command([assigned('$VF')]),
      });
      await l1.done(500);
      legacyGuestIsWell(t, l1);
    }),
  ),
);

test(
  'a legacy guest runs on a VF through retrovf serve and vfio-user-pci',
  nested(
    scene(async (t, s) => {
      const l1 = await bootL1(s, {
        kernel,
        vfs: 1,
        kvm: true,
        files: await l2Files(kernel),
        script: `
cd /tmp
${serve('"$VF" --socket /tmp/vf.sock')}
cat served
${l2Command([served('/tmp/vf.sock')])}
status=$?
kill $server
wait $server || status=1
[ $status = 0 ] || cat serve.err
return $status
`,
      });
      await l1.done(500);
      legacyGuestIsWell(t, l1);
    }),
  ),
);
