// Where PCI functions come from. The rest of the library cannot tell hardware from SoftNIC.

import { backendUnavailable } from '../errors.js';
import type { PciFunction } from '../native.js';
import type { Bdf } from './bdf.js';
import { Sysfs } from './sysfs.js';

export interface Host {
  readonly sysfs: Sysfs;
  /** Drivers that a function may be bound to for `open` to work. */
  readonly openableDrivers: readonly string[];
  /** Takes a function; its close() gives it back. */
  open(bdf: Bdf): PciFunction;
  close(): Promise<void>;
}

/** The machine's own PCI functions. Its sysfs can be probed; opening functions waits for VFIO. */
export class VfioHost implements Host {
  readonly sysfs: Sysfs;
  readonly openableDrivers = ['vfio-pci'];

  constructor(sysfs: Sysfs = new Sysfs()) {
    this.sysfs = sysfs;
  }

  /** Always throws ERR_BACKEND_UNAVAILABLE: this version has no VFIO backend. */
  open(bdf: Bdf): PciFunction {
    throw backendUnavailable(bdf);
  }

  async close(): Promise<void> {}

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}
