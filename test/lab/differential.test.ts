// Linux' virtio_vfio_pci and RetroVF give the same answers, but for a written list of differences.

import { mkdir, writeFile } from 'node:fs/promises';
import test from 'ava';
import { scene } from '../vm/scene.js';
import { summary, total } from './differential/compare.js';
import { differences } from './differential/differences.js';
import { directed, random } from './differential/generate.js';
import { reportFile, type Report } from './differential/report.js';
import { playBoth } from './lib/differential.js';

const seeds = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
const accessesPerSeed = 2000;

test(
  'a VF answers alike through the kernel’s driver and through RetroVF, but for intended differences',
  scene(async (t, s) => {
    const transcripts = [
      { name: 'directed', accesses: directed() },
      ...seeds.map((seed) => ({
        name: `seed-${seed}`,
        accesses: random(seed, accessesPerSeed),
      })),
    ];
    const { kernel, comparisons } = await playBoth(s, transcripts, 600);
    comparisons.forEach((comparison, i) => {
      t.log(`${transcripts[i]?.name}: ${summary(comparison)}`);
      for (const other of comparison.others.slice(0, 20)) t.log(other);
    });
    const sum = total(comparisons);
    const report: Report = {
      kernel,
      seeds,
      accessesPerSeed,
      directed: transcripts[0]?.accesses.length ?? 0,
      total: sum,
    };
    await mkdir(new URL('.', reportFile), { recursive: true });
    await writeFile(reportFile, `${JSON.stringify(report, null, 2)}\n`);
    t.deepEqual(sum.others, []);
    t.true(sum.accesses >= 20_000, `${sum.accesses} accesses`);
    const unmet = differences.filter(({ name }) => sum.intended[name] === undefined);
    t.deepEqual(
      unmet.map(({ name }) => name),
      [],
      'rows of the list that nothing met',
    );
  }),
);
