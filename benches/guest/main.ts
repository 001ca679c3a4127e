// Runs the bench that needs the guests of test/guest, and prints one JSON object; what keeps it from
// being measured is told in there too.

import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { measureGuests, name } from './whole-guest.js';

const root = fileURLToPath(new URL('../..', import.meta.url));

async function measured() {
  const { status } = spawnSync('test/guest/setup.sh', ['--ready'], { cwd: root });
  if (status !== 0) return { paths: [], skipped: [`${name}: run test/guest/setup.sh first`] };
  try {
    return { paths: await measureGuests() };
  } catch (error) {
    // The other benches have taken minutes.
    return { paths: [], skipped: [`${name}: ${String(error).split('; last lines')[0]}`] };
  }
}

process.stdout.write(`${JSON.stringify(await measured())}\n`);
