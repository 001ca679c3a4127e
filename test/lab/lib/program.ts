// Programs of l1/ that print `ok NAME` or `not ok NAME: why` for each of their tests.

import type { ExecutionContext } from 'ava';
import type { L1 } from './l1.js';

/** A line of shell that runs one. */
export const node = (program: string, ...args: string[]): string =>
  ['node', `/retrovf/test/lab/l1/${program}.js`, ...args].join(' ');

/** Every test of the program passed; what it found stands in the log. */
export function allPassed(t: ExecutionContext, l1: L1, least: number): void {
  const lines = l1.child.lines.all;
  const passed = lines.filter((line) => line.startsWith('ok '));
  const failed = lines.filter((line) => line.startsWith('not ok '));
  for (const line of lines) if (/^(ok|not ok) |^\w+=/.test(line)) t.log(line);
  t.deepEqual(failed, []);
  t.true(passed.length >= least, `${passed.length} tests ran`);
}
