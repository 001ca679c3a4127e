// Runs the steps of a demonstration one after another: times them, counts what the guest did and the
// admin commands that it took, and undoes everything at the end, whatever happened.

import type { CommandTrace, TransitionalDevice } from '../../index.js';
import { abortable } from '../../wait.js';
import { describeFailure, type Failure } from '../failure.js';

export interface TraceLine {
  /** What the guest did; empty for a command of our own. */
  readonly access: string;
  readonly command: string;
  readonly meaning: string;
}

export interface DemoStep {
  readonly name: string;
  readonly ok: boolean;
  readonly ms: number;
  /** What came of it, in a line. */
  readonly result: string;
  /** Accesses of the guest to legacy registers, notifications included. */
  readonly accesses: number;
  readonly commands: number;
  readonly trace: readonly TraceLine[];
  readonly error?: Failure;
}

export interface Progress {
  started(name: string): void;
  finished(step: DemoStep): void;
}

export interface Outcome<T> {
  readonly value: T;
  readonly result: string;
  readonly trace?: (commands: readonly CommandTrace[]) => readonly TraceLine[];
}

/** A step failed; what it was is in its `DemoStep`. */
export class StepFailed extends Error {
  override readonly name = 'StepFailed';
}

class StepTimeout extends Error {
  override readonly name = 'StepTimeout';
  readonly code = 'ERR_STEP_TIMEOUT';
}

const longestStepMs = 10_000;

export class Stage {
  readonly steps: DemoStep[] = [];
  /** The device whose accesses are counted. */
  device: TransitionalDevice | undefined;
  readonly #commands: CommandTrace[] = [];
  readonly #undo: (() => void | Promise<void>)[] = [];
  readonly #progress: Progress;
  readonly #signal: AbortSignal;

  constructor(progress: Progress, signal: AbortSignal) {
    this.#progress = progress;
    this.#signal = signal;
  }

  readonly onCommand = (trace: CommandTrace): void => void this.#commands.push(trace);

  /** What is deferred last is undone first. */
  defer(undo: () => void | Promise<void>): void {
    this.#undo.push(undo);
  }

  /** Throws `StepFailed`, or the signal's reason. */
  async step<T>(name: string, work: (signal: AbortSignal) => Promise<Outcome<T>>): Promise<T> {
    this.#signal.throwIfAborted();
    this.#progress.started(name);
    this.#commands.length = 0;
    const before = this.#accesses();
    const start = performance.now();
    const finish = (rest: Pick<DemoStep, 'ok' | 'result' | 'trace' | 'error'>): void => {
      const step = {
        name,
        ms: Math.round((performance.now() - start) * 100) / 100,
        accesses: this.#accesses() - before,
        commands: this.#commands.length,
        ...rest,
      };
      this.steps.push(step);
      this.#progress.finished(step);
    };
    const limit = AbortSignal.timeout(longestStepMs);
    try {
      const signal = AbortSignal.any([this.#signal, limit]);
      const { value, result, trace } = await abortable(work(signal), signal);
      finish({ ok: true, result, trace: trace?.(this.#commands) ?? [] });
      return value;
    } catch (error) {
      this.#signal.throwIfAborted();
      const failure = describeFailure(limit.aborted ? tookTooLong() : error);
      finish({ ok: false, result: failure.message, trace: [], error: failure });
      throw new StepFailed(name, { cause: error });
    }
  }

  /** Undoes all that can be undone; throws the first failure. */
  async clear(): Promise<void> {
    const errors: unknown[] = [];
    for (let undo = this.#undo.pop(); undo !== undefined; undo = this.#undo.pop()) {
      try {
        await undo();
      } catch (error) {
        errors.push(error);
      }
    }
    if (errors.length > 0) throw errors[0];
  }

  #accesses(): number {
    if (this.device === undefined) return 0;
    const { controlReads, controlWrites, notifies } = this.device.stats().served;
    return controlReads + controlWrites + notifies;
  }
}

function tookTooLong(): StepTimeout {
  return new StepTimeout(`The step took longer than ${longestStepMs / 1000} s`);
}
