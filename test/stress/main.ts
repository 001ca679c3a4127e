// npm run test:stress: kicks on all paths at once, of devices that come and go, with an account of
// every kick.

import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { bench, type Ledger, type QueueAccount } from '../../benches/js/addon.js';
import {
  OwnerDevice,
  serve,
  SoftNicHost,
  TransitionalDevice,
  type Host,
  type PciFunction,
  type Served,
} from '../../lib/index.js';
import { Random } from './random.js';

const ways = ['eventfd', 'posted message', 'message', 'notify()', 'notify() to a word'] as const;
/** The queue of `notify()`; the others are the storm's. */
const notifyQueue = 3;
/** Kicks of one client, by eventfd, posted message and message; and of `notify()` meanwhile. */
const share = { eventfd: 26_000, posted: 20_000, message: 500, notify: 14_000 };

const { values } = parseArgs({
  options: {
    kicks: { type: 'string', default: '10000000' },
    devices: { type: 'string', default: '8' },
    seed: { type: 'string', default: String(Math.floor(Math.random() * 2 ** 31)) },
  },
});
const wanted = Number(values.kicks);
const random = new Random(Number(values.seed));
console.log(`${wanted} kicks of ${values.devices} devices at a time, --seed ${values.seed}`);

/** By way: what was kicked, and how often devices were rung. */
const totals = ways.map(() => ({ kicks: 0, rings: 0 }));
const lives = { devices: 0, clients: 0, left: 0, cut: 0 };
const start = Date.now();
let said = 0;
let lost = false;

const folder = await mkdtemp(join(tmpdir(), 'retrovf-stress-'));
try {
  await using nic = await SoftNicHost.create({ vfs: Number(values.devices), queuePairs: 4 });
  await using owner = await OwnerDevice.open(nic, nic.owner);
  const lanes = nic.members().map(async (bdf, at) => {
    try {
      await lane(nic, owner, bdf, join(folder, `${at}.sock`));
    } catch (error) {
      lost = true;
      throw error;
    }
  });
  // All of them, also if one fails: the others use what is torn down here.
  const failed = (await Promise.allSettled(lanes)).find((end) => end.status === 'rejected');
  if (failed !== undefined) throw failed.reason;
} finally {
  await rm(folder, { recursive: true, force: true });
}
for (const [at, way] of ways.entries()) {
  const { kicks, rings } = totals[at] ?? { kicks: 0, rings: 0 };
  console.log(
    `${way.padEnd(20)} ${String(kicks).padStart(9)} kicks ${String(rings).padStart(9)} rings`,
  );
}
console.log(
  `${kicked()} kicks in ${Math.round((Date.now() - start) / 1000)} s, none lost: ${lives.devices} ` +
    `devices opened and closed, ${lives.clients} clients, ${lives.left} of them gone right after ` +
    `a kick, ${lives.cut} cut off`,
);

function kicked(): number {
  return totals.reduce((sum, { kicks }) => sum + kicks, 0);
}

/** One VF: opened, kicked, closed, and again. */
async function lane(nic: SoftNicHost, owner: OwnerDevice, bdf: string, path: string) {
  while (kicked() < wanted && !lost) {
    if (random.below(8) === 0) await toWord(nic, owner, bdf);
    else await toLedger(nic, owner, bdf, path);
    lives.devices += 1;
    const tenths = Math.min(10, Math.floor((10 * kicked()) / wanted));
    if (tenths > said) process.stderr.write(`${10 * tenths} %\n`);
    said = Math.max(said, tenths);
  }
}

/** A device that counts, with some clients in a row. */
async function toLedger(nic: SoftNicHost, owner: OwnerDevice, bdf: string, path: string) {
  const ledger = new bench.Ledger();
  const host = wrapping(nic, (fn) => ledger.counting(fn));
  await using device = await TransitionalDevice.open(host, bdf, { owner });
  for (let clients = 1 + random.below(3); clients > 0; clients -= 1) {
    await using served = serve(device, { path });
    if (await client(served, device, ledger, random.below(3))) break;
  }
}

