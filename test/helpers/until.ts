// Waiting for what will happen, however busy the machine is.

import { setTimeout as sleep } from 'node:timers/promises';

/** Waits until `condition` holds; fails after `ms` with what it was to be. */
export async function until(what: string, condition: () => boolean, ms = 10_000): Promise<void> {
  const deadline = performance.now() + ms;
  while (!condition()) {
    if (performance.now() > deadline) throw new Error(`Not within ${ms} ms: ${what}`);
    await sleep(2);
  }
}
