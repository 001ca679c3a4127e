// npm run test:lab -- --replay FILE: one transcript on both sides. The last line counts accesses and
// answers; the exit code is 0 only if every difference is an intended one.

import { readFile, rm } from 'node:fs/promises';
import { Scene } from '../../vm/scene.js';
import { summary } from '../differential/compare.js';
import { parseTranscript } from '../differential/plan.js';
import { playBoth } from './differential.js';

export async function replay(file: string): Promise<number> {
  const accesses = parseTranscript(await readFile(file, 'utf8'));
  if (accesses.length === 0) throw new Error(`${file} has no accesses`);
  let played = false;
  const scene = await Scene.open((line) => console.error(line));
  try {
    // 20 ms for an access of an emulated machine is plenty; booting takes most of a minute at worst.
    const seconds = 120 + accesses.length / 50;
    const { comparisons } = await playBoth(scene, [{ name: 'replay', accesses }], seconds);
    const [comparison] = comparisons;
    if (comparison === undefined) throw new Error('nothing was played');
    played = true;
    for (const line of comparison.others) console.log(line);
    console.log(summary(comparison));
    return comparison.others.length === 0 ? 0 : 1;
  } finally {
    await scene.close();
    if (played) await rm(scene.dir, { recursive: true });
    else console.error(`logs: ${scene.dir}`);
  }
}
