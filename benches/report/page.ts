// The report as one page that needs nothing else.

import type { Scale } from '../js/scale.js';
import type { Contender, Path, Round } from '../js/series.js';
import type { Machine } from './machine.js';
import { escape, plot } from './plot.js';
import { median, subjectOf, type Held, type Ratio } from './ratios.js';
import { scaleSection } from './scale.js';
import { time } from './units.js';

export interface Report {
  readonly date: string;
  readonly quick: boolean;
  readonly machine: Machine;
  readonly paths: readonly Path[];
  readonly ratios: readonly Ratio[];
  readonly scale: readonly Scale[];
  readonly held: readonly Held[];
  readonly skipped: readonly string[];
}

const style = `
:root { color-scheme: light dark; --back: #fff; --text: #1c2024; --dim: #667; --line: #dde; --good: #18794e; --bad: #b42318; }
@media (prefers-color-scheme: dark) {
  :root { --back: #15181c; --text: #e6e8eb; --dim: #9aa3ad; --line: #2c3238; --good: #5dd39e; --bad: #ff8a7a; }
}
body { background: var(--back); color: var(--text); font: 15px/1.5 system-ui, sans-serif; max-width: 820px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
p { color: var(--dim); margin: 0.3rem 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { text-align: right; padding: 0.25rem 0.5rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child, td.name { text-align: left; }
.met { color: var(--good); } .missed { color: var(--bad); }
svg { width: 100%; height: auto; } .grid { stroke: var(--line); } .axis, .key { fill: var(--dim); font-size: 11px; } .key { fill: var(--text); font-size: 12px; }
`;

export function page(report: Report): string {
  const { machine, date, quick, paths, skipped } = report;
  const where = [
    `${machine.cpus} × ${machine.cpu}${machine.virtual ? ' (virtual)' : ''}`,
    `Linux ${machine.kernel}`,
    `Node ${machine.node}`,
    `load ${machine.load} at the start`,
  ].join(', ');
  return `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>RetroVF benches</title>
<style>${style}</style>
<h1>RetroVF: what a doorbell costs</h1>
<p>${escape(date)}${quick ? ', a short run: a smoke test, no figures' : ''}. ${escape(where)}.</p>
<p>Contenders of a path took turns in one run. Figures are medians of the rounds; lines are all samples.</p>
${skipped.map((line) => `<p>Not measured: ${escape(line)}.</p>`).join('\n')}
<h2>Ratios</h2>
${ratioTable(report.ratios)}
${scaleSection(report.scale, report.held)}
${paths.map(section).join('\n')}
</html>
`;
}

function ratioTable(all: readonly Ratio[]): string {
  const rows = all.map((row) => {
    const { ours, peer, oursNs, peerNs, ratio, bound, met } = row;
    const limit = 'below' in bound ? `≤ ${bound.below}` : `≥ ${bound.above}`;
    return `<tr><td>${escape(subjectOf(row))}<br><small>${escape(ours)} / ${escape(peer)}</small><td>${time(oursNs)}<td>${time(peerNs)}<td class="${met ? 'met' : 'missed'}">${ratio.toFixed(2)} ×<td>${limit}`;
  });
  return `<table><tr><th>path<th>ours<th>beside<th>ratio<th>target\n${rows.join('\n')}</table>`;
}

function section(path: Path): string {
  return `<h2>${escape(path.path)}</h2>
<p>${escape(path.about)}</p>
${plot(path)}
<table><tr><th>contender${columns.map(([title]) => `<th>${title}`).join('')}
${path.contenders.map(row).join('\n')}</table>`;
}

const columns: readonly (readonly [string, keyof Round])[] = [
  ['p50', 'p50'],
  ['p90', 'p90'],
  ['p99', 'p99'],
  ['p99.9', 'p999'],
  ['p99.99', 'p9999'],
  ['server CPU', 'server_cpu_ns'],
];

function row({ name, rounds }: Contender): string {
  const cells = columns.map(([, figure]) => {
    const ns = median(rounds, figure);
    return `<td>${ns === null ? '' : time(ns)}`;
  });
  return `<tr><td>${escape(name)}${cells.join('')}`;
}
