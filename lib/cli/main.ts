#!/usr/bin/env node
// The `retrovf` program: ties the command line to this process.

import { run } from './run.js';
import { watchSignals } from './signals.js';

// A reader that has seen enough (`retrovf probe | head -1`) is no failure.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE') throw error;
  process.exit(0);
});

using watch = watchSignals(process);
process.exitCode = await run(process.argv.slice(2), {
  stdout: process.stdout,
  stderr: process.stderr,
  env: process.env,
  signal: watch.signal,
});
