// Programs of l1/ that print `ok NAME` or `not ok NAME: why` for each of their tests.

import type { ExecutionContext } from 'ava';
import type { L1 } from './l1.js';

/** A line of shell that runs one. */
export const node = (program: string, ...args: string[]): string =>
  ['node', `/retrovf/test/lab/l1/${program}.js`, ...args].join(' ');

/** The CLI. */
export const retrovf = 'node /retrovf/lib/cli/main.js';

export interface Serving {
  /** Tells servers apart: `$serverNAME` is the process, /tmp/servedNAME and /tmp/serveNAME.err what it says. */
  readonly name?: string;
  /** A program that runs it. */
  readonly under?: string;
}

/**
 * Lines of shell that serve, in the background, until a client can connect. `options` as to
 * `retrovf serve`.
 */
export const serve = (options: string, { name = '', under = '' }: Serving = {}): string => `
${under} ${retrovf} serve ${options} > /tmp/served${name} 2> /tmp/serve${name}.err &
server${name}=$!
until grep -qs socket /tmp/served${name}; do
    kill -0 $server${name} || { cat /tmp/serve${name}.err; return 1; }
    usleep 50000
done`;

/** Every test of the program passed; what it found stands in the log. */
export function allPassed(t: ExecutionContext, l1: L1, least: number): void {
  const lines = l1.child.lines.all;
  const passed = lines.filter((line) => line.startsWith('ok '));
  const failed = lines.filter((line) => line.startsWith('not ok '));
  for (const line of lines) if (/^(ok|not ok) |^\w+=/.test(line)) t.log(line);
  t.deepEqual(failed, []);
  t.true(passed.length >= least, `${passed.length} tests ran`);
}
