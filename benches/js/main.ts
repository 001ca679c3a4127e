// Runs the benches that need JavaScript, and prints one JSON object. benches/bench.ts starts it, once
// for each placement of its threads.

import { controlPaths } from './control.js';
import { notifyPaths } from './notify.js';
import { scalePaths } from './scale.js';

const [what, ...flags] = process.argv.slice(2);
const quick = flags.includes('--quick');
const result =
  what === 'notify'
    ? { paths: await notifyPaths(quick) }
    : what === 'scale'
      ? await scalePaths(quick)
      : { paths: await controlPaths(quick, what === 'one-cpu' ? 'one CPU' : 'sleeping') };
process.stdout.write(`${JSON.stringify(result)}\n`);
// The bare round trip's function would keep the process alive.
process.exit(0);
