// What a process holds of memory, by the account of the kernel and of V8.

import { readdirSync, readFileSync } from 'node:fs';
import { setTimeout } from 'node:timers/promises';
import { getHeapSpaceStatistics } from 'node:v8';
import { bench } from './addon.js';

/** Bytes, but for `threads`. */
export interface Memory {
  /**
   * Resident, shared pages too, less V8's nursery: that grows with the rate of allocations, up to 32
   * MiB, and not with what is kept.
   */
  readonly resident: number;
  /** Objects of JavaScript; part of `resident`. */
  readonly heap: number;
  /** Touched pages of threads' stacks; part of `resident`. */
  readonly stacks: number;
  /** Page tables, which the kernel holds for the process. */
  readonly tables: number;
  readonly threads: number;
}

/** Collections until nothing more is found; finalizers run in between. */
const collections = 3;
const settleMs = 50;

/** Needs --expose-gc: garbage, and what is free, is not what a device costs. */
export async function memory(): Promise<Memory> {
  const { gc } = globalThis;
  if (gc === undefined) throw new Error('Node has to run with --expose-gc');
  for (let i = 0; i < collections; i += 1) {
    void gc();
    await setTimeout(settleMs);
  }
  bench.trim();
  const lines = readFileSync('/proc/self/status', 'utf8').split('\n');
  const number = (name: string) =>
    Number.parseInt(
      lines.find((line) => line.startsWith(`${name}:`))?.slice(name.length + 1) ?? '',
    );
  const heap = process.memoryUsage().heapUsed;
  return {
    resident: number('VmRSS') * 1024 - nursery(),
    heap,
    stacks: stacks(),
    tables: number('VmPTE') * 1024,
    threads: number('Threads'),
  };
}

function nursery(): number {
  return getHeapSpaceStatistics()
    .filter(({ space_name }) => space_name.startsWith('new_'))
    .reduce((sum, { physical_space_size }) => sum + physical_space_size, 0);
}

/** Stacks are the mappings that the stack pointers of sleeping threads lie in. */
function stacks(): number {
  const pointers = readdirSync('/proc/self/task')
    // The last two words of a thread in a system call; one that runs says just so.
    .map((task) => readFileSync(`/proc/self/task/${task}/syscall`, 'utf8').split(' ').at(-2))
    .filter((word) => word?.startsWith('0x'))
    .map(Number)
    .sort((a, b) => a - b);
  let next = 0;
  let inside = false;
  let sum = 0;
  for (const line of readFileSync('/proc/self/smaps', 'utf8').split('\n')) {
    if (inside && line.startsWith('Rss:')) sum += Number.parseInt(line.slice(4)) * 1024;
    const dash = line.indexOf('-');
    // "7f0000000000-7f0000040000 rw-p": a mapping; all else about it has a colon in front.
    if (dash < 8 || line.lastIndexOf(':', dash) !== -1) continue;
    const [from, to] = [line.slice(0, dash), line.slice(dash + 1, line.indexOf(' '))];
    const [low, high] = [Number.parseInt(from, 16), Number.parseInt(to, 16)];
    while ((pointers[next] ?? low) < low) next += 1;
    inside = (pointers[next] ?? high) < high;
  }
  return sum;
}
