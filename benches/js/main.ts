// Runs the benches that need JavaScript, and prints one JSON object. benches/bench.ts starts it, once
// for each placement of its threads.

import { controlPaths } from './control.js';
import { notifyPaths } from './notify.js';

const [what, ...flags] = process.argv.slice(2);
const quick = flags.includes('--quick');
const paths =
  what === 'notify'
    ? await notifyPaths(quick)
    : await controlPaths(quick, what === 'one-cpu' ? 'one CPU' : 'sleeping');
process.stdout.write(`${JSON.stringify({ paths })}\n`);
// The bare round trip's function would keep the process alive.
process.exit(0);
