// Plays transcripts on one VF twice, in two boots of the same machine: through the kernel's
// virtio_vfio_pci with the PF on virtio-pci, and through RetroVF with both on vfio-pci.

import { readFile } from 'node:fs/promises';
import type { Scene } from '../../vm/scene.js';
import { compare, type Comparison } from '../differential/compare.js';
import { forKernel, forRetroVf, plan } from '../differential/plan.js';
import type { Access } from '../differential/transcript.js';
import { bootL1, type L1Options } from './l1.js';
import { lab } from './lab.js';
import { serve } from './program.js';

export interface Transcript {
  readonly name: string;
  readonly accesses: readonly Access[];
}

const throughKernel = `
for name in $(ls /in); do
    transcript vfio "$GROUP" "$VF" "/in/$name" > "/tmp/$name" || return 1
    emit "$name"
done
`;

// The socket is there as soon as it is announced.
const throughRetroVf = `
cd /tmp
${serve('"$VF" --socket /tmp/vf.sock')}
for name in $(ls /in); do
    transcript vfio-user /tmp/vf.sock "/in/$name" > "/tmp/$name" || { cat serve.err; return 1; }
    emit "$name"
done
kill $server
wait $server || return 1
`;

export interface Played {
  /** The release of Linux whose driver was the reference. */
  readonly kernel: string;
  /** One for each transcript. */
  readonly comparisons: readonly Comparison[];
}

export async function playBoth(
  scene: Scene,
  transcripts: readonly Transcript[],
  seconds: number,
): Promise<Played> {
  const player = {
    path: 'usr/bin/transcript',
    content: await readFile(lab.tool('transcript')),
    mode: 0o755,
  };
  const plans = transcripts.map(({ accesses }) => plan(accesses));
  const play = async (
    options: Pick<L1Options, 'name' | 'pf' | 'vf' | 'script'>,
    texts: readonly string[],
  ) => {
    const files = transcripts.map(({ name }, i) => ({
      path: `in/${name}`,
      content: texts[i] ?? '',
    }));
    const l1 = await bootL1(scene, { vfs: 1, ...options, files: [player, ...files] });
    await l1.done(seconds);
    return l1;
  };
  const kernel = await play(
    { name: 'kernel', pf: 'virtio-pci', vf: 'virtio_vfio_pci', script: throughKernel },
    plans.map(forKernel),
  );
  const ours = await play(
    { name: 'retrovf', pf: 'vfio-pci', vf: 'vfio-pci', script: throughRetroVf },
    plans.map(forRetroVf),
  );
  const comparisons = plans.map((steps, i) => {
    const name = transcripts[i]?.name ?? '';
    return compare(steps, kernel.file(name), ours.file(name));
  });
  return { kernel: kernel.one('kernel', 'LAB').split(' ')[0] ?? '', comparisons };
}
