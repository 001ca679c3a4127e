// Network interfaces of a function: what the host loses when its driver goes.

import { join } from 'node:path';
import type { Bdf } from './bdf.js';
import { namesIn, textOf } from './files.js';
import type { Machine } from './machine.js';
import { printable } from './sysfs.js';

export interface Netdev {
  readonly name: string;
  readonly up: boolean;
  /** Whether a default route, IPv4 or IPv6, leads through it. */
  readonly defaultRoute: boolean;
}

const interfaceUp = 1n; // IFF_UP

/** The interfaces in the network namespace of this process. */
export async function netdevsOf(machine: Machine, bdf: Bdf): Promise<Netdev[]> {
  const { sysfs } = machine;
  // virtio-pci puts a virtio device between the function and the interface; other drivers do not.
  const parents = (await namesIn(sysfs.path(bdf))).filter((name) => /^virtio\d{1,9}$/.test(name));
  const folders = [sysfs.path(bdf, 'net'), ...parents.map((name) => sysfs.path(bdf, name, 'net'))];
  const netdevs: Netdev[] = [];
  for (const folder of folders) {
    for (const name of await namesIn(folder)) {
      const flags = (await textOf(join(folder, name, 'flags'))) ?? '0x0';
      netdevs.push({
        name: printable(name),
        up: /^0x[0-9a-f]{1,8}$/i.test(flags) && (BigInt(flags) & interfaceUp) !== 0n,
        defaultRoute: await carriesDefaultRoute(machine, name),
      });
    }
  }
  return netdevs;
}

const maxRoutes = 4 << 20;

async function carriesDefaultRoute({ proc }: Machine, name: string): Promise<boolean> {
  const ipv4 = (await textOf(join(proc, 'net/route'), maxRoutes)) ?? '';
  const ipv6 = (await textOf(join(proc, 'net/ipv6_route'), maxRoutes)) ?? '';
  const fields = (line: string) => line.trim().split(/\s+/);
  return (
    // Iface Destination Gateway Flags RefCnt Use Metric Mask
    ipv4.split('\n').some((line) => {
      const [iface, destination, , , , , , mask] = fields(line);
      return iface === name && destination === '00000000' && mask === '00000000';
    }) ||
    // Destination, its length, source, its length, gateway, metric, refs, use, flags, Iface. The kernel
    // has a rejecting ::/0 on lo, which is not asked for here.
    ipv6.split('\n').some((line) => {
      const [destination = '', length, , , , , , , , iface] = fields(line);
      return iface === name && /^0{32}$/.test(destination) && length === '00';
    })
  );
}
