// The order of admin commands: one at a time for each member, in the order asked; many at a time for
// an owner. Queues of one owner complete in any order, and a guest's register writes must not.

import {
  adminBacklog,
  adminFailed,
  adminShortResult,
  adminStatus,
  adminTimeout,
  nativeFailure,
  type RetroVfError,
} from './errors.js';
import {
  answerHeaderSize,
  decodeAnswer,
  encodeCommand,
  isWorthRetry,
  opcodeName,
  qualifierName,
  statusName,
  statusOk,
  type AdminCommand,
} from './virtio/admin-commands.js';

/** The part of the native admin queue that is used here. */
export interface CommandQueue {
  submit(id: number, readable: Buffer, answer: Buffer, deadlineMs: number): number;
}

/** Called once for each command: at once if the device answers at once. */
export type Done = (error: RetroVfError | null, result: Buffer | null) => void;

/** A command that ended, for who watches an owner at work. */
export interface CommandTrace {
  readonly command: AdminCommand;
  /** What the device wrote after its status; null: the command failed. */
  readonly result: Buffer | null;
  readonly error: RetroVfError | null;
}

interface Job {
  readonly command: AdminCommand;
  readonly readable: Buffer;
  readonly timeoutMs: number;
  expires: number;
  attempts: number;
  /** null: nobody waits any more. */
  done: Done | null;
}

interface Lane {
  readonly member: number;
  current: Job | null;
  readonly waiting: Job[];
  pumping: boolean;
  retry: NodeJS.Timeout | undefined;
}

const maxWaiting = 256;
const maxAttempts = 5;
const noBytes = Buffer.alloc(0);

export class AdminLanes {
  readonly #bdf: string;
  readonly #queue: CommandQueue;
  readonly #onBroken: (cause: RetroVfError) => void;
  readonly #onCommand: ((trace: CommandTrace) => void) | undefined;
  readonly #lanes = new Map<number, Lane>();
  readonly #inFlight = new Map<number, Lane>();
  #nextId = 0;
  #ended: RetroVfError | null = null;

  /** `onBroken` is called when the queue itself can no longer be trusted. */
  constructor(
    bdf: string,
    queue: CommandQueue,
    onBroken: (cause: RetroVfError) => void,
    onCommand?: (trace: CommandTrace) => void,
  ) {
    this.#bdf = bdf;
    this.#queue = queue;
    this.#onBroken = onBroken;
    this.#onCommand = onCommand;
  }

