// Where setup.sh puts the lab, and how its QEMU is run.

import { existsSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';

const cache =
  process.env['RETROVF_LAB_CACHE'] ??
  join(process.env['XDG_CACHE_HOME'] ?? join(homedir(), '.cache'), 'retrovf', 'lab');

/** Linux 6.1, 6.12 and 7.3, named by the suites of Debian that have them. */
export const kernels = ['bookworm', 'bookworm-backports', 'trixie-backports'] as const;
export type Kernel = (typeof kernels)[number];

export const lab = {
  qemu: join(cache, 'qemu'),
  /** Node, the build, the programs of l1/. */
  project: join(cache, 'project.cpio'),
  /** A program of l1/ or l2/ in C. */
  tool: (name: 'transcript' | 'without-ioeventfd' | 'liar' | 'kick') => join(cache, 'tools', name),
  vmlinuz: (kernel: Kernel) => join(cache, `kernel-${kernel}`, 'vmlinuz'),
  initrd: (kernel: Kernel) => join(cache, `initrd-${kernel}.cpio`),
  /** The initramfs of test/guest with this kernel's modules. */
  guest: (kernel: Kernel) => join(cache, `guest-${kernel}.cpio`),
};

/** QEMU comes with its own C library, newer than this machine's: hence the loader. */
export function qemuCommand(folder: string): string[] {
  const loader = join(folder, 'lib/ld-linux-x86-64.so.2');
  return [
    loader,
    '--library-path',
    join(folder, 'lib'),
    join(folder, 'qemu'),
    '-L',
    join(folder, 'firmware'),
  ];
}

export function requirePieces(kernel: Kernel): void {
  for (const file of [lab.qemu, lab.project, lab.vmlinuz(kernel), lab.initrd(kernel)]) {
    if (!existsSync(file)) throw new Error(`${file} is missing: run test/lab/setup.sh ${kernel}`);
  }
}
