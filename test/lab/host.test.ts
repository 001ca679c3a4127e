// `retrovf doctor`, `setup` and `teardown` against a real kernel: l1/host.sh has the tests.

import { readFile } from 'node:fs/promises';
import test from 'ava';
import { scene } from '../vm/scene.js';
import { bootL1 } from './lib/l1.js';
import { retrovf } from './lib/program.js';

test(
  'a host is examined, prepared and given back',
  scene(async (t, s) => {
    const program = await readFile(new URL('l1/host.sh', import.meta.url), 'utf8');
    const l1 = await bootL1(s, {
      vfs: 0,
      pf: 'virtio-pci',
      files: [{ path: 'host.sh', content: program, mode: 0o755 }],
      script: `RETROVF='${retrovf}' sh /host.sh`,
    });
    await l1.said('LAB done=', 420);
    const results = l1.child.lines.all.filter((line) => line.startsWith('host.'));
    for (const line of results) t.log(line);
    t.deepEqual(
      results.filter((line) => line.includes('=FAILED')),
      [],
    );
    t.is(l1.one('host.failed'), '0');
    t.true(results.length > 30, `${results.length} results`);
    await l1.done(360);
  }),
);
