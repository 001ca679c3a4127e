// Where setup.sh puts the lab, and how its QEMU is run.

import { existsSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const projectRoot = fileURLToPath(new URL('../../..', import.meta.url));

/** Runs against QEMU's own virtio-net-pci instead of RetroVF. */
export const standin = process.env['GUEST_STANDIN'] === '1';

const cache =
  process.env['RETROVF_CACHE'] ??
  join(process.env['XDG_CACHE_HOME'] ?? join(homedir(), '.cache'), 'retrovf', 'guest');

const root = join(cache, 'root');

export const lab = {
  /** An ELF kernel, which QEMU starts without having it unpacked by the guest. */
  kernel: join(cache, 'kernel', 'vmlinux'),
  /** The same kernel as boot loaders want it. */
  bzImage: join(cache, 'kernel', 'vmlinuz'),
  initrd: join(cache, 'initrd.cpio'),
  ipxe: join(root, 'usr/lib/ipxe/ipxe.lkrn'),
  /** What the guest has as /bin/busybox. */
  busybox: join(root, 'usr/bin/busybox'),
};

// QEMU comes with its own C library, newer than this machine's: hence the loader.
const qemuCommand = [
  join(root, 'usr/lib64/ld-linux-x86-64.so.2'),
  '--library-path',
  join(root, 'usr/lib/x86_64-linux-gnu'),
  join(root, 'usr/bin/qemu-system-x86_64'),
  '-L',
  join(root, 'usr/share/seabios'),
  '-L',
  join(root, 'usr/share/qemu'),
  '-nodefaults',
  '-display',
  'none',
];

export function qemu(args: readonly string[]): string[] {
  for (const file of [lab.kernel, lab.initrd, lab.ipxe]) {
    if (!existsSync(file)) throw new Error(`${file} is missing: run test/guest/setup.sh first`);
  }
  return [...qemuCommand, ...args];
}
