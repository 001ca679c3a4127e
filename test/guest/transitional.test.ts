// The same guest image with virtio's capabilities in sight: Linux prefers the
// modern interface, on a function that still looks transitional to PCI.

import test from 'ava';
import { isTransitionalNet, noPingLost, usesMsix } from './lib/checks.js';
import { bootLinux } from './lib/linux.js';
import { startNic } from './lib/nic.js';
import { scene } from '../vm/scene.js';

for (const machine of ['pc', 'q35'] as const) {
  test(
    `Linux takes the modern interface when it is offered (${machine})`,
    scene(async (t, s) => {
      const [port] = await startNic(s, { presentation: 'transitional' });
      const guest = bootLinux(s, port!, {
        machine,
        steps: ['identity', 'dhcp', 'ping:1000', 'interrupts', 'dmesg'],
      });
      await guest.done(120);
      isTransitionalNet(t, guest);
      t.is(guest.one('version_1'), '1', 'the driver is a legacy one');
      t.is(guest.one('status'), '0x0000000f');
      noPingLost(t, guest, 1000);
      usesMsix(t, guest);
    }),
  );
}

test(
  'Linux told to stay with the legacy interface does so though capabilities are in sight',
  scene(async (t, s) => {
    const [port] = await startNic(s, { presentation: 'transitional' });
    const guest = bootLinux(s, port!, {
      kernelArgs: ['virtio_pci.force_legacy=1'],
      steps: ['identity', 'dhcp', 'ping:1000', 'interrupts'],
    });
    await guest.done(120);
    isTransitionalNet(t, guest);
    t.is(guest.one('version_1'), '0', 'the driver is not a legacy one');
    noPingLost(t, guest, 1000);
    usesMsix(t, guest);
  }),
);
