// A VF served as it is: no legacy registers, nothing overlaid.

import { attempt, RetroVfError } from './errors.js';
import { GuestDevice } from './guest-device.js';
import { parseBdf, type Bdf } from './host/bdf.js';
import type { Host } from './host/host.js';
import { judge, readSubject, type PassthroughReason } from './host/prober.js';
import type { ServedDeviceCounters, ServedDeviceOptions } from './native.js';
import { findMsix, walkCapabilities } from './pci/capabilities.js';
import { TransitionalDevice, type TransitionalOptions } from './transitional-device.js';

/** Why a device is plain passthrough; 'requested': nothing speaks against more. */
export interface PassthroughCause {
  readonly reason: PassthroughReason | 'requested';
  readonly detail: string;
  readonly hint: string;
}

export interface PassthroughStats {
  readonly kind: 'passthrough';
  readonly reason: PassthroughCause['reason'];
  readonly served: ServedDeviceCounters;
}

export class PassthroughDevice extends GuestDevice {
  readonly kind = 'passthrough';
  /** Why it is not transitional. */
  readonly cause: PassthroughCause;

  private constructor(bdf: Bdf, served: ServedDeviceOptions, cause: PassthroughCause) {
    super(bdf, served);
    this.cause = cause;
  }

  /** Opens a function of whatever kind as it is. */
  static async open(
    host: Host,
    bdf: string,
    options: { cause?: PassthroughCause; signal?: AbortSignal } = {},
  ): Promise<PassthroughDevice> {
    const { signal } = options;
    signal?.throwIfAborted();
    const address = parseBdf(bdf);
    const cause = options.cause ?? (await causeOf(host, address));
    signal?.throwIfAborted();
    let device: PassthroughDevice | undefined;
    const fn = await host.open(address, (event) => device?.emit(event));
    try {
      device = attempt(address, () => {
        const config = fn.configRead(0, fn.configSize);
        const msix = findMsix(config, walkCapabilities(config));
        const served: ServedDeviceOptions = {
          member: fn,
          overlay: [],
          configSize: fn.configSize,
          ...(msix === null ? {} : { msixCapability: msix.offset }),
        };
        return new PassthroughDevice(address, served, cause);
      });
      return device;
    } catch (error) {
      await fn.close();
      throw error;
    }
  }

  stats(): PassthroughStats {
    return { kind: 'passthrough', reason: this.cause.reason, served: this.counters() };
  }

  protected override async release(): Promise<void> {}
}

export type Device = TransitionalDevice | PassthroughDevice;

/** Opens a VF as a transitional device if it can be one, else as plain passthrough that says why. */
export async function openDevice(
  host: Host,
  bdf: string,
  options: TransitionalOptions = {},
): Promise<Device> {
  try {
    return await TransitionalDevice.open(host, bdf, options);
  } catch (error) {
    if (!(error instanceof RetroVfError) || error.code !== 'ERR_NOT_TRANSITIONAL') throw error;
    const cause = {
      reason: error.detail['reason'] as PassthroughReason,
      detail: error.message,
      hint: error.hint,
    };
    const { signal } = options;
    const device = await PassthroughDevice.open(host, bdf, { cause, ...(signal && { signal }) });
    device.log.warn('Device is served as plain passthrough', { reason: cause.reason });
    return device;
  }
}

async function causeOf(host: Host, bdf: Bdf): Promise<PassthroughCause> {
  const verdict = judge(await readSubject(host, bdf), host.openableDrivers);
  if (verdict.kind === 'passthrough') return verdict;
  return { reason: 'requested', detail: 'passthrough was asked for', hint: 'Use openDevice().' };
}
