// Builds what is measured.

import { execFile } from 'node:child_process';
import { copyFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const root = fileURLToPath(new URL('..', import.meta.url));

/**
 * Paths of the addon, which is put into `folder`, and of the native benches. What runs in Node goes
 * where benches/tsconfig.json says.
 */
export async function build(folder: string): Promise<{ addon: string; native: string }> {
  process.stderr.write('Building\n');
  const packages = ['-p', 'retrovf-bench', '-p', 'retrovf-bench-addon'];
  const args = ['build', '--release', '--quiet', ...packages];
  await promisify(execFile)('cargo', args, { cwd: root });
  await promisify(execFile)(join(root, 'node_modules/.bin/tsc'), ['-p', 'benches'], { cwd: root });
  const target = join(process.env['CARGO_TARGET_DIR'] ?? join(root, 'target'), 'release');
  // Node loads what has this extension.
  const addon = join(folder, 'bench.node');
  await copyFile(join(target, 'libretrovf_bench_addon.so'), addon);
  return { addon, native: join(target, 'retrovf-bench') };
}

/** The package as it is shipped, for guests. */
export async function buildPackage(): Promise<void> {
  await promisify(execFile)('npm', ['run', '--silent', 'build'], { cwd: root });
}
