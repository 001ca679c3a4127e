// Makes what L1 is made of, and says so on standard error: a first run has minutes of it.

import { execFileSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { lab, type Kernel } from './lab.js';

export function prepare(kernels: readonly Kernel[]): void {
  run('setup.sh', kernels);
  run('project.sh', [lab.project]);
}

function run(script: string, args: readonly string[]): void {
  const path = fileURLToPath(new URL(`../${script}`, import.meta.url));
  execFileSync(path, args, { stdio: ['ignore', 2, 2] });
}
