// Our own guest: a virtio 0.9.5 network driver over a vfio-user client, without a VMM.

import { native } from './addon.js';
import { attemptAsync } from './errors.js';
import type { LegacyGuest } from './native.js';

export interface ConnectOptions {
  /** Give guest memory to the device as a file, so that it can map it; default true. */
  sharedMemory?: boolean;
  /** Use MSI-X; default true. */
  msix?: boolean;
  /**
   * Notify by the eventfds of GET_REGION_IO_FDS, as a VMM lets KVM do, and not by messages; default
   * false.
   */
  ioeventfds?: boolean;
}

/** Connects a guest to a served device. */
export function connectGuest(path: string, options: ConnectOptions = {}): Promise<LegacyGuest> {
  return attemptAsync(undefined, () => native().LegacyGuest.connect(path, options));
}
