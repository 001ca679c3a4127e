// Guests share two processors with the software that emulates them, so tests
// run one after another.  Deadlines live in the tests; the timeout below only
// ends a run in which a deadline is missing.

import { execFileSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';

// Its progress goes to standard error: a first run has minutes of it.
execFileSync(fileURLToPath(new URL('setup.sh', import.meta.url)), { stdio: ['ignore', 2, 2] });

export default {
  files: ['test/guest/*.test.ts'],
  extensions: { ts: 'module' },
  nodeArguments: ['--import=tsx'],
  concurrency: 1,
  serial: true,
  timeout: '15m',
  workerThreads: false,
};
