// Where PCI functions come from. The rest of the library cannot tell hardware from SoftNIC.

import type { FunctionEvent, PciFunction } from '../native.js';
import type { Bdf } from './bdf.js';
import type { Sysfs } from './sysfs.js';

export interface Host {
  readonly sysfs: Sysfs;
  /** Drivers that a function may be bound to for `open` to work. */
  readonly openableDrivers: readonly string[];
  /** Takes a function; its close() gives it back. What happens to it meanwhile goes to `onEvent`. */
  open(bdf: Bdf, onEvent: (event: FunctionEvent) => void): PciFunction | Promise<PciFunction>;
  close(): Promise<void>;
}
