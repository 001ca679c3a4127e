// The report of the benches: ratios of medians, and a page that needs nothing else.

import test from 'ava';
import type { Scale } from '../../benches/js/scale.js';
import { describe, distribution, gained, type Path } from '../../benches/js/series.js';
import { page } from '../../benches/report/page.js';
import { held, ratios } from '../../benches/report/ratios.js';
import { heldLine } from '../../benches/report/scale.js';
import { time } from '../../benches/report/units.js';

const round = (p50: number) => ({ count: 1, p50, p90: p50, p99: p50, max: p50 });

function path(ours: readonly number[], peer: readonly number[]): Path {
  const contender = (name: string, medians: readonly number[]) => ({
    name,
    rounds: medians.map(round),
    cdf: distribution(medians),
  });
  return {
    path: 'control access, one CPU',
    about: '<b>',
    unit: 'ns',
    contenders: [contender('retrovf', ours), contender('bare threadsafe function', peer)],
  };
}

function scale(figures: Partial<Scale>): Scale {
  return {
    devices: 512,
    memory_bytes_per_device: 1,
    heap_bytes_per_device: 1,
    stack_bytes_per_device: 1,
    page_table_bytes_per_device: 1,
    threads_per_device: 1,
    idle_cpu_percent: 0.05,
    open_ms_per_device: 1,
    ...figures,
  };
}

test('a ratio is that of the medians over the rounds, whatever one round was', (t) => {
  const [row] = ratios([path([120, 9_000, 130], [100, 100, 1])]);
  t.like(row, { oursNs: 130, peerNs: 100, ratio: 1.3, met: true });
  t.false(ratios([path([131], [100])])[0]?.met);
  t.deepEqual(ratios([]), [], 'a path that was not measured has no row');
});

test('percentiles are samples by nearest rank', (t) => {
  const samples = Array.from({ length: 1000 }, (_, i) => 1000 - i);
  t.like(describe(samples), { count: 1000, p50: 500, p99: 990, p9999: 1000, max: 1000 });
});

test('what a histogram has gained is its new values only', (t) => {
  const at = (counts: readonly [number, number][]) => ({
    count: 0,
    sum: 0,
    p50: 0,
    p90: 0,
    p99: 0,
    max: 35,
    buckets: counts.map(([ns, count]) => ({ ns, count })),
  });
  t.deepEqual(gained(at([[10, 2]]), at([[10, 3], [40, 2]])), [10, 35, 35]); // prettier-ignore
});

test('the page is one file, in light and dark, and escapes what it shows', (t) => {
  const paths = [path([120], [100])];
  const processes = [scale({ memory_bytes_per_device: 70 * 1024, idle_cpu_percent: 0.6 })];
  const html = page({
    date: '2026-01-01',
    quick: true,
    machine: {
      cpu: 'a<b',
      cpus: 2,
      memoryGiB: 1,
      kernel: '6',
      node: 'v20',
      virtual: true,
      load: 0,
    },
    paths,
    ratios: ratios(paths),
    scale: processes,
    held: held(processes),
    skipped: ['a peer: not there'],
  });
  t.notRegex(html, /(src|href)=|@import|url\(/);
  t.true(html.includes('prefers-color-scheme: dark'));
  t.true(html.includes('a&lt;b') && html.includes('&lt;b&gt;') && !html.includes('<b>'));
  t.true(html.includes('a peer: not there') && html.includes('1.20 ×'));
  t.true(html.includes('<td class="met">70.0 KiB') && html.includes('<td class="missed">0.60 %'));
});

test('limits hold for the process with so many devices, if it was measured', (t) => {
  const [memory, idle, ...others] = held([
    scale({ devices: 64, memory_bytes_per_device: 1e9 }),
    scale({ memory_bytes_per_device: 102_400, idle_cpu_percent: 0.49 }),
  ]);
  t.like(memory, { devices: 512, value: 102_400, met: false }, 'below, not at most');
  t.like(idle, { devices: 512, value: 0.49, met: true });
  t.deepEqual(others, []);
  t.deepEqual(held([scale({ devices: 64 })]), []);
  t.is(held([scale({ memory_bytes_per_device: null })]).length, 1, 'what was not told is not held');
  if (memory === undefined) return;
  t.is(
    heldLine(memory).replaceAll(/ +/g, ' '),
    'missed scale, 512 devices, memory bytes per device 100.0 KiB (below 100.0 KiB)',
  );
});

test('times have three digits and a unit', (t) => {
  t.deepEqual([0.591, 16.85, 1_234, 2.5e6, 3e9].map(time), ['0.591 ns', '16.9 ns', '1.23 µs', '2.5 ms', '3 s']); // prettier-ignore
});
