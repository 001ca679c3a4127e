// The log: winston, silent until an application configures it. Messages are constant strings, what
// varies stands in fields; a device's logger carries its bdf.

import winston from 'winston';
import type { NativeLogLevel } from './native.js';

export type LogLevel = 'error' | 'warn' | 'info' | 'debug';
export type LogFields = Readonly<Record<string, unknown>>;

const root = winston.createLogger({ silent: true });

/** Sends the log to winston transports; without transports it is silent again. */
export function configureLogging(options: {
  level?: LogLevel;
  transports: winston.transport[];
  format?: winston.Logform.Format;
}): void {
  const { level = 'info', transports, format } = options;
  root.configure({
    level,
    transports,
    silent: transports.length === 0,
    ...(format === undefined ? {} : { format }),
  });
}

/** Waits until every line has left the process's buffers; the log is closed afterwards. */
export async function closeLogging(): Promise<void> {
  if (root.transports.length === 0) return;
  const finished = root.transports.map(
    (transport) => new Promise<void>((resolve) => transport.once('finish', () => resolve())),
  );
  root.end();
  await Promise.all(finished);
}

/** Takes a line of the native addon. */
export function logNativeLine(level: NativeLogLevel, target: string, message: string): void {
  root.log({ level, message, target });
}

/** A log whose lines carry the device they are about. */
export class DeviceLog {
  readonly #logger: winston.Logger;
  readonly #limits = new Map<string, { until: number; dropped: number }>();

  constructor(bdf: string) {
    this.#logger = root.child({ bdf });
  }

  error(message: string, fields: LogFields = {}): void {
    this.#logger.error(message, fields);
  }

  warn(message: string, fields: LogFields = {}): void {
    this.#logger.warn(message, fields);
  }

  info(message: string, fields: LogFields = {}): void {
    this.#logger.info(message, fields);
  }

  /**
   * For what a guest can cause as often as it likes: one line a second for each message, with the
   * number of those left out since.
   */
  limited(message: string, fields: () => LogFields, now = performance.now()): void {
    const limit = this.#limits.get(message);
    if (limit !== undefined && now < limit.until) {
      limit.dropped += 1;
      return;
    }
    this.#limits.set(message, { until: now + 1000, dropped: 0 });
    this.#logger.warn(message, { ...fields(), suppressed: limit?.dropped ?? 0 });
  }
}
