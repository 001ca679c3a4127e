// What every device that a guest can get has in common: the VF, with its native half that serves
// vfio-user clients, configuration space, the BARs of the VF, reset, events.

import { EventEmitter } from 'node:events';
import { native } from './addon.js';
import { attempt, attemptAsync, closed, type RetroVfError } from './errors.js';
import type { Bdf } from './host/bdf.js';
import { DeviceLog } from './log.js';
import type {
  NativeRegionInfo,
  OnAccess,
  PciFunction,
  ServedDevice,
  ServedDeviceCounters,
  ServedDeviceOptions,
} from './native.js';

export interface DeviceEvents {
  /** The owner is lost: registers read as all ones, the data path goes on. */
  degraded: [cause: RetroVfError];
  /** The owner is back. */
  recovered: [];
  'client-connected': [detail: string];
  'client-disconnected': [detail: string];
  'client-refused': [detail: string];
  'device-reset': [detail: string];
  'access-timeout': [detail: string];
  'protocol-error': [detail: string];
  /** The host wants the function back, and waits until the device is closed. Repeated. */
  'unplug-requested': [];
  /** The bus reported an error of the function: it may not work any more. */
  'device-error': [];
  closed: [];
}

export type RegionInfo = NativeRegionInfo;

export abstract class GuestDevice extends EventEmitter<DeviceEvents> {
  /** The VF. */
  readonly bdf: Bdf;
  readonly log: DeviceLog;
  readonly #function: PciFunction;
  readonly #served: ServedDevice;
  #closing: Promise<void> | undefined;

  protected constructor(bdf: Bdf, options: ServedDeviceOptions) {
    super();
    this.bdf = bdf;
    this.log = new DeviceLog(bdf);
    this.#function = options.member;
    // Calls that were under way at close may still arrive.
    const onAccess: OnAccess = (...access) => {
      if (this.#closing === undefined) this.access(...access);
    };
    this.#served = attempt(bdf, () => new (native().ServedDevice)(options, onAccess));
  }

  /** The handle that a vfio-user server needs; not part of the public API. */
  get served(): ServedDevice {
    if (this.#closing !== undefined) throw closed('The device', this.bdf);
    return this.#served;
  }

  /** A region as the guest sees it, numbered as VFIO does; size 0: absent. */
  regionInfo(index: number): RegionInfo {
    return attempt(this.bdf, () => this.served.region(index));
  }

  /** Configuration space as the guest sees it. */
  configRead(offset: number, length: number): Buffer {
    return attempt(this.bdf, () => this.served.configRead(offset, length));
  }

  configWrite(offset: number, data: Buffer): void {
    attempt(this.bdf, () => this.served.configWrite(offset, data));
  }

  /** A BAR of the VF itself. */
  regionRead(index: number, offset: number, length: number): Buffer {
    return attempt(this.bdf, () => this.served.regionRead(index, offset, length));
  }

  regionWrite(index: number, offset: number, data: Buffer): void {
    attempt(this.bdf, () => this.served.regionWrite(index, offset, data));
  }

  /** Resets the function, as VFIO_DEVICE_RESET does: the driver in the guest has to start again. */
  async reset(): Promise<void> {
    await attemptAsync(this.bdf, async () => this.served.reset());
  }

  /** Counted by the native half. */
  protected counters(): ServedDeviceCounters {
    return attempt(this.bdf, () => this.served.counters());
  }

  /** Gives the VF back; may be called twice. Stop serving the device first. */
  close(): Promise<void> {
    this.#closing ??= (async () => {
      this.#served.close();
      await this.release();
      await attemptAsync(this.bdf, () => this.#function.close());
      this.emit('closed');
    })();
    return this.#closing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** Takes a client's access to BAR0; a device without one gets none. */
  protected access(...[id]: Parameters<OnAccess>): void {
    this.respond(id, null);
  }

  /** Answers a client's access, unless it was answered at its deadline, or the device is closed. */
  protected respond(id: number, result: Buffer | null): void {
    if (this.#closing === undefined) this.#served.respond(id, result);
  }

  /** Gives back what the kind of device holds beside the VF. */
  protected abstract release(): Promise<void>;
}
