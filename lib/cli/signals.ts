// The one place that handles signals. The first one asks the command to end,
// the second one ends the process where it stands.

import { constants } from 'node:os';

export type SignalName = 'SIGINT' | 'SIGTERM';

/** Why a command was asked to end. */
export class Interruption extends Error {
  override readonly name = 'Interruption';
  readonly code = 'ERR_INTERRUPTED';
  readonly exitCode: number;

  constructor(signal: SignalName) {
    super(`Interrupted by ${signal}`);
    this.exitCode = 128 + constants.signals[signal];
  }
}

export interface SignalSource {
  on(name: SignalName, listener: () => void): unknown;
  off(name: SignalName, listener: () => void): unknown;
  exit(code: number): void;
}

export interface Watch extends Disposable {
  readonly signal: AbortSignal;
}

export function watchSignals(source: SignalSource): Watch {
  const controller = new AbortController();
  const listeners = (['SIGINT', 'SIGTERM'] as const).map((name) => {
    const listener = (): void => {
      const interruption = new Interruption(name);
      if (controller.signal.aborted) source.exit(interruption.exitCode);
      else controller.abort(interruption);
    };
    source.on(name, listener);
    return { name, listener };
  });
  return {
    signal: controller.signal,
    [Symbol.dispose]() {
      for (const { name, listener } of listeners) source.off(name, listener);
    },
  };
}
