// The addon with the peers that benches/addon adds; loaded in the addon's place.

import { createRequire } from 'node:module';
import type { PciFunction } from '../../lib/index.js';

interface RoundTrip {
  answer(): void;
  /** Nanoseconds of so many calls into JavaScript, each answered before the next. */
  measure(count: number): Promise<number[]>;
}

export interface BenchAddon {
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
