// npm run test:lab: the tests, or one transcript with --replay FILE; further arguments are ava's.

import { spawnSync } from 'node:child_process';
import { kernels } from './lib/lab.js';
import { prepare } from './lib/prepare.js';
import { replay } from './lib/replay.js';

const args = process.argv.slice(2);
if (args[0] === '--replay') {
  const [, file, ...more] = args;
  if (file === undefined || more.length > 0) {
    console.error('usage: npm run test:lab -- --replay FILE');
    process.exit(2);
  }
  prepare(['trixie-backports']);
  process.exitCode = await replay(file);
} else {
  prepare(kernels);
  const config = ['ava', '--config', 'test/lab/ava.config.js', ...args];
  process.exitCode = spawnSync('npx', config, { stdio: 'inherit' }).status ?? 1;
}
