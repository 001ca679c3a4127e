// What a command may touch of the process that runs it.

import type { Terminal } from './output/terminal.js';

export interface Context {
  readonly stdout: Terminal;
  readonly stderr: Terminal;
  /** Results as JSON; talk on stderr stays. */
  readonly json: boolean;
  /** Aborted by the first SIGINT or SIGTERM; its reason is an `Interruption`. */
  readonly signal: AbortSignal;
}
