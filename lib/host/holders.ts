// Which processes hold a VFIO node open, and so keep its function from being unbound.

import { readlink } from 'node:fs/promises';
import { join } from 'node:path';
import { namesIn, textOf } from './files.js';
import type { Machine } from './machine.js';
import { printable } from './sysfs.js';

export interface Holder {
  readonly pid: number;
  readonly name: string;
}

/** Those of other users are seen by root only. */
export async function holdersOf({ proc }: Machine, nodes: readonly string[]): Promise<Holder[]> {
  const holders: Holder[] = [];
  for (const pid of nodes.length === 0 ? [] : await namesIn(proc)) {
    if (!/^\d{1,10}$/.test(pid)) continue;
    const folder = join(proc, pid, 'fd');
    for (const fd of await namesIn(folder)) {
      const target = await readlink(join(folder, fd)).catch(() => '');
      if (!nodes.includes(target)) continue;
      const name = printable((await textOf(join(proc, pid, 'comm'))) ?? '?');
      holders.push({ pid: Number(pid), name });
      break;
    }
  }
  return holders;
}

export function holderNames(holders: readonly Holder[]): string {
  return holders.map(({ pid, name }) => `${name} (pid ${pid})`).join(', ');
}
