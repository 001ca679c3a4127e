// The VFIO backend alone, without anything above it: the tests of crates/vfio that need a PF and a VF.

import { execFileSync } from 'node:child_process';
import { readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { scene } from '../vm/scene.js';
import { bootL1 } from './lib/l1.js';

/** Builds the test program, and returns it without what L1 has no use for. */
function program(): Buffer {
  const args = ['test', '-p', 'retrovf-vfio', '--test', 'hardware', '--no-run'];
  const messages = execFileSync('cargo', [...args, '--message-format=json'], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const built = messages
    .split('\n')
    .filter((line) => line.startsWith('{'))
    .map((line) => JSON.parse(line) as { target?: { name: string }; executable?: string })
    .find(({ target, executable }) => target?.name === 'hardware' && executable);
  if (built?.executable === undefined) throw new Error('cargo built no program');
  const stripped = join(tmpdir(), `retrovf-hardware-${process.pid}`);
  try {
    execFileSync('strip', ['-o', stripped, built.executable]);
    return readFileSync(stripped);
  } finally {
    rmSync(stripped, { force: true });
  }
}

test(
  'functions behave as VFIO says, opened by their group and by their own node',
  scene(async (t, s) => {
    const l1 = await bootL1(s, {
      iommufd: true,
      files: [{ path: 'hardware', content: program(), mode: 0o755 }],
      script: `
for way in group cdev; do
    echo "way=$way"
    VIA=$way /hardware --ignored --test-threads=1 || return 1
done
`,
    });
    await l1.done(500);
    const results = l1.child.lines.all.filter((line) => line.startsWith('test result: '));
    for (const line of l1.child.lines.all) if (/^(test |way=)/.test(line)) t.log(line);
    t.is(results.length, 2);
    for (const result of results) t.regex(result, /ok\. ([1-9]\d) passed; 0 failed/);
  }),
);
