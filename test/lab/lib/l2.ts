// L2: a legacy Linux guest in L1, under KVM, with VFs that it may only drive by virtio 0.9.5.

import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { ExecutionContext } from 'ava';
import { archive, type ArchiveFile } from './cpio.js';
import type { L1 } from './l1.js';
import { lab, qemuCommand, type Kernel } from './lab.js';

/** Where the VF's network has a host that answers TCP with an MD5 sum: see l1.ts. */
export const digestHost = '10.0.2.100';
export const digestPort = 9;

/** What a guest does with one VF: see `legacyGuestIsWell`. */
const network = [
  'identity',
  'dhcp',
  'ping:50',
  `digest:${digestHost}:${digestPort}:2`,
  'interrupts',
];

/** What L1 has to have. `more` are files of the guest beside those of test/guest/image. */
export async function l2Files(
  kernel: Kernel,
  more: readonly ArchiveFile[] = [],
): Promise<ArchiveFile[]> {
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
    {
      path: 'l2/run',
      content: await readFile(fileURLToPath(new URL('../l2/run.sh', import.meta.url))),
      mode: 0o755,
    },
    { path: 'l2/vmlinuz', content: await readFile(lab.vmlinuz(kernel)) },
    {
      path: 'l2/initrd',
      content: Buffer.concat([await readFile(lab.guest(kernel)), archive(more)]),
    },
  ];
}

/** Arguments in shell for a VF that is served at a socket. */
export function served(socket: string, properties: Record<string, unknown> = {}): string {
  const device = { driver: 'vfio-user-pci', socket: { path: socket, type: 'unix' }, ...properties };
  return `-device '${JSON.stringify(device)}'`;
}

/** The same for a VF that the kernel makes transitional. */
export const assigned = (bdf: string, properties = ''): string =>
  `-device "vfio-pci,host=${bdf}${properties}"`;

/** A line of shell that runs L2 with devices; its words are those of the guest: `GUEST key=value`. */
export function l2Command(devices: readonly string[], steps: readonly string[] = network): string {
  const append = `console=ttyS0 quiet panic=-1 no_timer_check virtio_pci.force_legacy=1 guest=${steps.join()}`;
  const args = [
    '/l2/run',
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
    '-chardev',
    // run.sh looks into that file.
    'stdio,id=console,logfile=/tmp/l2.said',
    '-serial',
    'chardev:console',
  ];
  return `${args.map((word) => `'${word}'`).join(' ')} ${devices.join(' ')}`;
}

/**
 * A test with a guest in L1, once more if L1's own machine ends in silence, as an emulated CPU with
 * nested KVM does now and then. Whatever else fails, fails.
 */
export const nested =
  (run: (t: ExecutionContext) => Promise<void>) =>
  async (t: ExecutionContext): Promise<void> => {
    try {
      await run(t);
    } catch (error) {
      if (!String(error).includes('l1 ended with exit code 0')) throw error;
      t.log('the machine of L1 ended in silence; once more');
      await run(t);
    }
  };

/** The guest took the VF as a legacy device and has a network through it. */
export function legacyGuestIsWell(t: ExecutionContext, l1: L1): void {
  const said = {
    one: (key: string) => l1.one(key, 'GUEST'),
    all: (key: string) => l1.all(key, 'GUEST'),
  };
  for (const line of l1.child.lines.all) if (line.startsWith('GUEST ')) t.log(line);
  t.is(said.one('vendor'), '0x1af4');
  t.is(said.one('device'), '0x1000');
  t.is(said.one('revision'), '0x00');
  t.is(said.one('subsystem_device'), '0x0001');
  t.is(said.one('driver'), 'virtio-pci');
  t.is(said.one('version_1'), '0', 'the driver is not a legacy one');
  t.regex(said.one('ip'), /^10\.0\.2\./);
  t.regex(said.one('ping'), /^50\/50 /);
  const [, sent, answer] = /^(\w{32}) answer=(\w{32})$/.exec(said.one('digest')) ?? [];
  t.truthy(sent, said.one('digest'));
  t.is(answer, sent, 'TCP changed the data');
  const irqs = said.all('irq');
  t.true(irqs.length > 1, irqs.join(' | '));
  for (const irq of irqs) t.regex(irq, /MSI-?X/);
  t.true(
    irqs.some((irq) => /^\d+: [1-9]\d* .*virtio0-(input|virtqueues)/.test(irq)),
    irqs.join(' | '),
  );
}
