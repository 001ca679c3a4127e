// The SoftNIC as a host: the native device, and a folder that describes its functions as sysfs would,
// so that the prober and everything above it take the same path as on hardware.

import { mkdtemp, mkdir, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { native } from '../addon.js';
import { attempt, closed } from '../errors.js';
import type {
  PciFunction,
  SoftNic,
  SoftNicFault,
  SoftNicOptions,
  SoftNicStats,
} from '../native.js';
import { configOffset } from '../pci/capabilities.js';
import { parseBdf, type Bdf } from './bdf.js';
import type { Host } from './host.js';
import { Sysfs } from './sysfs.js';

const driver = 'softnic';
const defaultTotalVfs = 64;

/** An SR-IOV virtio-net device in software, with its own folder in the shape of /sys. */
export class SoftNicHost implements Host {
  readonly sysfs: Sysfs;
  readonly openableDrivers = [driver];
  /** BDF of the PF. */
  readonly owner: Bdf;
  readonly #nic: SoftNic;
  readonly #totalVfs: number;
  readonly #listed = new Map<Bdf, FunctionFacts>();
  #closing: Promise<void> | undefined;

  private constructor(nic: SoftNic, root: string, totalVfs: number) {
    this.#nic = nic;
    this.#totalVfs = totalVfs;
    this.owner = parseBdf(nic.owner);
    this.sysfs = new Sysfs(root);
  }

  /** Makes a SoftNIC, by default with one VF and no uplink. */
  static async create(options: SoftNicOptions = {}): Promise<SoftNicHost> {
    const { totalVfs = defaultTotalVfs } = options;
    const nic = attempt(options.bdf, () => new (native().SoftNic)({ ...options, totalVfs }));
    const root = await mkdtemp(join(tmpdir(), 'retrovf-sysfs-'));
    const host = new SoftNicHost(nic, root, totalVfs);
    try {
      await host.#describe();
      return host;
    } catch (error) {
      await host.close();
      throw error;
    }
  }

  /** BDFs of the enabled VFs, VF 1 first. */
  members(): Bdf[] {
    return attempt(this.owner, () => this.#nic.members()).map(parseBdf);
  }

  /** Enables another number of VFs, as writing sriov_numvfs does. */
  async setNumVfs(count: number): Promise<void> {
    attempt(this.owner, () => this.#nic.setNumVfs(count));
    await this.#describe();
  }

  open(bdf: Bdf): PciFunction {
    if (this.#closing !== undefined) throw closed('The SoftNIC', this.owner);
    return attempt(bdf, () => this.#nic.open(bdf));
  }

  /** Makes the SoftNIC fail, as real devices do. */
  inject(fault: SoftNicFault): void {
    attempt(this.owner, () => this.#nic.inject(fault));
  }

  clearFaults(): void {
    attempt(this.owner, () => this.#nic.clearFaults());
  }

  /** Frames and kicks of each function. */
  stats(): SoftNicStats[] {
    return attempt(this.owner, () => this.#nic.stats());
  }

  /** Ends the device and removes its folder. Close what was opened from it first. */
  close(): Promise<void> {
    this.#closing ??= (async () => {
      this.#nic.close();
      await rm(this.sysfs.root, { recursive: true, force: true });
    })();
    return this.#closing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** Reads what sysfs tells about a function from the function itself. */
  async #learn(bdf: Bdf): Promise<FunctionFacts> {
    let facts = this.#listed.get(bdf);
    if (facts === undefined) {
      const fn = this.open(bdf);
      try {
        facts = {
          config: fn.configRead(0, fn.configSize),
          bars: [0, 1, 2, 3, 4, 5].map((index) => fn.region(index).size),
        };
      } finally {
        await fn.close();
      }
      this.#listed.set(bdf, facts);
    }
    return facts;
  }

  async #describe(): Promise<void> {
    const members = this.members();
    const devices = join(this.sysfs.root, 'bus/pci/devices');
    await rm(devices, { recursive: true, force: true });
    await mkdir(join(this.sysfs.root, 'bus/pci/drivers', driver), { recursive: true });
    for (const [index, bdf] of [this.owner, ...members].entries()) {
      const folder = join(devices, bdf);
      await mkdir(folder, { recursive: true });
      await writeFacts(folder, await this.#learn(bdf));
      await symlink(`../../drivers/${driver}`, join(folder, 'driver'));
      await symlink(`../../../../kernel/iommu_groups/${index}`, join(folder, 'iommu_group'));
      if (bdf !== this.owner) await symlink(`../${this.owner}`, join(folder, 'physfn'));
    }
    const folder = join(devices, this.owner);
    await writeFile(join(folder, 'sriov_totalvfs'), `${this.#totalVfs}\n`);
    await writeFile(join(folder, 'sriov_numvfs'), `${members.length}\n`);
    for (const [index, bdf] of members.entries()) {
      await symlink(`../${bdf}`, join(folder, `virtfn${index}`));
    }
  }
}

interface FunctionFacts {
  readonly config: Buffer;
  readonly bars: readonly number[];
}

async function writeFacts(folder: string, { config, bars }: FunctionFacts): Promise<void> {
  const hex = (value: number, digits: number) => `0x${value.toString(16).padStart(digits, '0')}`;
  const text: Record<string, string> = {
    vendor: hex(config.readUInt16LE(0), 4),
    device: hex(config.readUInt16LE(configOffset.deviceId), 4),
    revision: hex(config.readUInt8(configOffset.revision), 2),
    class: hex(config.readUIntLE(configOffset.revision + 1, 3), 6),
    subsystem_vendor: hex(config.readUInt16LE(configOffset.subsystemVendor), 4),
    subsystem_device: hex(config.readUInt16LE(configOffset.subsystem), 4),
    resource: resourceLines(bars).join('\n'),
  };
  for (const [name, value] of Object.entries(text))
    await writeFile(join(folder, name), `${value}\n`);
  await writeFile(join(folder, 'config'), config);
}

const ioresourceMem = 0x200;

/** Six BARs and the ROM. The addresses are made up; only sizes mean something here. */
function resourceLines(bars: readonly number[]): string[] {
  const word = (value: number) => `0x${value.toString(16).padStart(16, '0')}`;
  return [...bars, 0].map((size, index) => {
    if (size === 0) return [0, 0, 0].map(word).join(' ');
    const start = 0x1_0000_0000 * (index + 1);
    return [start, start + size - 1, ioresourceMem].map(word).join(' ');
  });
}
