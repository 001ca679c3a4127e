// The VFIO backend and `retrovf serve` on a PF and two VFs: l1/vfio.ts has the tests.

import test from 'ava';
import { scene } from '../vm/scene.js';
import { bootL1 } from './lib/l1.js';
import { allPassed, node } from './lib/program.js';

for (const [kernel, release] of [
  ['trixie-backports', /^7\./],
  ['bookworm-backports', /^6\.12\./],
  ['bookworm', /^6\.1\./],
] as const) {
  test(
    `functions are opened, served, reset, lost and given back over VFIO (${kernel})`,
    scene(async (t, s) => {
      const l1 = await bootL1(s, { kernel, script: node('vfio') });
      await l1.said('LAB done=', 420);
      t.regex(l1.one('kernel', 'LAB'), release);
      allPassed(t, l1, 12);
      // Ten thousand kicks went from the guest's eventfd to the device in the kernel.
      t.regex(l1.one('kicks'), /^10000 .* wakeups=0$/);
      await l1.done(60);
    }),
  );
}