  /**
   * Sends a command after those of the same member that were asked for earlier. Returns a function
   * that gives up waiting: a command that the device has not seen yet is not sent.
   */
  run(command: AdminCommand, timeoutMs: number, done: Done): () => void {
    if (this.#ended !== null) {
      done(this.#ended, null);
      return () => {};
    }
    const lane = this.#laneOf(command.member);
    if (lane.waiting.length >= maxWaiting) {
      done(adminBacklog(this.#bdf, command.member, maxWaiting), null);
      return () => {};
    }
    const readable = encodeCommand(command);
    // Until it is sent, the commands before it have deadlines of their own.
    const job: Job = { command, readable, timeoutMs, expires: 0, attempts: 0, done };
    lane.waiting.push(job);
    this.#pump(lane);
    return () => {
      job.done = null;
    };
  }

  /** Takes what the native queue reports. */
  complete(id: number, code: string | null, written: Buffer | null): void {
    const lane = this.#inFlight.get(id);
    if (lane === undefined) return;
    this.#inFlight.delete(id);
    const job = lane.current;
    if (job === null) return;
    if (code === null) {
      this.#answered(lane, job, written ?? noBytes);
    } else {
      const about = describe(job.command);
      const error =
        code === 'ERR_ADMIN_TIMEOUT'
          ? adminTimeout(this.#bdf, about, job.timeoutMs)
          : adminFailed(this.#bdf, about, code);
      this.#settle(lane, job, error, null);
      this.#onBroken(error);
    }
    this.#pump(lane);
  }

  /** Ends every command that waits or is in flight, and all later ones, with `error`. */
  end(error: RetroVfError): void {
    if (this.#ended !== null) return;
    this.#ended = error;
    this.#inFlight.clear();
    for (const lane of this.#lanes.values()) {
      clearTimeout(lane.retry);
      const jobs = [...(lane.current === null ? [] : [lane.current]), ...lane.waiting.splice(0)];
      lane.current = null;
      for (const job of jobs) job.done?.(error, null);
    }
    this.#lanes.clear();
  }

  #laneOf(member: number): Lane {
    let lane = this.#lanes.get(member);
    if (lane === undefined) {
      lane = { member, current: null, waiting: [], pumping: false, retry: undefined };
      this.#lanes.set(member, lane);
    }
    return lane;
  }

  #pump(lane: Lane): void {
    // A command that completes at once settles inside #send, whose caller may ask for the next.
    if (lane.pumping) return;
    lane.pumping = true;
    while (lane.current === null && this.#ended === null) {
      const job = lane.waiting.shift();
      if (job === undefined) break;
      if (job.done === null) continue;
      lane.current = job;
      job.expires = performance.now() + job.timeoutMs;
      this.#send(lane, job);
    }
    lane.pumping = false;
    if (lane.current === null && lane.waiting.length === 0) this.#lanes.delete(lane.member);
  }

  #send(lane: Lane, job: Job): void {
    const id = this.#nextId;
    this.#nextId = (id + 1) % Number.MAX_SAFE_INTEGER;
    const { resultLength = 0 } = job.command;
    const remaining = Math.max(1, Math.ceil(job.expires - performance.now()));
    job.attempts += 1;
    this.#inFlight.set(id, lane);
    // Memory of ours: a buffer that native code makes costs a finalizer, and with it a microsecond.
    const answer = Buffer.allocUnsafe(answerHeaderSize + resultLength);
    let written: number;
    try {
      written = this.#queue.submit(id, job.readable, answer, remaining);
    } catch (thrown) {
      this.#inFlight.delete(id);
      const error = nativeFailure(thrown, this.#bdf);
      // Other members hold all descriptors for now.
      if (error.code === 'ERR_ADMIN_FULL' && this.#retry(lane, job, 1)) return;
      this.#settle(lane, job, error, null);
      return;
    }
    if (written < 0) return;
    this.#inFlight.delete(id);
    this.#answered(lane, job, answer.subarray(0, written));
  }

  #answered(lane: Lane, job: Job, written: Buffer): void {
    const { resultMinimum = 0 } = job.command;
    const answer = decodeAnswer(written);
    const expected = answerHeaderSize + (answer?.status === statusOk ? resultMinimum : 0);
    if (answer === null || written.length < expected) {
      const bytes = { expected, written: written.length };
      const error = adminShortResult(this.#bdf, describe(job.command), bytes);
      this.#settle(lane, job, error, null);
      return;
    }
    if (answer.status === statusOk) {
      this.#settle(lane, job, null, answer.result);
      return;
    }
    if (isWorthRetry(answer) && job.attempts < maxAttempts) {
      if (this.#retry(lane, job, 2 ** (job.attempts - 1))) return;
    }
    const error = adminStatus(this.#bdf, describe(job.command), {
      status: statusName(answer.status),
      qualifier: qualifierName(answer.qualifier),
      attempts: job.attempts,
    });
    this.#settle(lane, job, error, null);
  }

  /** Sends the command again after a pause, if its deadline allows. The lane stays taken. */
  #retry(lane: Lane, job: Job, ms: number): boolean {
    if (performance.now() + ms >= job.expires) return false;
    lane.retry = setTimeout(() => {
      if (job.done === null) this.#settle(lane, job, null, null);
      else this.#send(lane, job);
      this.#pump(lane);
    }, ms);
    return true;
  }

  #settle(lane: Lane, job: Job, error: RetroVfError | null, result: Buffer | null): void {
    if (lane.current === job) lane.current = null;
    this.#onCommand?.({ command: job.command, result, error });
    job.done?.(error, result);
  }
}

function describe(command: AdminCommand): { name: string; member: number } {
  return { name: opcodeName(command.opcode), member: command.member };
}
