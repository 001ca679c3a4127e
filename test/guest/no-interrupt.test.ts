// A guest without MSI. A virtual function has no interrupt pin, so nothing is
// left for a driver that needs interrupts: it has to see that, and give up.

import test from 'ava';
import { isTransitionalNet } from './lib/checks.js';
import { standin } from './lib/lab.js';
import { bootLinux } from './lib/linux.js';
import { startNic } from './lib/nic.js';
import { scene } from '../vm/scene.js';

// QEMU's own device has a pin, so there is nothing to see with it.
const testVf = standin ? test.skip : test;

for (const [what, msix] of [
  ['the guest wants no MSI', undefined],
  ['the function has no MSI-X', 0],
] as const) {
  testVf(
    `Linux gives the function up without hanging (${what})`,
    scene(async (t, s) => {
      const [port] = await startNic(s, msix === undefined ? {} : { msix });
      const guest = bootLinux(s, port!, {
        kernelArgs: msix === undefined ? ['pci=nomsi'] : [],
        steps: ['identity', 'interrupts', 'dmesg', 'unload'],
      });
      await guest.done(120);
      isTransitionalNet(t, guest);
      t.is(guest.one('pin'), '0');
      t.is(guest.one('netdev'), '', 'there is an interface that cannot work');
      t.deepEqual(guest.all('irq'), []);
      t.is(guest.one('unloaded'), 'yes');
    }),
  );
}
