// L2: a legacy Linux guest in L1, under KVM, with a VF that it may only drive by virtio 0.9.5.

import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { ArchiveFile } from './cpio.js';
import { lab, qemuCommand, type Kernel } from './lab.js';

/** Where the VF's network has a host that answers TCP with an MD5 sum: see l1.ts. */
export const digestHost = '10.0.2.100';
export const digestPort = 9;

const steps = ['identity', 'dhcp', 'ping:50', `digest:${digestHost}:${digestPort}:2`, 'interrupts'];

/** What L1 has to have. */
export async function l2Files(kernel: Kernel): Promise<ArchiveFile[]> {
  const folders = ['.', 'lib', 'firmware'];
  const qemu = await Promise.all(
    folders.map(async (folder) => {
      const entries = await readdir(join(lab.qemu, folder), { withFileTypes: true });
      const names = entries.filter((entry) => entry.isFile()).map(({ name }) => join(folder, name));
      return Promise.all(
        names.map(async (name) => ({
          path: join('l2', name),
          content: await readFile(join(lab.qemu, name)),
          mode: 0o755,
        })),
      );
    }),
  );
  return [
    ...qemu.flat(),
    { path: 'l2/vmlinuz', content: await readFile(lab.vmlinuz(kernel)) },
    { path: 'l2/initrd', content: await readFile(lab.guest(kernel)) },
  ];
}

/** A line of shell that runs L2 with a device, an argument in shell too; its words are those of the guest: `GUEST key=value`. */
export function l2Command(device: string): string {
  const append = `console=ttyS0 quiet panic=-1 no_timer_check virtio_pci.force_legacy=1 guest=${steps.join()}`;
  const args = [
    ...qemuCommand('/l2'),
    '-nodefaults',
    '-display',
    'none',
    '-no-reboot',
    '-accel',
    'kvm',
    '-cpu',
    'host',
    '-M',
    'pc,memory-backend=ram',
    // A vfio-user server reaches guest memory through its file.
    '-object',
    'memory-backend-memfd,id=ram,size=256M,share=on',
    '-m',
    '256',
    '-kernel',
    '/l2/vmlinuz',
    '-initrd',
    '/l2/initrd',
    '-append',
    append,
    '-serial',
    'stdio',
  ];
  return `${args.map((word) => `'${word}'`).join(' ')} -device ${device} < /dev/null`;
}
