// Brings lost owners up again, with growing pauses, for as long as the service runs.

import { messageOf } from '../../errors.js';
import type { OwnerDevice } from '../../index.js';
import { delay } from '../../wait.js';

const firstPauseMs = 500;
const longestPauseMs = 30_000;

export function keepUp(owners: readonly OwnerDevice[], signal: AbortSignal): void {
  for (const owner of owners) {
    const start = (): void => void recover(owner, signal);
    owner.on('lost', start);
    if (owner.state.kind === 'failed') start();
  }
}

async function recover(owner: OwnerDevice, signal: AbortSignal): Promise<void> {
  for (let pause = firstPauseMs; ; pause = Math.min(2 * pause, longestPauseMs)) {
    try {
      await delay(pause, signal);
      await owner.recover({ signal });
      return;
    } catch (error) {
      if (signal.aborted || owner.state.kind === 'closed') return;
      owner.log.warn('Owner device could not be recovered, trying again', {
        reason: messageOf(error),
        pauseMs: Math.min(2 * pause, longestPauseMs),
      });
    }
  }
}
