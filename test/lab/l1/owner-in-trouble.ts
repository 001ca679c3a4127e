// A guest on a VF while its PF gets into trouble and out of it, at the hands of the harness, which goes
// by the `phase=` lines. The first argument names the trouble: `stuck` or `failing`.

import { setTimeout as sleep } from 'node:timers/promises';
import { connectGuest, serveAll, TransitionalDevice, VfioHost } from '../../../lib/index.js';

const [vf = ''] = (process.env['VFS'] ?? '').trim().split(/\s+/);
const trouble = process.argv[2];
const patience = 30_000;
const pings = 20;
const allOnes = 0xffff_ffff;

await using host = new VfioHost();
await using service = await serveAll(host, [{ bdf: vf, path: '/tmp/vf.sock' }]);
const device = service.served[0]?.device;
if (!(device instanceof TransitionalDevice)) throw new Error('not served as transitional');

const features = async () => (await device.bar0Read(0, 4)).readUInt32LE();

/** Returns how long the answer took. */
async function until(holds: (value: number) => boolean): Promise<number> {
  const deadline = performance.now() + 2 * patience;
  for (;;) {
    const began = performance.now();
    if (holds(await features())) return Math.round(performance.now() - began);
    if (performance.now() > deadline) throw new Error('nothing changed');
    await sleep(50);
  }
}

const guest = await connectGuest('/tmp/vf.sock');
await guest.enumerate();
await guest.start();
await guest.dhcp(patience);
console.log(`features=${await features()}`);
console.log('phase=well');

const waited = await until((value) => value === allOnes);
console.log(`waited_ms=${waited}`);
// Kicks and interrupts do not need the owner.
const { received } = await guest.ping('10.0.2.2', pings, patience);
console.log(`pings_in_trouble=${received}`);
console.log(`owner_in_trouble=${device.owner.state.kind}`);
console.log('phase=trouble');

if (trouble === 'stuck') {
  // The harness mends the PF in its own time.
  for (const deadline = performance.now() + 2 * patience; device.owner.state.kind !== 'ready';) {
    await device.owner.recover().catch(() => sleep(200));
    if (performance.now() > deadline) throw new Error('no recovery');
  }
}
await until((value) => value !== allOnes);
console.log(`features_again=${await features()}`);
guest.close();
const next = await connectGuest('/tmp/vf.sock');
await next.enumerate();
await next.start();
await next.dhcp(patience);
const again = await next.ping('10.0.2.2', pings, patience);
console.log(`pings_again=${again.received}`);
next.close();
