// A guest that can only do virtio 0.9.5: Linux, its modern driver kept away by
// the legacy presentation.

import test from 'ava';
import { isTransitionalNet, noPingLost, usesMsix } from './lib/checks.js';
import { bootLinux } from './lib/linux.js';
import { startNic } from './lib/nic.js';
import { scene } from '../vm/scene.js';

for (const machine of ['pc', 'q35'] as const) {
  test(
    `Linux drives the function through BAR0 and loses no packet (${machine})`,
    scene(async (t, s) => {
      const [port] = await startNic(s);
      const guest = bootLinux(s, port!, {
        machine,
        steps: ['identity', 'dhcp', 'ping:1000', 'interrupts', 'dmesg'],
      });
      await guest.done(120);
      isTransitionalNet(t, guest);
      t.is(guest.one('driver'), 'virtio-pci');
      t.is(guest.one('version_1'), '0', 'the driver is not a legacy one');
      t.is(guest.one('status'), '0x00000007');
      t.regex(guest.one('ip'), /^\d+(\.\d+){3}$/);
      noPingLost(t, guest, 1000);
      usesMsix(t, guest);
    }),
  );
}

test(
  'the driver leaves and returns 20 times, with traffic after each',
  scene(async (t, s) => {
    const [port] = await startNic(s);
    const guest = bootLinux(s, port!, { steps: ['dhcp', 'rebind:20', 'dhcp', 'ping:200'] });
    await guest.done(180);
    const rounds = guest.all('rebind');
    t.is(rounds.length, 20);
    rounds.forEach((round, index) => t.is(round, `${index + 1} link=1 ping=5/5`));
    t.is(new Set(guest.all('ip')).size, 1, 'the lease changed, so the address did');
    noPingLost(t, guest, 200);
  }),
);

test(
  'a guest that resets its machine finds a working device again',
  scene(async (t, s) => {
    const [port] = await startNic(s);
    const guest = bootLinux(s, port!, {
      reboots: true,
      steps: ['identity', 'dhcp', 'ping:200', 'reboot'],
    });
    await guest.said('rebooting', 180, 3);
    t.is(new Set(guest.all('boot')).size, 3, 'boots are not three different ones');
    t.deepEqual(guest.all('version_1'), ['0', '0', '0']);
    t.is(guest.all('ip').length, 3);
    noPingLost(t, guest, 200);
  }),
);
