// Runs the bench that needs the guests of test/guest, and prints one JSON object; what keeps it from
// being measured is told in there too.

import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { printMeasured } from '../vm.js';
import { measureGuests, name } from './whole-guest.js';

const root = fileURLToPath(new URL('../..', import.meta.url));

const { status } = spawnSync('test/guest/setup.sh', ['--ready'], { cwd: root });
await printMeasured(
  name,
  status === 0 ? undefined : 'run test/guest/setup.sh first',
  measureGuests,
);