/** Returns whether the client was cut off, after which accounts have no balance. */
async function client(
  served: Served,
  device: TransitionalDevice,
  ledger: Ledger,
  end: number,
): Promise<boolean> {
  lives.clients += 1;
  const before = ledger.queues();
  const disconnected = new Promise<void>((done) => {
    served.on('event', (kind) => {
      if (kind === 'client-disconnected') done();
    });
  });
  const leaves = end === 1;
  const seed = random.below(2 ** 31);
  const { notify, ...kicks } = share;
  const running = bench.storm(ledger, { path: served.path, seed, leaves, ...kicks });
  let ended = false;
  const result = running.finally(() => {
    ended = true;
  });
  // A lost kick is thrown below, where the result is waited for.
  result.catch(() => {});
  const cutAt = end === 2 ? random.below(notify) : Infinity;
  for (let given = 0; given < notify && given < cutAt;) {
    const burst = 1 + random.below(64);
    ledger.give(notifyQueue, burst);
    for (let i = 0; i < burst; i += 1) device.notify(notifyQueue);
    given += burst;
    const now = ledger.queues()[notifyQueue];
    must(now?.seen === now?.given, `notify() of ${device.bdf} has not rung`);
    if (!ended) await turn();
  }
  if (end === 2) await served.close();
  const { answered, cut } = await result;
  // With the session its eventfds end, and with them what they have still to deliver.
  if (end !== 2) await disconnected;
  settle(before, ledger.queues(), answered, cut);
  lives.left += leaves ? 1 : 0;
  lives.cut += cut ? 1 : 0;
  return cut;
}

/** Adds up one client's kicks; throws if one is lost. */
function settle(
  before: readonly QueueAccount[],
  after: readonly QueueAccount[],
  answered: number,
  cut: boolean,
): void {
  for (const [queue, now] of after.entries()) {
    const { given = 0, seen = 0, rings = 0 } = before[queue] ?? {};
    const way = ways[queue] ?? '';
    const rang = now.rings - rings;
    // Signals of an eventfd that arrive together make one ring, which all of them are seen by.
    const coalesces = way === 'eventfd';
    if (cut && queue !== notifyQueue) {
      // What is sent to a server that goes away goes nowhere.
      add(queue, coalesces ? now.seen - seen : rang, rang);
    } else {
      const kicks = now.given - given;
      must(now.seen === now.given, `${way}: ${now.given - now.seen} kicks were not seen`);
      must(coalesces ? rang <= kicks : rang === kicks, `${way}: ${rang} rings of ${kicks} kicks`);
      add(queue, kicks, rang);
    }
    if (way === 'message') must(rang >= answered, `${answered} answered, ${rang} rang`);
  }
}

/** A device whose notify address is memory: each burst leaves its last kick there. */
async function toWord(nic: SoftNicHost, owner: OwnerDevice, bdf: string) {
  const host = wrapping(nic, (fn) => bench.withWord(fn));
  const device = await TransitionalDevice.open(host, bdf, { owner });
  const word = device.notifyWord;
  if (word === null) throw new Error('the device has no notify word');
  for (let given = 0; given < share.notify;) {
    const burst = 1 + random.below(64);
    const first = random.below(0x8000);
    for (let i = 0; i < burst; i += 1) device.notify(first + i);
    must(word[0] === first + burst - 1, `${first + burst - 1} was kicked, ${word[0]} arrived`);
    given += burst;
    add(4, burst, burst);
    await turn();
  }
  await device.close();
  must(word.length === 0, 'a closed device leaves its notify word behind');
}

function add(way: number, kicks: number, rings: number): void {
  const total = totals[way];
  if (total === undefined) throw new Error(`no way ${way}`);
  total.kicks += kicks;
  total.rings += rings;
}

function wrapping(nic: SoftNicHost, wrap: (fn: PciFunction) => PciFunction): Host {
  return {
    sysfs: nic.sysfs,
    openableDrivers: nic.openableDrivers,
    open(bdf) {
      const fn = nic.open(bdf);
      const wrapped = wrap(fn);
      fn.close();
      return wrapped;
    },
    close: () => nic.close(),
  };
}

function must(holds: boolean, what: string): void {
  if (!holds) throw new Error(`LOST: ${what}`);
}
