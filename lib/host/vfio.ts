// The machine's own PCI functions, opened over VFIO.

import { randomUUID } from 'node:crypto';
import { native } from '../addon.js';
import { attemptAsync, badArgument } from '../errors.js';
import type { FunctionEvent, PciFunction } from '../native.js';
import type { Bdf } from './bdf.js';
import type { Host } from './host.js';
import { Sysfs } from './sysfs.js';

export interface VfioOptions {
  sysfs?: Sysfs;
  /** The folder of device nodes, default /dev. */
  dev?: string;
  /** By a function's IOMMU group, by its own node with iommufd, or by the latter where it exists. */
  via?: 'auto' | 'group' | 'cdev';
  /**
   * A UUID, set on each PF and given for its VFs, which nobody else can open then; default random.
   * Needed where another process holds the PF.
   */
  vfToken?: string;
}

const uuid = /^[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}$/i;

export class VfioHost implements Host {
  readonly sysfs: Sysfs;
  readonly openableDrivers = ['vfio-pci'];
  readonly #options: { via: string; vfToken: string; sys: string; dev: string };

  constructor(options: VfioOptions = {}) {
    const { sysfs = new Sysfs(), dev = '/dev', via = 'auto', vfToken = randomUUID() } = options;
    if (!uuid.test(vfToken)) throw badArgument('vfToken', '(not shown)', 'a UUID');
    this.sysfs = sysfs;
    this.#options = { via, vfToken, sys: sysfs.root, dev };
  }

  /** Opens a function that is bound to vfio-pci. This resets it, and with a PF all of its VFs. */
  open(bdf: Bdf, onEvent: (event: FunctionEvent) => void = () => {}): Promise<PciFunction> {
    return attemptAsync(bdf, async () =>
      native().PciFunction.open(bdf, this.#options, (event) => onEvent(event)),
    );
  }

  /** What was opened stays open. */
  async close(): Promise<void> {}

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}
