// Guests on functions of one NIC don't feel each other's end.

import test from 'ava';
import { noPingLost } from './lib/checks.js';
import { bootLinux } from './lib/linux.js';
import { startNic } from './lib/nic.js';
import { scene } from '../vm/scene.js';

test(
  'a guest killed amid traffic costs its neighbour nothing, and its function serves the next guest',
  scene(async (t, s) => {
    const [first, second] = await startNic(s, { vfs: 2 });
    // Without end: the survivor has traffic all the while, however fast it is.
    const endless = ['dhcp', 'ping:100:1000000'];
    const survivor = bootLinux(s, first!, { name: 'survivor', steps: endless });
    const victim = bootLinux(s, second!, { name: 'victim', steps: endless });
    await Promise.all([survivor.said('ping', 120, 3), victim.said('ping', 120, 3)]);
    await victim.child.kill();

    const heir = bootLinux(s, second!, { name: 'heir', steps: ['identity', 'dhcp', 'ping:500'] });
    const before = survivor.all('ping').length;
    await heir.done(120);
    await survivor.said('ping', 60, before + 5);

    t.regex(heir.one('ip'), /^\d+(\.\d+){3}$/);
    noPingLost(t, heir, 500);
    noPingLost(t, survivor, 100);
  }),
);
