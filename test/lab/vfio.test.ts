// The VFIO backend and `retrovf serve` on a PF and two VFs: l1/vfio.ts has the tests. The programs are
// told the way in; one that a kernel lacks is a failure, not a skip.

import test from 'ava';
import { scene } from '../vm/scene.js';
import { bootL1 } from './lib/l1.js';
import type { Kernel } from './lib/lab.js';
import { allPassed, node } from './lib/program.js';

const backend = test.macro({
  title: (_, kernel: Kernel, way: string) =>
    `functions are opened, served, reset, lost and given back over VFIO (${kernel}, by ${way})`,
  exec: (t, kernel: Kernel, way: 'group' | 'cdev', release: RegExp) =>
    scene(async (inner, s) => {
      const script = `VIA=${way} ${node('vfio')}`;
      const l1 = await bootL1(s, { kernel, iommufd: way === 'cdev', script });
      await l1.said('LAB done=', 420);
      inner.regex(l1.one('kernel', 'LAB'), release);
      allPassed(inner, l1, 13);
      // Ten thousand kicks went from the guest's eventfds to the device within the kernel.
      inner.regex(l1.one('kicks'), /^10000 .* wakeups=0$/);
      await l1.done(360);
    })(t),
});
test(backend, 'trixie-backports', 'group', /^7\./);
test(backend, 'trixie-backports', 'cdev', /^7\./);
test(backend, 'bookworm-backports', 'group', /^6\.12\./);
test(backend, 'bookworm', 'group', /^6\.1\./);
