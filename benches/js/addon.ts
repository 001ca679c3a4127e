// The addon with the peers that benches/addon adds; loaded in the addon's place.

import { createRequire } from 'node:module';
import type { PciFunction } from '../../lib/index.js';

interface RoundTrip {
  answer(): void;
  /** Nanoseconds of so many calls into JavaScript, each answered before the next. */
  measure(count: number): Promise<number[]>;
}

/** What became of the kicks of one queue. */
export interface QueueAccount {
  /** Kicks that were given. */
  readonly given: number;
  /** Of these, those that a device has found when it was rung. */
  readonly seen: number;
  readonly rings: number;
}

export interface Ledger {
  /** The same function, but that its notifications are counted here. */
  counting(fn: PciFunction): PciFunction;
  /** Says that so many kicks are about to be given. */
  give(queue: number, kicks: number): void;
  /** By queue: those of eventfds, of messages without a reply, of messages with one, of `notify()`. */
  queues(): QueueAccount[];
}

export interface StormOptions {
  readonly path: string;
  readonly seed: number;
  readonly eventfd: number;
  readonly posted: number;
  readonly message: number;
  readonly leaves: boolean;
}

export interface BenchAddon {
  Ledger: new () => Ledger;
  /** Connects, kicks, leaves; rejects if a kick is lost. */
  storm(ledger: Ledger, options: StormOptions): Promise<{ answered: number; cut: boolean }>;
  /**
   * The same function, but that its notify address is a mapped word: the first of a page, of a file if
   * one is named.
   */
  withWord(fn: PciFunction, file?: string, page?: number): PciFunction;
  /** The path of a file of so many pages, which is there until this process ends. */
  sharedPages(count: number): string;
  /** Gives memory back to the kernel that is allocated but free. */
  trim(): void;
  /** Functions as an addon in C has them. */
  cFunctions(): { empty(): void; store(queue: number): void };
  RoundTrip: new (call: (id: number) => void) => RoundTrip;
}

const path = process.env['NAPI_RS_NATIVE_LIBRARY_PATH'];
if (path === undefined) throw new Error('Run benches/bench.ts: it names the addon to load');

export const bench = createRequire(import.meta.url)(path) as BenchAddon;
