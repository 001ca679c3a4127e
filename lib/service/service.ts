// Many devices: each owner opened once, each device on its own socket, one failure beside the others.

import { closed, messageOf, nativeFailure, RetroVfError } from '../errors.js';
import { parseBdf, type Bdf } from '../host/bdf.js';
import type { Host } from '../host/host.js';
import { judge, readSubject } from '../host/prober.js';
import { OwnerDevice, type OwnerOptions } from '../owner-device.js';
import { openDevice, type Device } from '../passthrough-device.js';
import type { Presentation } from '../pci/overlay.js';
import { serve, type Served } from './serve.js';

export interface ServiceEntry {
  readonly bdf: string;
  /** Absolute path of the socket to create. */
  readonly path: string;
  readonly presentation?: Presentation;
}

export interface ServiceOptions {
  /** Aborts the start; what was opened by then is closed again. */
  signal?: AbortSignal;
  accessTimeoutMs?: number;
  /** As of `serve`, for every device. */
  spinMicros?: number;
  /** For every PF. */
  owner?: Omit<OwnerOptions, 'signal'>;
}

/** An entry that could not be served. */
export interface ServiceFailure {
  readonly bdf: string;
  readonly path: string;
  readonly error: RetroVfError;
}

/**
 * Serves devices, each on its own socket. A device that fails stands in `failures` and does not keep
 * the others from starting.
 */
export async function serveAll(
  host: Host,
  entries: readonly ServiceEntry[],
  options: ServiceOptions = {},
): Promise<Service> {
  const service = new Service(host, options);
  try {
    for (const entry of entries) await service.add(entry);
    return service;
  } catch (error) {
    await service.close();
    throw error;
  }
}

export class Service {
  readonly #host: Host;
  readonly #options: ServiceOptions;
  readonly #owners = new Map<Bdf, OwnerDevice>();
  readonly #served: Served[] = [];
  readonly #failures: ServiceFailure[] = [];
  #adding: Promise<void> = Promise.resolve();
  #closing: Promise<void> | undefined;

  /** Use `serveAll`. */
  constructor(host: Host, options: ServiceOptions) {
    this.#host = host;
    this.#options = options;
  }

  get served(): readonly Served[] {
    return this.#served;
  }

  get failures(): readonly ServiceFailure[] {
    return this.#failures;
  }

  get owners(): readonly OwnerDevice[] {
    return [...this.#owners.values()];
  }

  /** Opens and serves one more device; a failure is recorded, an abort is thrown. */
  add(entry: ServiceEntry): Promise<void> {
    if (this.#closing !== undefined) return Promise.reject(closed('The service'));
    // One after another: two VFs of one PF must not open it twice.
    const added = this.#adding.then(() => this.#add(entry));
    this.#adding = added.catch(() => {});
    return added;
  }

  /** Brings every failed owner up again; throws the first failure after all were tried. */
  async recover(options: { signal?: AbortSignal } = {}): Promise<void> {
    const results = await Promise.allSettled(this.owners.map((owner) => owner.recover(options)));
    const failed = results.find((result) => result.status === 'rejected');
    if (failed !== undefined) throw failed.reason;
  }

  /** Sockets first, then the VFs, the PFs last: closing a PF resets its VFs. */
  close(): Promise<void> {
    this.#closing ??= (async () => {
      await this.#adding;
      const closing = [
        () => this.#served.map((served) => served.close()),
        () => this.#served.map((served) => served.device.close()),
        () => this.owners.map((owner) => owner.close()),
      ];
      const errors: unknown[] = [];
      for (const step of closing) {
        for (const result of await Promise.allSettled(step())) {
          if (result.status === 'rejected') errors.push(result.reason);
        }
      }
      if (errors.length > 0) throw errors[0];
    })();
    return this.#closing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** The host takes functions away, and waits until they are closed; the others go on. */
  async #giveBack(served: readonly Served[], owner?: OwnerDevice): Promise<void> {
    for (const { device } of served) {
      device.log.warn('Device is closed: the host wants its function back');
    }
    try {
      await Promise.all(served.map((each) => each.close()));
      await Promise.all(served.map(({ device }) => device.close()));
      await owner?.close();
    } catch (error) {
      (owner ?? served[0]?.device)?.log.error('Function is not given back', {
        reason: messageOf(error),
      });
    }
    const gone = new Set(served);
    this.#served.splice(0, Infinity, ...this.#served.filter((each) => !gone.has(each)));
    if (owner !== undefined) this.#owners.delete(owner.bdf);
  }

  async #add(entry: ServiceEntry): Promise<void> {
    const { signal, accessTimeoutMs, spinMicros } = this.#options;
    signal?.throwIfAborted();
    let device: Device | undefined;
    try {
      device = await this.#open(entry);
      const timing = {
        ...(accessTimeoutMs !== undefined && { accessTimeoutMs }),
        ...(spinMicros !== undefined && { spinMicros }),
      };
      const served = serve(device, { path: entry.path, ...timing });
      this.#served.push(served);
      device.once('unplug-requested', () => void this.#giveBack([served]));
    } catch (error) {
      await device?.close();
      signal?.throwIfAborted();
      const failure = nativeFailure(error, entry.bdf);
      this.#failures.push({ bdf: entry.bdf, path: entry.path, error: failure });
    }
  }

  async #open(entry: ServiceEntry): Promise<Device> {
    const { signal, accessTimeoutMs } = this.#options;
    const owner = await this.#ownerOf(parseBdf(entry.bdf));
    return openDevice(this.#host, entry.bdf, {
      ...(owner && { owner }),
      ...(entry.presentation && { presentation: entry.presentation }),
      ...(signal && { signal }),
      ...(accessTimeoutMs && { accessTimeoutMs }),
    });
  }

  /** The shared PF of a VF that may become transitional; else openDevice finds the reason itself. */
  async #ownerOf(bdf: Bdf): Promise<OwnerDevice | undefined> {
    const subject = await readSubject(this.#host, bdf);
    const address = subject.info.physfn;
    if (judge(subject, this.#host.openableDrivers).kind !== 'unverified' || address === null) {
      return undefined;
    }
    let owner = this.#owners.get(address);
    if (owner === undefined) {
      const { signal, owner: ownerOptions = {} } = this.#options;
      try {
        owner = await OwnerDevice.open(this.#host, address, {
          ...ownerOptions,
          ...(signal && { signal }),
        });
      } catch (error) {
        if (error instanceof RetroVfError && error.code === 'ERR_OWNER_NO_ADMIN_VQ')
          return undefined;
        throw error;
      }
      this.#owners.set(address, owner);
      const opened = owner;
      owner.once('unplug-requested', () => {
        const members = this.#served.filter(
          ({ device }) => device.kind === 'transitional' && device.owner === opened,
        );
        void this.#giveBack(members, opened);
      });
    }
    return owner;
  }
}
