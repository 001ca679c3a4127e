// How kicks that arrive by eventfd are waited for: one thread for all devices of the process.

import { native } from '../addon.js';
import { attempt, badArgument } from '../errors.js';

export type DoorbellOptions =
  /** Sleeps between kicks: the default. */
  | { readonly mode: 'blocking'; readonly cpu?: number }
  /** Looks without sleeping for `spinMicros` after the last kick, then sleeps. */
  | { readonly mode: 'adaptive'; readonly spinMicros: number; readonly cpu?: number }
  /** Never sleeps, and so takes a whole CPU. */
  | { readonly mode: 'busy'; readonly cpu?: number };

/** Longest time to spin: beyond a second it is not the next kick that is waited for. */
export const maxSpinMicros = 1_000_000;

/**
 * Starts the thread that takes kicks from the eventfds of clients, in another way than blocking. To
 * be called once, before any device is served: later the thread runs, and ERR_BUSY is thrown. `cpu`
 * is the one CPU that the thread may use.
 *
 * Kicks that come as messages are not its matter (see `spinMicros` of `serve`), nor are those that
 * the kernel forwards.
 */
export function startDoorbell(options: DoorbellOptions): void {
  const { mode, cpu } = options;
  if (cpu !== undefined && !(Number.isInteger(cpu) && cpu >= 0 && cpu < 1024)) {
    throw badArgument('cpu', cpu, 'a whole number from 0 to 1023');
  }
  const spin = mode === 'adaptive' ? { spinUs: checkSpin(options.spinMicros) } : {};
  attempt(undefined, () =>
    native().startDoorbell({ mode, ...spin, ...(cpu === undefined ? {} : { cpu }) }),
  );
}

export function checkSpin(spinMicros: number): number {
  if (Number.isInteger(spinMicros) && spinMicros >= 0 && spinMicros <= maxSpinMicros) {
    return spinMicros;
  }
  throw badArgument('spinMicros', spinMicros, `a whole number from 0 to ${maxSpinMicros}`);
}
