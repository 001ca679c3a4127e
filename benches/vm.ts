// What the benches with virtual machines share: how they say what they measured, and where they run.

import { rm } from 'node:fs/promises';
import { Scene } from '../test/vm/scene.js';
import type { Path } from './js/series.js';

/** Prints one JSON object, with what keeps `name` from being measured in it: the other benches have taken minutes. */
export async function printMeasured(
  name: string,
  obstacle: string | undefined,
  measure: () => Promise<Path[]>,
): Promise<void> {
  const skipped = (reason: string) => ({ paths: [], skipped: [`${name}: ${reason}`] });
  const result =
    obstacle === undefined
      ? await measure().then(
          (paths) => ({ paths }),
          (error: unknown) => skipped(String(error).split('; last lines')[0] ?? ''),
        )
      : skipped(obstacle);
  process.stdout.write(`${JSON.stringify(result)}\n`);
}

/** Runs `body` with a scene, whose folder stays if that fails. */
export async function inScene<T>(
  name: string,
  log: (line: string) => void,
  body: (scene: Scene) => Promise<T>,
): Promise<T> {
  const scene = await Scene.open(log);
  let done = false;
  try {
    const result = await body(scene);
    done = true;
    return result;
  } finally {
    await scene.close();
    if (done) await rm(scene.dir, { recursive: true });
    else process.stderr.write(`${name}: logs in ${scene.dir}\n`);
  }
}
