// One device on one vfio-user socket.

import { EventEmitter } from 'node:events';
import { isAbsolute } from 'node:path';
import { native } from '../addon.js';
import { attempt, attemptAsync, badArgument } from '../errors.js';
import type { ServedDeviceCounters, ServerEvent, VfioUserServer } from '../native.js';
import type { Device } from '../passthrough-device.js';
import { checkSpin } from './doorbell.js';

export interface ServeOptions {
  /** Absolute path of the socket to create. */
  path: string;
  /** A client's register access is answered after this time, come what may. */
  accessTimeoutMs?: number;
  /**
   * After a request of the client, look for the next one so long before sleeping; default 0. A client
   * that kicks often is served without a wake-up, at the price of the CPU time.
   */
  spinMicros?: number;
}

export type SessionState =
  | { readonly kind: 'listening' }
  | { readonly kind: 'connected' }
  | { readonly kind: 'closed' };

export interface ServedEvents {
  event: [kind: ServerEvent, detail: string];
  closed: [];
}

// What fits in sun_path with its terminating zero.
const maxPath = 107;

/** Makes a device available to a VMM: one client at a time, which may come again. */
export function serve(device: Device, options: ServeOptions): Served {
  const { path } = options;
  if (!isAbsolute(path) || Buffer.byteLength(path) > maxPath) {
    throw badArgument('path', path, `absolute and at most ${maxPath} bytes`);
  }
  return new Served(device, options);
}

export class Served extends EventEmitter<ServedEvents> {
  readonly device: Device;
  readonly path: string;
  readonly #server: VfioUserServer;
  #state: SessionState = { kind: 'listening' };
  #closing: Promise<void> | undefined;

  /** Use `serve`. */
  constructor(device: Device, { path, accessTimeoutMs = 1000, spinMicros = 0 }: ServeOptions) {
    super();
    this.device = device;
    this.path = path;
    const timing = { path, accessTimeoutMs, spinUs: checkSpin(spinMicros) };
    this.#server = attempt(
      device.bdf,
      () =>
        new (native().VfioUserServer)(device.served, timing, (kind, detail) =>
          this.#onEvent(kind, detail),
        ),
    );
    device.log.info('Device is served', { path, kind: device.kind });
  }

  get state(): SessionState {
    return this.#state;
  }

  /** Counted since the device was opened, over all sessions. */
  counters(): ServedDeviceCounters {
    return this.device.stats().served;
  }

  /** Ends the session and removes the socket; the device stays open. */
  close(): Promise<void> {
    this.#closing ??= (async () => {
      await attemptAsync(this.device.bdf, () => this.#server.close());
      this.#state = { kind: 'closed' };
      this.emit('closed');
    })();
    return this.#closing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #onEvent(kind: ServerEvent, detail: string): void {
    if (kind === 'client-connected') this.#state = { kind: 'connected' };
    if (kind === 'client-disconnected') this.#state = { kind: 'listening' };
    this.device.log.info('Client event', { event: kind, detail });
    this.emit('event', kind, detail);
    this.device.emit(kind, detail);
  }
}
