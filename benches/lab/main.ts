// Runs the bench that needs the machine of test/lab, and prints one JSON object; what keeps it from
// being measured is told in there too.

import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { prepare } from '../../test/lab/lib/prepare.js';
import { printMeasured } from '../vm.js';
import { measureKicks, name } from './kick.js';

const root = fileURLToPath(new URL('../..', import.meta.url));
const kernel = 'trixie-backports';

function obstacle(): string | undefined {
  if (process.getuid?.() !== 0) return 'takes root';
  const { status } = spawnSync('test/lab/setup.sh', ['--ready', kernel], { cwd: root });
  return status === 0 ? undefined : `takes the lab, see test/lab: run test/lab/setup.sh ${kernel}`;
}

await printMeasured(name, obstacle(), async () => {
  prepare([kernel]);
  return [await measureKicks()];
});
