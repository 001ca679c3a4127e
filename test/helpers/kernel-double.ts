// A folder shaped like /sys, and a writer that does to it what the kernel does: binding, refusing, making
// and removing VFs. What it knows was seen on a real kernel, which test/lab/l1/host.sh runs against.

import { existsSync, mkdirSync, readdirSync, readFileSync, realpathSync, rmSync } from 'node:fs';
import { mkdtempSync, readlinkSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { thisMachine, type Machine } from '../../lib/host/machine.js';
import { Sysfs } from '../../lib/host/sysfs.js';
import { WriteRefused, type WriteOptions } from '../../lib/host/sysfs-writer.js';
import { pf, virtioFunction } from './sysfs-tree.js';

export interface Beginning {
  driver?: string | null;
  override?: string | null;
  /** VFs, each with its driver. */
  vfs?: readonly (string | null)[];
  autoprobe?: boolean;
  /** Whether vfio-pci is loaded, and may make VFs. */
  module?: boolean;
  enableSriov?: boolean;
  /** The interface of the PF, while virtio-pci has it. */
  netdev?: { readonly name: string; readonly up: boolean };
  iommu?: boolean;
  /** The driver that functions usually get; null: it is not loaded. */
  usual?: string | null;
}

const total = 8;
const vfio = 'vfio-pci';

export class KernelDouble {
  readonly root = mkdtempSync(join(tmpdir(), 'retrovf-test-kernel-'));
  readonly machine: Machine;
  /** Every write and every program run, in order. */
  readonly asked: string[] = [];
  /**
   * By number of the request, from 0: the errno with which it is refused, or no answer in time,
   * without (`silence`) or with (`late`) an effect.
   */
  readonly faults = new Map<number, string>();
  /** Called before each request. */
  onRequest: () => void = () => {};
  #usual: string | null;
  readonly #netdev: Beginning['netdev'];
  readonly #iommu: boolean;

  constructor(beginning: Beginning = {}) {
    const { driver = 'virtio-pci', override = null, vfs = [], autoprobe = true } = beginning;
    const { module = true, enableSriov = false, iommu = true, usual = 'virtio-pci' } = beginning;
    this.#usual = usual;
    this.#netdev = beginning.netdev;
    this.#iommu = iommu;
    for (const folder of ['sys/bus/pci/devices', 'proc', 'dev/vfio', 'modules']) {
      mkdirSync(join(this.root, folder), { recursive: true });
    }
    for (const each of ['virtio-pci', 'igb'])
      mkdirSync(this.#path(`bus/pci/drivers/${each}`), { recursive: true });
    writeFileSync(this.#path('bus/pci/drivers_probe'), '');
    if (module) this.#load(enableSriov);
    this.#addFunction(pf, override);
    const files = { sriov_totalvfs: total, sriov_numvfs: vfs.length };
    for (const [name, value] of Object.entries({
      ...files,
      sriov_drivers_autoprobe: Number(autoprobe),
    })) {
      writeFileSync(this.#path(`bus/pci/devices/${pf}/${name}`), `${value}\n`);
    }
    if (driver !== null) this.#attach(pf, driver);
    vfs.forEach((each, i) => {
      this.#addVf(i, driver === vfio ? vfio : null);
      if (each !== null) this.#attach(vfAddress(i), each);
    });
    this.machine = thisMachine({
      sysfs: new Sysfs(join(this.root, 'sys')),
      writer: this,
      proc: join(this.root, 'proc'),
      dev: join(this.root, 'dev'),
      modules: join(this.root, 'modules'),
      run: async (file, args) => {
        const errno = await this.#request([file, ...args].join(' '), { timeoutMs: 1000 });
        if (errno !== null) return { code: 1, stdout: '', stderr: errno };
        if (args[0] === '-r') rmSync(this.#path('module/vfio_pci'), { recursive: true });
        else this.#load(false);
        return { code: 0, stdout: '', stderr: '' };
      },
    });
  }

  /** All that set-up may change, in one value. */
  state(): unknown {
    const devices = readdirSync(this.#path('bus/pci/devices')).sort();
    const parameter = this.#path('module/vfio_pci/parameters/enable_sriov');
    return {
      functions: devices.map((bdf) => [bdf, this.#driver(bdf), this.#read(bdf, 'driver_override')]),
      vfs: this.#read(pf, 'sriov_numvfs'),
      autoprobe: this.#read(pf, 'sriov_drivers_autoprobe'),
      enableSriov: existsSync(parameter) ? readFileSync(parameter, 'latin1').trim() : null,
    };
  }

  drivers(): (string | null)[] {
    return readdirSync(this.#path('bus/pci/devices'))
      .sort()
      .map((bdf) => this.#driver(bdf));
  }

  /** A process of this host that has a node open. */
  addHolder(pid: number, name: string, node: string): void {
    const folder = join(this.root, 'proc', String(pid));
    mkdirSync(join(folder, 'fd'), { recursive: true });
    writeFileSync(join(folder, 'comm'), `${name}\n`);
    symlinkSync(join(this.root, 'dev', node), join(folder, 'fd/9'));
  }

  /** Another member of the PF's IOMMU group. */
  addNeighbour(bdf: string, driver: string | null): void {
    this.#addFunction(bdf, null);
    if (driver !== null) this.#attach(bdf, driver);
    writeFileSync(this.#path(`kernel/iommu_groups/${groupOf(pf)}/devices/${bdf}`), '');
  }

  remove(): void {
    rmSync(this.root, { recursive: true, force: true });
  }

  async write(file: string, text: string, options: WriteOptions): Promise<void> {
    options.signal?.throwIfAborted();
    const errno = await this.#request(`${text.trim()} > ${file}`, options);
    const late = this.faults.get(this.asked.length - 1) === 'late';
    const refusal = errno === null || late ? this.#write(file, text) : null;
    if (errno !== null) throw new WriteRefused(file, errno);
    if (refusal !== null) throw new WriteRefused(file, refusal);
  }

  async #request(what: string, { timeoutMs }: WriteOptions): Promise<string | null> {
    this.onRequest();
    const fault = this.faults.get(this.asked.push(what) - 1);
    if (fault !== 'silence' && fault !== 'late') return fault ?? null;
    await new Promise((resolve) => setTimeout(resolve, timeoutMs));
    return 'ETIMEDOUT';
  }

  /** The errno with which the kernel refuses, or null. */
  #write(file: string, text: string): string | null {
    const path = this.#path(file);
    // The folders of drivers and functions have more files than are worth keeping here.
    if (!existsSync(dirname(path))) return 'ENOENT';
    const value = text.trim();
    const bdf = file.startsWith('bus/pci/devices/') ? this.#functionOf(dirname(path)) : value;
    switch (basename(file)) {
      case 'enable_sriov':
        writeFileSync(path, `${value}\n`);
        return null;
      case 'sriov_drivers_autoprobe':
        writeFileSync(path, `${value}\n`);
        return null;
      case 'driver_override':
        writeFileSync(path, `${value === '' ? '(null)' : value}\n`);
        return null;
      case 'unbind':
        return this.#unbind(value);
      case 'bind':
        return this.#bind(value, basename(dirname(path)));
      case 'drivers_probe':
        return this.#probe(value);
      case 'sriov_numvfs':
        return this.#setVfs(bdf, Number(value));
      default:
        return 'ENOENT';
    }
  }

  #unbind(bdf: string): string | null {
    if (this.#driver(bdf) === null) return 'ENODEV';
    // Both drivers take the VFs of a PF away with themselves.
    if (bdf === pf) this.#removeVfs();
    rmSync(this.#path(`bus/pci/devices/${bdf}/driver`));
    rmSync(this.#path(`bus/pci/devices/${bdf}/virtio0`), { recursive: true, force: true });
    return null;
  }

  #bind(bdf: string, driver: string): string | null {
    const override = this.#read(bdf, 'driver_override');
    if (override !== '(null)' && override !== driver) return 'ENODEV';
    if (override === '(null)' && driver !== this.#usual) return 'ENODEV';
    if (this.#driver(bdf) !== null) return 'EBUSY';
    return this.#take(bdf, driver);
  }

  #probe(bdf: string): string | null {
    if (!existsSync(this.#path(`bus/pci/devices/${bdf}`))) return 'ENODEV';
    if (this.#driver(bdf) !== null) return null;
    const override = this.#read(bdf, 'driver_override');
    const driver = override === '(null)' ? this.#usual : override;
    const known = driver !== null && existsSync(this.#path(`bus/pci/drivers/${driver}`));
    return known ? this.#take(bdf, driver) : null;
  }

  #take(bdf: string, driver: string): string | null {
    if (driver === vfio && !this.#iommu) return 'EINVAL';
    if (driver === vfio && bdf === pf && this.#read(pf, 'sriov_numvfs') !== '0') return 'EBUSY';
    this.#attach(bdf, driver);
    return null;
  }

  #setVfs(bdf: string, count: number): string | null {
    const now = Number(this.#read(bdf, 'sriov_numvfs'));
    if (count > total) return 'ERANGE';
    if (count === now) return null;
    const driver = this.#driver(bdf);
    const parameter = this.#path('module/vfio_pci/parameters/enable_sriov');
    if (driver === null) return 'ENOENT';
    if (driver === vfio && readFileSync(parameter, 'latin1').trim() !== 'Y') return 'ENOENT';
    if (count === 0) {
      this.#removeVfs();
      return null;
    }
    if (now !== 0) return 'EBUSY';
    writeFileSync(this.#path(`bus/pci/devices/${bdf}/sriov_numvfs`), `${count}\n`);
    const override = driver === vfio ? vfio : null;
    const probed = override !== null || this.#read(bdf, 'sriov_drivers_autoprobe') === '1';
    for (let i = 0; i < count; i += 1) {
      this.#addVf(i, override);
      if (probed) this.#probe(vfAddress(i));
    }
    return null;
  }

  #removeVfs(): void {
    const count = Number(this.#read(pf, 'sriov_numvfs'));
    for (let i = 0; i < count; i += 1) {
      rmSync(this.#path(`bus/pci/devices/${pf}/virtfn${i}`));
      rmSync(this.#path(`bus/pci/devices/${vfAddress(i)}`), { recursive: true });
    }
    writeFileSync(this.#path(`bus/pci/devices/${pf}/sriov_numvfs`), '0\n');
  }

  #load(enableSriov: boolean): void {
    mkdirSync(this.#path('module/vfio_pci/parameters'), { recursive: true });
    writeFileSync(
      this.#path('module/vfio_pci/parameters/enable_sriov'),
      enableSriov ? 'Y\n' : 'N\n',
    );
    mkdirSync(this.#path(`bus/pci/drivers/${vfio}`), { recursive: true });
  }

  #addVf(index: number, override: string | null): void {
    const bdf = vfAddress(index);
    this.#addFunction(bdf, override);
    symlinkSync(`../${pf}`, this.#path(`bus/pci/devices/${bdf}/physfn`));
    symlinkSync(`../${bdf}`, this.#path(`bus/pci/devices/${pf}/virtfn${index}`));
  }

  #addFunction(bdf: string, override: string | null): void {
    const folder = this.#path(`bus/pci/devices/${bdf}`);
    mkdirSync(folder, { recursive: true });
    const files = { ...virtioFunction(), driver_override: `${override ?? '(null)'}\n` };
    for (const [name, text] of Object.entries(files)) writeFileSync(join(folder, name), text);
    if (!this.#iommu) return;
    const group = `kernel/iommu_groups/${groupOf(bdf)}`;
    mkdirSync(this.#path(`${group}/devices`), { recursive: true });
    writeFileSync(this.#path(`${group}/devices/${bdf}`), '');
    symlinkSync(`../../../../${group}`, join(folder, 'iommu_group'));
  }

  #attach(bdf: string, driver: string): void {
    symlinkSync(`../../drivers/${driver}`, this.#path(`bus/pci/devices/${bdf}/driver`));
    if (bdf !== pf || driver !== 'virtio-pci' || this.#netdev === undefined) return;
    const net = this.#path(`bus/pci/devices/${pf}/virtio0/net/${this.#netdev.name}`);
    mkdirSync(net, { recursive: true });
    writeFileSync(join(net, 'flags'), this.#netdev.up ? '0x1003\n' : '0x1002\n');
  }

  #functionOf(folder: string): string {
    return basename(realpathSync(folder));
  }

  #driver(bdf: string): string | null {
    const link = this.#path(`bus/pci/devices/${bdf}/driver`);
    return existsSync(dirname(link)) && readdirSync(dirname(link)).includes('driver')
      ? basename(readlinkSync(link))
      : null;
  }

  #read(bdf: string, name: string): string {
    return readFileSync(this.#path(`bus/pci/devices/${bdf}/${name}`), 'latin1').trim();
  }

  #path(file: string): string {
    return join(this.root, 'sys', file);
  }
}

export const vfAddress = (index: number): string => `0000:5e:01.${index}`;

/** Each function has a group of its own. */
export const groupOf = (bdf: string): number =>
  Number.parseInt(bdf.replaceAll(/\D/g, ''), 10) % 1000;
