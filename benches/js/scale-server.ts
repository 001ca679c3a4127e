// One process with so many devices, each served on a socket of its own. scale.ts starts it.

import { symlink } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import {
  connectGuest,
  OwnerDevice,
  serve,
  SoftNicHost,
  TransitionalDevice,
  type Host,
  type PciFunction,
} from '../../lib/index.js';
import { bench } from './addon.js';
import { memory, type Memory } from './memory.js';

/** What the server says. */
export type Answer =
  | { readonly kind: 'serving'; readonly openMs: number }
  | {
      readonly kind: 'measured';
      readonly before: Memory;
      readonly after: Memory;
      readonly idleShare: number;
    };

/** What it is asked: clients are connected, use no CPU for so long. */
export interface Question {
  readonly idleMs: number;
}

/** The control queue makes nine; a client takes the first eight. */
const queuePairs = 4;

const [count = 0, folder = ''] = [Number(process.argv[2]), process.argv[3]];
const vfs = count + 1;
const nic = await SoftNicHost.create({ vfs, totalVfs: vfs, queuePairs });
// VFs are hardware: simulated ones are open before memory is counted. The notify address of hardware
// is memory, which a SoftNIC's is not.
const words = bench.sharedPages(vfs);
await symlink(words, join(folder, 'words'));
const functions = new Map<string, PciFunction>();
for (const [page, bdf] of nic.members().entries()) {
  const fn = nic.open(bdf);
  functions.set(bdf, bench.withWord(fn, words, page));
  await fn.close();
}
const host: Host = {
  sysfs: nic.sysfs,
  openableDrivers: nic.openableDrivers,
  open: (bdf) => functions.get(bdf) ?? nic.open(bdf),
  close: () => nic.close(),
};
const owner = await OwnerDevice.open(host, nic.owner);
const members = nic.members();
await warmUp(members.pop() ?? '');

const before = await memory();
const start = performance.now();
for (const [index, bdf] of members.entries()) {
  const device = await TransitionalDevice.open(host, bdf, { owner });
  serve(device, { path: join(folder, String(index)) });
}
say({ kind: 'serving', openMs: performance.now() - start });

process.on('message', async ({ idleMs }: Question) => {
  await setTimeout(settleMs);
  const shares: number[] = [];
  for (let i = 0; i < windows; i += 1) {
    const [cpu, start] = [process.cpuUsage(), performance.now()];
    await setTimeout(idleMs / windows);
    const { user, system } = process.cpuUsage(cpu);
    shares.push((user + system) / 1000 / (performance.now() - start));
  }
  // V8 collects garbage some seconds after the last work, once: the window with that is not idle.
  const idleShare = shares.toSorted((a, b) => a - b)[windows >> 1] ?? 0;
  say({ kind: 'measured', before, after: await memory(), idleShare });
});

// Sockets that are served would keep it alive.
process.on('disconnect', () => process.exit());

const windows = 5;

/** After connecting, before idleness is looked at. */
const settleMs = 500;

/** What the first device of a process costs is not what a device costs. */
async function warmUp(bdf: string): Promise<void> {
  const device = await TransitionalDevice.open(host, bdf, { owner });
  const first = serve(device, { path: join(folder, 'first') });
  const guest = await connectGuest(first.path, { ioeventfds: true });
  await guest.enumerate();
  await guest.start();
  guest.close();
  await first.close();
  await device.close();
}

function say(answer: Answer): void {
  process.send?.(answer);
}
