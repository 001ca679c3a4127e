// npm run test:stress: builds the addon with a ledger, and runs main.ts with it in the addon's place.

import { spawnSync } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from '../../benches/build.js';

const folder = await mkdtemp(join(tmpdir(), 'retrovf-stress-'));
try {
  const { addon } = await build(folder);
  const main = fileURLToPath(new URL('main.ts', import.meta.url));
  const { status } = spawnSync(process.execPath, ['--import=tsx', main, ...process.argv.slice(2)], {
    stdio: 'inherit',
    env: { ...process.env, NAPI_RS_NATIVE_LIBRARY_PATH: addon },
  });
  process.exitCode = status ?? 1;
} finally {
  await rm(folder, { recursive: true, force: true });
}
