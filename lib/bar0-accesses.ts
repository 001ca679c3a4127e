// Accesses to the legacy registers of one device: in order, each split into registers, each answered
// once and in time. A guest never sees an error: what fails reads as all ones, as an absent register
// does, and is counted.

import type { Done } from './admin-lanes.js';
import { messageOf, nativeFailure, type RetroVfError } from './errors.js';
import type { DeviceLog } from './log.js';
import {
  register,
  statusDriver,
  type LegacyRegisters,
  type Piece,
} from './virtio/legacy-registers.js';

/** What the registers belong to. */
export interface RegisterFile {
  read(space: 'common' | 'device', offset: number, length: number, done: Done): void;
  write(space: 'common' | 'device', offset: number, data: Buffer, done: Done): void;
  notify(queue: number): void;
  busMaster(): boolean;
  enableBusMaster(): void;
}

/** What became of accesses so far. */
export interface AccessCounters {
  reads: number;
  writes: number;
  /** Accesses that touched more than one register. */
  split: number;
  /** Bytes that belong to no register. */
  holeBytes: number;
  /** Accesses while the guest had I/O space disabled. */
  gated: number;
  /** Registers that could not be read or written. */
  failed: number;
  /** Accesses answered before the device was done. */
  timedOut: number;
  /** Accesses refused because too many waited. */
  dropped: number;
  /** Times that bus mastering was enabled for a driver that forgot to. */
  busMasterFixes: number;
}

/** data: what a write writes; null for a read. */
export interface Access {
  readonly offset: number;
  readonly length: number;
  readonly data: Buffer | null;
  readonly msix: boolean;
  /** Called once, with the bytes read, or null for a write. */
  readonly respond: (result: Buffer | null) => void;
}

interface Running {
  readonly access: Access;
  readonly pieces: readonly Piece[];
  /** What a read has gathered; ones where nothing answered. */
  readonly result: Buffer | null;
  timer: NodeJS.Timeout | undefined;
  answered: boolean;
}

const maxWaiting = 64;

export class Bar0Accesses {
  readonly #registers: LegacyRegisters;
  readonly #file: RegisterFile;
  readonly #timeoutMs: number;
  readonly #log: DeviceLog;
  readonly #waiting: Running[] = [];
  #busy = false;
  readonly counters: AccessCounters = {
    reads: 0,
    writes: 0,
    split: 0,
    holeBytes: 0,
    gated: 0,
    failed: 0,
    timedOut: 0,
    dropped: 0,
    busMasterFixes: 0,
  };

  constructor(registers: LegacyRegisters, file: RegisterFile, timeoutMs: number, log: DeviceLog) {
    this.#registers = registers;
    this.#file = file;
    this.#timeoutMs = timeoutMs;
    this.#log = log;
  }

  /** Answers an access that must not reach the device: I/O space is disabled. */
  gate(access: Access): void {
    this.counters.gated += 1;
    access.respond(access.data === null ? ones(access.length) : null);
  }

  run(access: Access): void {
    const { counters } = this;
    if (access.data === null) counters.reads += 1;
    else counters.writes += 1;
    const pieces = this.#registers.split(access.offset, access.length, access.msix);
    if (pieces.length > 1) counters.split += 1;
    const result = access.data === null ? ones(access.length) : null;
    const running: Running = { access, pieces, result, timer: undefined, answered: false };
    if (this.#waiting.length >= maxWaiting) {
      counters.dropped += 1;
      this.#answer(running);
      return;
    }
    if (this.#busy) {
      this.#startTimer(running);
      this.#waiting.push(running);
      return;
    }
    this.#busy = true;
    this.#step(running, 0);
  }

  /** Performs pieces from `index` on; those that complete at once in this very loop. */
  #step(running: Running, index: number): void {
    for (let i = index; i < running.pieces.length && !running.answered; i += 1) {
      const piece = running.pieces[i];
      if (piece === undefined) break;
      let finished = false;
      let waiting = false;
      this.#perform(running, piece, () => {
        finished = true;
        if (waiting) this.#step(running, i + 1);
      });
      if (finished) continue;
      waiting = true;
      // The clock runs from here for an access that did not have to queue.
      this.#startTimer(running);
      return;
    }
    this.#answer(running);
    this.#next();
  }

  #next(): void {
    const next = this.#waiting.shift();
    if (next === undefined) this.#busy = false;
    else this.#step(next, 0);
  }

  #perform({ access, result }: Running, piece: Piece, done: () => void): void {
    const { kind, offset, length, at } = piece;
    if (kind === 'hole') {
      this.counters.holeBytes += length;
      done();
      return;
    }
    const space = kind === 'device' ? 'device' : 'common';
    const settle: Done = (error, bytes) => {
      if (error !== null) this.#failed(access, piece, error);
      else if (bytes !== null) result?.set(bytes.subarray(0, length), at);
      done();
    };
    if (access.data === null) {
      this.#file.read(space, offset, length, settle);
      return;
    }
    const data = access.data.subarray(at, at + length);
    try {
      // Part of a wider write; a client's write of this register alone never comes here.
      if (kind === 'notify') this.#file.notify(data.readUInt16LE());
      else if (space === 'common' && offset === register.status) this.#fixBusMaster(data);
    } catch (error) {
      settle(nativeFailure(error), null);
      return;
    }
    if (kind === 'notify') done();
    else this.#file.write(space, offset, data, settle);
  }

  /**
   * Linux before 2.6.34 and some boot ROMs start the driver without bus mastering; QEMU's virtio-pci
   * turns it on for them, and so every such guest has come to rely on it.
   */
  #fixBusMaster(data: Buffer): void {
    if (((data[0] ?? 0) & statusDriver) === 0 || this.#file.busMaster()) return;
    this.counters.busMasterFixes += 1;
    this.#file.enableBusMaster();
  }

  #failed(access: Access, { kind, offset, length }: Piece, error: RetroVfError): void {
    this.counters.failed += 1;
    this.#log.limited('Register access failed', () => ({
      code: error.code,
      error: messageOf(error),
      access: access.data === null ? 'read' : 'write',
      registers: kind,
      offset,
      length,
    }));
  }

  #startTimer(running: Running): void {
    running.timer ??= setTimeout(() => {
      this.counters.timedOut += 1;
      const { offset, length } = running.access;
      this.#log.limited('Register access timed out', () => ({ offset, length }));
      this.#answer(running);
    }, this.#timeoutMs);
  }

  #answer(running: Running): void {
    clearTimeout(running.timer);
    if (running.answered) return;
    running.answered = true;
    running.access.respond(running.result);
  }
}

function ones(length: number): Buffer {
  return Buffer.alloc(length, 0xff);
}
