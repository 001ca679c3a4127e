// L1: a machine with an IOMMU, virtio network PFs with VFs, and the project in it. It runs one shell
// script and powers off; what that prints is the result.

import { readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Child } from '../../vm/child.js';
import type { Scene } from '../../vm/scene.js';
import { archive, type ArchiveFile } from './cpio.js';
import { lab, qemuCommand, requirePieces, type Kernel } from './lab.js';
import { digestHost, digestPort } from './l2.js';
import { Qmp } from './qmp.js';

type Properties = Readonly<Record<string, string | number>>;

export interface PfOptions {
  /** VFs that L1 enables; a PF has two. */
  readonly vfs?: number;
  /** Drivers of the functions when the script begins. */
  readonly pf?: 'virtio-pci' | 'vfio-pci';
  readonly vf?: 'virtio-pci' | 'vfio-pci' | 'virtio_vfio_pci' | 'none';
}

export interface L1Options extends PfOptions {
  readonly name?: string;
  readonly kernel?: Kernel;
  /** PFs beside the first. */
  readonly more?: readonly PfOptions[];
  /** Properties of the devices, beside the ones they need; see qemu/virtio-pci-admin.c. */
  readonly pfProperties?: Properties;
  readonly vfProperties?: Properties;
  /** Load KVM, for a guest in L1. */
  readonly kvm?: boolean;
  /** Load iommufd, and the VFIO that goes with it: only for trixie-backports. */
  readonly iommufd?: boolean;
  readonly files?: readonly ArchiveFile[];
  /**
   * A shell script with PF, VFS, VF and GROUP in its environment, PF1 and so on of the next PF; its
   * status is L1's.
   */
  readonly script: string;
}

export class L1 {
  readonly child: Child;
  readonly #qmpPath: string;
  readonly #name: string;

  constructor(child: Child, name: string, qmpPath: string) {
    this.child = child;
    this.#name = name;
    this.#qmpPath = qmpPath;
  }

  /** Values of a `key=value` line of the script, of `LAB` (init), or of `GUEST` (a guest in L1). */
  all(key: string, speaker: '' | 'LAB' | 'GUEST' = ''): string[] {
    const start = `${speaker}${speaker === '' ? '' : ' '}${key}=`;
    const lines = this.child.lines.all.filter((line) => line.startsWith(start));
    return lines.map((line) => line.slice(start.length));
  }

  one(key: string, speaker: '' | 'LAB' | 'GUEST' = ''): string {
    const values = this.all(key, speaker);
    if (values.length === 1 && values[0] !== undefined) return values[0];
    throw new Error(`${this.#name} said ${key} ${values.length} times: ${values.join(' | ')}`);
  }

  /** Waits until the script has printed a line that begins so. */
  said(start: string, seconds: number): Promise<string> {
    return this.child.lines.until(`"${start}" of ${this.#name}`, seconds, (lines) =>
      lines.find((line) => line.startsWith(start)),
    );
  }

  /** The lines of a file that the script emitted. */
  file(name: string): string[] {
    const lines = this.child.lines.all;
    const from = lines.indexOf(`LAB file=${name}`);
    const to = lines.indexOf(`LAB file_end=${name}`);
    if (from < 0 || to < from) throw new Error(`${this.#name} did not emit ${name}`);
    return lines.slice(from + 1, to).map((line) => line.slice('| '.length));
  }

  /** Waits for the end of the script and the machine. */
  async done(seconds: number): Promise<void> {
    await this.said('LAB done=', seconds);
    const result = this.one('done', 'LAB');
    if (result !== '0') throw new Error(`${this.#name} ended with ${result}`);
    await this.child.ended(30);
  }

