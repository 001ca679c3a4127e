// The sequences that both sides play: a directed one that goes through each register and rule, and
// pseudo-random ones.

import { bar0Size } from './registers.js';
import { msixControl } from './state.js';
import { read, reset, vectors, write, type Access } from './transcript.js';

const configHeader = 0x40;
const command = 0x04;
const bar0 = 0x10;
/** Page number of memory that the function may reach: DMA_IOVA of l1/src/device.h. */
const dmaPage = 0x10000;

/** Both sides begin alike: what an earlier user wrote may have stayed. */
const beginning: readonly Access[] = [
  reset,
  ...[0x10, 0x14, 0x18, 0x1c, 0x20, 0x24].map((bar) => write('cfg', bar, 4, 0)),
  write('cfg', 0x0c, 2, 0), // cache line size, latency timer
  write('cfg', 0x3c, 1, 0), // interrupt line
  write('cfg', command, 2, 0),
];

export function directed(): Access[] {
  const all: Access[] = [...beginning];
  const add = (...accesses: Access[]): void => void all.push(...accesses);
  const enable = write('cfg', command, 2, 7);

  // Before I/O space is enabled.
  add(read('cfg', command, 2), read('bar0', 0, 4), write('bar0', 18, 1, 0), read('bar0', 40, 4));

  // The header of configuration space, at every offset and width.
  for (const width of [1, 2, 4, 8]) {
    for (let offset = 0; offset < configHeader; offset += 1) add(read('cfg', offset, width));
  }
  for (let offset = configHeader; offset < 0x100; offset += 4) add(read('cfg', offset, 4));
  add(read('cfg', 0, 64), read('cfg', 0, 256), read('cfg', 0xfe, 4), read('cfg', 0x1000, 4));

  // BARs are sized; identity cannot be written.
  for (let offset = bar0; offset < bar0 + 24; offset += 4) {
    add(read('cfg', offset, 4), write('cfg', offset, 4, 0xffffffff), read('cfg', offset, 4));
  }
  add(write('cfg', bar0, 4, 0xc001), read('cfg', bar0, 4), write('cfg', bar0 + 1, 1, 0xab));
  add(read('cfg', bar0, 4), write('cfg', bar0 + 2, 2, 0x1234), read('cfg', bar0, 4));
  add(write('cfg', 0x0e, 4, 0x55667788), read('cfg', 0x0c, 8));
  add(write('cfg', 0x30, 4, 0xffffffff), read('cfg', 0x30, 4));
  for (const [offset, width] of [
    [0, 4],
    [0x2c, 4],
    [8, 1],
    [9, 2],
  ] as const) {
    add(write('cfg', offset, width, 0x12345678), read('cfg', offset, 4));
  }

  // The command register, whole and in bytes.
  for (const value of [1, 2, 3, 4, 5, 7, 0x401, 0x507, 0xffff, 0]) {
    add(write('cfg', command, 2, value), read('cfg', command, 2), read('cfg', command, 4));
    add(read('bar0', 18, 1), read('bar0', 16, 2), write('bar0', 16, 2, 1));
  }
  add(write('cfg', 4, 1, 1), read('cfg', 4, 1), read('cfg', 5, 1), read('cfg', 3, 4));
  add(write('cfg', 5, 1, 4), read('cfg', 4, 2), write('cfg', 2, 4, 0x00030000), read('cfg', 4, 2));
  add(read('bar0', 18, 1));

  // BAR0 at every offset and width, MSI-X off and on.
  add(enable);
  for (const count of [0, 4, 0]) {
    add(vectors(count));
    for (let offset = 0; offset < bar0Size + 2; offset += 1) {
      for (const width of [1, 2, 3, 4, 6, 8]) add(read('bar0', offset, width));
    }
    for (const width of [16, 20, 32, 33]) add(read('bar0', 0, width));
    add(read('bar0', 0x1000, 4), read('bar0', 0xffffffff, 1));
    for (let offset = 0; offset < bar0Size + 2; offset += 1) {
      for (const width of [1, 2, 4, 8]) add(write('bar0', offset, width, 0));
    }
    for (let offset = 0; offset < bar0Size; offset += 4) add(read('bar0', offset, 4));
  }

  // The life of a legacy driver, twice, with resets of the function.
  for (let round = 0; round < 2; round += 1) {
    add(enable, ...legacyDriver());
    add(write('cfg', bar0, 4, 0xd000), write('bar0', 14, 2, 1), reset);
    add(read('cfg', command, 2), read('cfg', 0, 64), read('cfg', bar0, 4), read('bar0', 18, 1));
    add(enable, read('bar0', 18, 1), read('bar0', 14, 2), read('bar0', 0, 4));
  }

  // A driver that forgets bus mastering.
  add(write('cfg', command, 2, 3), write('bar0', 18, 1, 3), read('cfg', command, 2));
  add(write('bar0', 18, 1, 0), enable);

  // The guest's enable bit apart from the host's eventfds.
  add(vectors(0), write('cfg', msixControl, 2, 0x8000), read('cfg', msixControl, 2));
  add(read('bar0', 20, 2), read('bar0', 24, 1));
  add(write('cfg', msixControl, 2, 0), read('cfg', msixControl, 2), read('bar0', 20, 1));
  add(vectors(2), write('cfg', msixControl, 2, 0), read('bar0', 20, 1), vectors(0));
  add(reset);
  return all;
}

