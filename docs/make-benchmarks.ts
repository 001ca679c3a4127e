// Makes docs/benchmarks.md and docs/benchmarks.svg from full runs of `npm run bench`:
//   npx tsx docs/make-benchmarks.ts RUN.json RUN.json RUN.json

import { readFile, writeFile } from 'node:fs/promises';
import { standalone } from '../benches/report/plot.js';
import type { Report } from '../benches/report/page.js';
import { subjectOf, type Held, type Ratio } from '../benches/report/ratios.js';
import { limits, targets, type Limit, type Target } from '../benches/report/targets.js';
import { time } from '../benches/report/units.js';

/** The path that the README shows. */
const shown = 'guest kick in the lab';

/** Why a target is missed, where that is known. */
const reasons: readonly (readonly [path: string, figure: string, why: string])[] = [
  [
    'forwarder, busy polling',
    'p50',
    'The engine looks at a counter with `preadv2(RWF_NOWAIT)`, which takes longer than `read`: whoever holds the eventfd can make ' +
      'it a blocking one, and a plain `read` would then hold up all devices.',
  ],
  [
    'forwarder, sleeping',
    'p99',
    'Both ends sleep in `epoll_wait` and wake alike; the tail is what the hypervisor does to a CPU that sleeps, and the ratio of ' +
      'two such tails varies from run to run on both sides of 1.',
  ],
  [
    'vfio-user round trip, one CPU',
    'server_cpu_ns',
    'A request takes two system calls here, `recvmsg` and `sendto`, and a bare socket that does no more than these two is at ' +
      'about 0.75 of libvfio-user, which takes three: what is left to save is in the kernel.',
  ],
  [
    'vfio-user round trip, spinning',
    'p50',
    'The round trip is at its limit, that of two sockets that never sleep. How many times that a sleeping server takes is what ' +
      'waking a CPU costs beside a system call, and that is the machine’s: 11 times on one, 3 on another.',
  ],
  [
    'control access, one CPU',
    'p50',
    'An access takes five system calls here. Of these the answer is a message and the session waits for the next one, `sendto` ' +
      'and `recvmsg` with a time limit, where the bare function has a futex to wake and to wait for; and beside that there is an ' +
      'admin command and its TypeScript. On a machine whose system calls took a third of the time the ratio was 1.0 to 1.1.',
  ],
  [
    'guest, boot to lease',
    'p50',
    'A boot under emulation takes seconds and varies by a tenth from one to the next, which is more than the two devices differ: ' +
      'runs fall on both sides of 1.',
  ],
  [
    'guest, TCP in',
    'p50',
    'Two threads of the SoftNIC take part that QEMU’s own device does not have, on two CPUs that emulate the guest’s as well: ' +
      'where these are short, runs fall on both sides of the target.',
  ],
];

const files = process.argv.slice(2);
const runs = await Promise.all(
  files.map(async (file) => JSON.parse(await readFile(file, 'utf8')) as Report),
);
const [first] = runs;
if (first === undefined) throw new Error('usage: npx tsx docs/make-benchmarks.ts RUN.json...');
if (runs.some(({ quick }) => quick)) throw new Error('Not of quick runs, whose figures mean little');

const { machine } = first;
const skipped = [...new Set(runs.flatMap((run) => run.skipped))];
const rows = [
  ...targets.flatMap((target) => ratioRow(target) ?? []),
  ...limits.flatMap((limit) => limitRow(limit) ?? []),
];
const path = first.paths.find((candidate) => candidate.path === shown);
if (path !== undefined) await write('benchmarks.svg', standalone(path));
await write(
  'benchmarks.md',
  `# What a doorbell costs

Medians of ${runs.length} full runs of \`npm run bench\` on one machine: ${machine.cpus} × ${machine.cpu}${
    machine.virtual ? ' (virtual)' : ''
  }, Linux ${machine.kernel}, Node ${machine.node}; ${first.date.slice(0, 10)}. Contenders of a path take turns within a run,
so a ratio means more than a time; [benches/README.md](../benches/README.md) says how to read and how to repeat it. Made by
docs/make-benchmarks.ts.

| path | ours | beside | ratio in each run | median | target | |
| --- | --- | --- | --- | --- | --- | --- |
${rows.map(({ cells }) => `| ${cells.join(' | ')} |`).join('\n')}
${notes()}${path === undefined ? '' : `\n![${shown}](benchmarks.svg)\n\n${path.about}\n`}${
    skipped.length === 0 ? '' : `\nWhat was not measured in every run:\n\n${skipped.map((line) => `- ${line}`).join('\n')}\n`
  }`,
);

interface Row {
  readonly cells: readonly string[];
  readonly missed: { readonly path: string; readonly figure: string } | null;
}

function ratioRow(target: Target): Row | null {
  const same = (row: Ratio) =>
    row.path === target.path &&
    row.ours === target.ours &&
    row.peer === target.peer &&
    row.figure === target.figure;
  const all = runs.flatMap(({ ratios }) => ratios.filter(same));
  if (all.length === 0) return null;
  const ratio = median(all.map((row) => row.ratio));
  const { bound } = target;
  const met = 'below' in bound ? ratio <= bound.below : ratio >= bound.above;
  return {
    cells: [
      subjectOf(target),
      `${target.ours}: ${time(median(all.map((row) => row.oursNs)))}`,
      `${target.peer}: ${time(median(all.map((row) => row.peerNs)))}`,
      all.map((row) => row.ratio.toFixed(2)).join(', '),
      ratio.toFixed(2),
      'below' in bound ? `≤ ${bound.below}` : `≥ ${bound.above}`,
      met ? 'met' : 'missed',
    ],
    missed: met ? null : target,
  };
}

function limitRow(limit: Limit): Row | null {
  const same = (row: Held) => row.devices === limit.devices && row.figure === limit.figure;
  const all = runs.flatMap((run) => run.held.filter(same).map(({ value }) => value));
  if (all.length === 0) return null;
  const bytes = limit.figure.includes('bytes');
  const say = (value: number) =>
    bytes ? `${Math.round(value / 1024)} KiB` : `${Number(value.toPrecision(2))} %`;
  const value = median(all);
  const met = value < limit.below;
  const what = bytes ? 'memory for each device' : 'idle CPU';
  return {
    cells: [
      `scale, ${what}`,
      `${limit.devices} devices: ${say(value)}`,
      '',
      all.map(say).join(', '),
      say(value),
      `< ${say(limit.below)}`,
      met ? 'met' : 'missed',
    ],
    missed: met ? null : { path: 'scale', figure: limit.figure },
  };
}

function notes(): string {
  const lines = rows.flatMap(({ missed, cells }) => {
    if (missed === null) return [];
    const [, , why = 'Not explained yet.'] =
      reasons.find(([path, figure]) => path === missed.path && figure === missed.figure) ?? [];
    return [`- **${cells[0] ?? ''}.** ${why}`];
  });
  return lines.length === 0 ? '' : `\nWhat is missed, and why:\n\n${lines.join('\n')}\n`;
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[values.length >> 1] ?? 0;
}

async function write(name: string, content: string): Promise<void> {
  await writeFile(new URL(name, import.meta.url), content);
}
