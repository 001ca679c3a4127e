// L1: a machine with an IOMMU, a virtio network PF with VFs, and the project in it. It runs one shell
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

export interface L1Options {
  readonly name?: string;
  readonly kernel?: Kernel;
  /** VFs that L1 enables; the PF has two. */
  readonly vfs?: number;
  /** Drivers of the functions when the script begins. */
  readonly pf?: 'virtio-pci' | 'vfio-pci';
  readonly vf?: 'virtio-pci' | 'vfio-pci' | 'virtio_vfio_pci' | 'none';
  /** Properties of the devices, beside the ones they need; see qemu/virtio-pci-admin.c. */
  readonly pfProperties?: Properties;
  readonly vfProperties?: Properties;
  /** Load KVM, for a guest in L1. */
  readonly kvm?: boolean;
  /** Load iommufd, and the VFIO that goes with it: only for trixie-backports. */
  readonly iommufd?: boolean;
  readonly files?: readonly ArchiveFile[];
  /** A shell script with PF, VFS, VF and GROUP in its environment; its status is L1's. */
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

// Each function has iommu_platform=on: QEMU's own DMA would go around the IOMMU.
const mac = (index: number) => `52:54:00:12:34:0${index}`;

export async function bootL1(scene: Scene, options: L1Options): Promise<L1> {
  const { name = 'l1', kernel = 'trixie-backports', vfs = 2, files = [] } = options;
  const { pf = 'vfio-pci', vf = 'vfio-pci', kvm = false, iommufd = false } = options;
  requirePieces(kernel);
  const initrd = join(scene.dir, `${name}.initrd`);
  // A failed test's folder is kept, which is for its logs.
  scene.atEnd(() => rm(initrd));
  const run = { path: 'run.sh', content: options.script };
  const parts = [lab.initrd(kernel), lab.project].map((path) => readFile(path));
  await writeFile(initrd, Buffer.concat([...(await Promise.all(parts)), archive([run, ...files])]));
  const qmp = join(scene.dir, `${name}.qmp`);
  const device = (properties: Properties) => [
    '-device',
    Object.entries({ ...properties })
      .map(([key, value]) => `${key}=${value}`)
      .join(),
  ];
  // QEMU's user-mode network has a router with DHCP; a host that answers TCP is added to it.
  const digest = `guestfwd=tcp:${digestHost}:${digestPort}-cmd:md5sum`;
  const network = (index: number) => ['-netdev', `user,id=n${index},ipv6=off,${digest}`];
  const member = (index: number) =>
    device({
      driver: 'virtio-net-pci',
      bus: 'root',
      addr: `0x0.0x${index}`,
      netdev: `n${index}`,
      'sriov-pf': 'pf',
      mac: mac(index),
      romfile: '',
      iommu_platform: 'on',
      ...options.vfProperties,
    });
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
    `console=ttyS0 intel_iommu=on quiet loglevel=4 panic=-1 no_timer_check cryptomgr.notests lab.vfs=${vfs} ` +
      `lab.pf=${pf} lab.vf=${vf}${kvm ? ' lab.kvm=1' : ''}${iommufd ? ' lab.iommufd=1' : ''}`,
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
    '-device',
    'pcie-root-port,id=root',
    ...[0, 1, 2].flatMap(network),
    ...[1, 2].flatMap(member),
    // The VFs name their PF, which comes last.
    ...device({
      driver: 'virtio-net-pci',
      bus: 'root',
      addr: '0x0.0x0',
      netdev: 'n0',
      id: 'pf',
      mac: mac(0),
      romfile: '',
      iommu_platform: 'on',
      'x-admin-vq': 'on',
      ...options.pfProperties,
    }),
  ];
  return new L1(scene.run(name, command), name, qmp);
}