function legacyDriver(): Access[] {
  const all: Access[] = [];
  const status = (value: number) => all.push(write('bar0', 18, 1, value), read('bar0', 18, 1));
  status(0);
  status(1);
  status(3);
  all.push(read('bar0', 0, 4), write('bar0', 4, 4, 0x10020), read('bar0', 4, 4), vectors(3));
  all.push(write('bar0', 20, 2, 0), read('bar0', 20, 2));
  for (let queue = 0; queue < 4; queue += 1) {
    all.push(write('bar0', 14, 2, queue), read('bar0', 14, 2), read('bar0', 12, 2));
    all.push(read('bar0', 8, 4));
    if (queue > 1) continue;
    all.push(write('bar0', 8, 4, dmaPage + 16 * queue), read('bar0', 8, 4));
    all.push(write('bar0', 22, 2, queue + 1), read('bar0', 22, 2));
  }
  for (let offset = 24; offset < 30; offset += 1) all.push(read('bar0', offset, 1));
  all.push(read('bar0', 30, 2));
  status(7);
  all.push(write('bar0', 16, 2, 0), write('bar0', 16, 2, 1), read('bar0', 19, 1));
  status(0);
  all.push(vectors(0), read('bar0', 20, 2), read('bar0', 20, 6), read('bar0', 8, 4));
  return all;
}

/** Of `count` accesses, most to BAR0; the same for the same seed. */
export function random(seed: number, count: number): Access[] {
  const { below, bits, pick } = generator(seed);
  const all: Access[] = [...beginning, write('cfg', command, 2, 7)];
  while (all.length < count) {
    const kind = below(100);
    const writes = below(2) === 1;
    const access = (region: 'bar0' | 'cfg', offset: number, width: number, value = bits()) =>
      void all.push(writes ? write(region, offset, width, value) : read(region, offset, width));
    if (kind < 2) {
      all.push(vectors(pick([0, 0, 1, 3, 4])));
    } else if (kind < 3) {
      all.push(reset);
      if (below(3) > 0) all.push(write('cfg', command, 2, 7));
    } else if (kind < 50) {
      // A register in its own width, with values that mean something to it.
      const [offset, width] = pick(registerAccesses);
      access('bar0', offset, width, meaningful(offset, below, bits, pick));
    } else if (kind < 72) {
      access('bar0', below(40), pick(widths));
    } else if (kind < 80) {
      access('cfg', command, 2, BigInt(below(8) > 0 ? 7 : below(8)));
    } else if (kind < 88) {
      access('cfg', bar0, 4, below(2) === 0 ? 0xffffffffn : bits());
    } else {
      access('cfg', below(configHeader), pick(widths));
    }
  }
  return all.slice(0, count);
}

const widths = [1, 1, 1, 2, 2, 2, 4, 4, 4, 8, 8, 3, 5, 6, 7];
const registerAccesses = [
  [0, 4],
  [4, 4],
  [8, 4],
  [12, 2],
  [14, 2],
  [16, 2],
  [18, 1],
  [19, 1],
  [20, 2],
  [22, 2],
  [24, 1],
  [26, 2],
  [28, 4],
  [30, 2],
  [20, 1],
  [24, 4],
  [20, 4],
] as const;

type Generator = ReturnType<typeof generator>;

function meaningful(
  offset: number,
  below: Generator['below'],
  bits: Generator['bits'],
  pick: Generator['pick'],
): bigint {
  switch (offset) {
    case 8:
      if (below(8) > 0) return BigInt(dmaPage + below(512));
      return below(2) === 0 ? 0n : bits();
    case 14:
    case 16:
      return below(8) > 0 ? BigInt(below(5)) : bits();
    case 18:
      return BigInt(pick([0, 1, 3, 7, 0x83]));
    case 20:
    case 22:
      return BigInt(below(4) > 0 ? below(6) : 0xffff);
    default:
      return bits();
  }
}

/** xorshift64*, so that a seed means the same everywhere. */
function generator(seed: number) {
  let state = BigInt.asUintN(64, BigInt(seed) * 0x9e3779b97f4a7c15n + 1n);
  const bits = (): bigint => {
    state ^= state >> 12n;
    state = BigInt.asUintN(64, state ^ (state << 25n));
    state ^= state >> 27n;
    return BigInt.asUintN(64, state * 2685821657736338717n);
  };
  const below = (limit: number): number => Number((bits() >> 33n) % BigInt(limit));
  const pick = <T>(choices: readonly T[]): T => choices[below(choices.length)] as T;
  return { bits, below, pick };
}