  /** Changes a property of the PF while L1 runs. */
  async setPf(property: string, value: number): Promise<void> {
    const qmp = await Qmp.connect(this.#qmpPath);
    try {
      await qmp.execute('qom-set', { path: '/machine/peripheral/pf', property, value });
    } finally {
      qmp.close();
    }
  }
}

export async function bootL1(scene: Scene, options: L1Options): Promise<L1> {
  const { name = 'l1', kernel = 'trixie-backports', files = [], more = [] } = options;
  const { kvm = false, iommufd = false } = options;
  const pfs = [options, ...more];
  requirePieces(kernel);
  const initrd = join(scene.dir, `${name}.initrd`);
  // A failed test's folder is kept, which is for its logs.
  scene.atEnd(() => rm(initrd));
  const run = { path: 'run.sh', content: options.script };
  const parts = [lab.initrd(kernel), lab.project].map((path) => readFile(path));
  await writeFile(initrd, Buffer.concat([...(await Promise.all(parts)), archive([run, ...files])]));
  const qmp = join(scene.dir, `${name}.qmp`);
  const command = [
    ...qemuCommand(lab.qemu),
    '-nodefaults',
    '-no-user-config',
    '-display',
    'none',
    '-no-reboot',
    '-M',
    'q35,kernel-irqchip=off',
    '-accel',
    'tcg,thread=multi',
    '-cpu',
    'EPYC,+svm',
    '-smp',
    '2',
    '-m',
    kvm ? '3072' : '2048',
    '-kernel',
    lab.vmlinuz(kernel),
    '-initrd',
    initrd,
    '-append',
    [
      'console=ttyS0 intel_iommu=on quiet loglevel=4 panic=-1 no_timer_check cryptomgr.notests',
      ...pfs.map(wishes),
      ...(kvm ? ['lab.kvm=1'] : []),
      ...(iommufd ? ['lab.iommufd=1'] : []),
    ].join(' '),
    '-serial',
    `file:${join(scene.dir, `${name}.console`)}`,
    '-serial',
    'stdio',
    '-qmp',
    `unix:${qmp},server=on,wait=off`,
    '-D',
    join(scene.dir, `${name}.trace`),
    '-trace',
    'virtio_pci_admin_cmd',
    '-device',
    'intel-iommu,caching-mode=on',
    ...pfs.flatMap((_, index) => port(index, options)),
  ];
  return new L1(scene.run(name, command), name, qmp);
}

/** What image/init is to do with a PF. */
function wishes({ vfs = 2, pf = 'vfio-pci', vf = 'vfio-pci' }: PfOptions, index: number): string {
  const which = index || '';
  return `lab.vfs${which}=${vfs} lab.pf${which}=${pf} lab.vf${which}=${vf}`;
}

/** A root port with a PF and its VFs behind it, each on a network of its own. */
function port(index: number, options: L1Options): string[] {
  const which = index || '';
  // QEMU's user-mode network has a router with DHCP; a host that answers TCP is added to it.
  const digest = `guestfwd=tcp:${digestHost}:${digestPort}-cmd:md5sum`;
  const net = (number: number) => `n${which}${number}`;
  // Each function has iommu_platform=on: QEMU's own DMA would go around the IOMMU.
  const virtio = (number: number, properties: Properties) =>
    device({
      driver: 'virtio-net-pci',
      bus: `root${which}`,
      addr: `0x0.0x${number}`,
      netdev: net(number),
      mac: `52:54:00:12:34:${index}${number}`,
      romfile: '',
      iommu_platform: 'on',
      ...properties,
    });
  return [
    ...device({ driver: 'pcie-root-port', id: `root${which}`, chassis: index }),
    ...[0, 1, 2].flatMap((number) => ['-netdev', `user,id=${net(number)},ipv6=off,${digest}`]),
    ...[1, 2].flatMap((number) =>
      virtio(number, { 'sriov-pf': `pf${which}`, ...options.vfProperties }),
    ),
    // The VFs name their PF, which comes last.
    ...virtio(0, { id: `pf${which}`, 'x-admin-vq': 'on', ...options.pfProperties }),
  ];
}

function device(properties: Properties): string[] {
  const words = Object.entries(properties).map(([key, value]) => `${key}=${value}`);
  return ['-device', words.join()];
}
