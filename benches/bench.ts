// npm run bench: builds what is measured, runs it, and writes figures and a page.

import { spawn } from 'node:child_process';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { build, buildPackage } from './build.js';
import type { Scale } from './js/scale.js';
import type { Path } from './js/series.js';
import { machine } from './report/machine.js';
import { page, type Report } from './report/page.js';
import { held, ratios, subjectOf } from './report/ratios.js';
import { heldLine } from './report/scale.js';
import { time } from './report/units.js';

const help = `Measures what a doorbell costs, each path beside its peers in the same run.

Usage: npm run bench -- [OPTION...]

Options:
  --quick        A minute at most, for a smoke test; the figures mean little
  --json FILE    Where the figures go (default benches/results/bench.json)
  --html FILE    Where the page goes (default: beside the figures)
  -h, --help     Show this help

Environment:
  LIBVFIO_USER   A libvfio-user.so to measure beside; without it that peer is left out

With the pieces of the guests (test/guest/setup.sh) it measures whole guests too; as root, with those of
the lab (test/lab/setup.sh), kicks of a guest beside the kernel's driver.
`;

const root = fileURLToPath(new URL('..', import.meta.url));
const { values } = parseArgs({
  options: {
    quick: { type: 'boolean', default: false },
    json: { type: 'string', default: join(root, 'benches/results/bench.json') },
    html: { type: 'string' },
    help: { type: 'boolean', short: 'h', default: false },
  },
});
if (values.help) process.stdout.write(help);
else await main();

async function main(): Promise<void> {
  const { quick } = values;
  const json = resolve(values.json);
  const html = resolve(values.html ?? json.replace(/(\.json)?$/, '.html'));
  const folder = await mkdtemp(join(tmpdir(), 'retrovf-bench-'));
  try {
    const { addon, native } = await build(folder);
    if (!quick) await buildPackage();
    const before = machine();
    const flags = quick ? ['--quick'] : [];
    const script = join(root, 'target/bench/benches/js/main.js');
    const javascript = (what: string) => [process.execPath, script, what, ...flags];
    const runs = [
      javascript('notify'),
      javascript('sleeping'),
      ['taskset', '-c', '0', ...javascript('one-cpu')],
      [native, ...flags],
      javascript('scale'),
      ...(quick ? [] : ['guest', 'lab'].map(withGuests)),
    ];
    const paths: Path[] = [];
    const skipped: string[] = [];
    const scale: Scale[] = [];
    for (const command of runs) {
      const result = await run(command, addon, native);
      paths.push(...result.paths);
      skipped.push(...(result.skipped ?? []));
      scale.push(...(result.scale ?? []));
    }
    const date = new Date().toISOString();
    const compared = { ratios: ratios(paths), held: held(scale) };
    const report = { date, quick, machine: before, paths, skipped, scale, ...compared };
    await write(json, `${JSON.stringify(report, null, 1)}\n`);
    await write(html, page(report));
    print(report);
    process.stdout.write(`\n${json}\n${html}\n`);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** They run the package as it is shipped. */
function withGuests(folder: string): string[] {
  const plain = ['env', '-u', 'NAPI_RS_NATIVE_LIBRARY_PATH'];
  return [...plain, process.execPath, '--import=tsx', join(root, 'benches', folder, 'main.ts')];
}

interface Result {
  readonly paths: Path[];
  readonly skipped?: string[];
  readonly scale?: Scale[];
}

async function run(
  [command = '', ...args]: readonly string[],
  addon: string,
  client: string,
): Promise<Result> {
  const env = { ...process.env, NAPI_RS_NATIVE_LIBRARY_PATH: addon, RETROVF_BENCH: client };
  const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'inherit'], env, cwd: root });
  const ended = new Promise<number | null>((done, reject) => {
    child.on('error', reject).on('close', done);
  });
  const output = await text(child.stdout);
  const code = await ended;
  if (code !== 0) throw new Error(`${command} ${args.join(' ')} ended with ${code}`);
  return JSON.parse(output) as Result;
}

async function write(file: string, content: string): Promise<void> {
  await mkdir(dirname(file), { recursive: true });
  await writeFile(file, content);
}

function print({ ratios: rows, held: limits, skipped }: Report): void {
  for (const row of rows) {
    const { ours, peer, oursNs, peerNs, ratio, bound, met } = row;
    const limit = 'below' in bound ? `at most ${bound.below}` : `at least ${bound.above}`;
    process.stdout.write(
      `${met ? 'met   ' : 'missed'}  ${subjectOf(row).padEnd(46)} ${ratio.toFixed(2).padStart(6)} ` +
        `(${limit}): ${ours} ${time(oursNs)}, ${peer} ${time(peerNs)}\n`,
    );
  }
  for (const limit of limits) process.stdout.write(`${heldLine(limit)}\n`);
  for (const line of skipped) process.stdout.write(`not measured: ${line}\n`);
}
