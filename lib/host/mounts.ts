// What of the host's files lies on disks behind a function: they would be gone with its driver.

import { readlink } from 'node:fs/promises';
import { basename, join } from 'node:path';
import type { Bdf } from './bdf.js';
import { namesIn, textOf } from './files.js';
import type { Machine } from './machine.js';
import { printable } from './sysfs.js';

const maxMounts = 4 << 20;

/** Mount points, and `swap`, in the mount namespace of this process. */
export async function mountsOn(machine: Machine, bdf: Bdf): Promise<string[]> {
  const found = new Set<string>();
  for (const { at, links } of await mounts(machine)) {
    for (const link of links) {
      if (await leadsTo(join(machine.sysfs.root, link), bdf)) found.add(at);
    }
  }
  return [...found];
}

interface Mount {
  readonly at: string;
  /** Links of sysfs to the block device, by number and by name. */
  readonly links: readonly string[];
}

async function mounts({ proc }: Machine): Promise<Mount[]> {
  const mountinfo = (await textOf(join(proc, 'self/mountinfo'), maxMounts)) ?? '';
  const swaps = (await textOf(join(proc, 'swaps'), maxMounts)) ?? '';
  const found: Mount[] = [];
  for (const line of mountinfo.split('\n')) {
    // ID, parent, major:minor, root, mount point, options ... "-", type, source. The number is made up for
    // btrfs and the like, the source is none for others.
    const [, , number = '', , at = ''] = line.split(' ');
    const source = line.split(' - ')[1]?.split(' ')[1] ?? '';
    const links = [
      ...(/^\d{1,10}:\d{1,10}$/.test(number) ? [`dev/block/${number}`] : []),
      ...byName(source),
    ];
    if (links.length > 0) found.push({ at: printable(at), links });
  }
  for (const line of swaps.split('\n')) {
    const links = byName(line.split(/\s/)[0] ?? '');
    if (links.length > 0) found.push({ at: 'swap', links });
  }
  return found;
}

function byName(source: string): string[] {
  return /^\/dev\/[\w-]{1,64}$/.test(source) ? [`class/block/${basename(source)}`] : [];
}

const deepestStack = 8;

/** Whether the block device behind a link, or one that it is stacked on (LVM, RAID), is of the function. */
async function leadsTo(link: string, bdf: Bdf, depth = 0): Promise<boolean> {
  const target = await readlink(link).catch(() => '');
  if (target.split('/').includes(bdf)) return true;
  if (depth === deepestStack) return false;
  for (const name of await namesIn(join(link, 'slaves'))) {
    if (await leadsTo(join(link, 'slaves', name), bdf, depth + 1)) return true;
  }
  return false;
}
