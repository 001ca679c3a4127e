// Distributions as lines: how many samples, in percent, took up to how long. Time is logarithmic, and
// so is the distance to 100 %, since doorbells are judged by their tails.

import type { Contender, Path } from '../js/series.js';
import { time } from './units.js';

const width = 760;
const height = 300;
const margin = { left: 56, right: 190, top: 16, bottom: 40 };
const colours = ['#1f77b4', '#e4572e', '#3a9d5d', '#8e63ce', '#b8860b'];
/** Percentiles with a line of their own. */
const marks = [0, 50, 90, 99, 99.9, 99.99];

/** The same as a file of its own, for light and dark pages. */
export function standalone(path: Path): string {
  const style = `
text { font-family: system-ui, sans-serif; fill: #1c2024; font-size: 12px } .axis { fill: #667; font-size: 11px } .grid { stroke: #dde }
@media (prefers-color-scheme: dark) { text { fill: #e6e8eb } .axis { fill: #9aa3ad } .grid { stroke: #2c3238 } }
`;
  return `${plot(path).replace(
    /^<svg ([^>]*)>/,
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" $1>\n<style>${style}</style>`,
  )}\n`;
}

export function plot({ path, contenders }: Path): string {
  const values = contenders.flatMap(({ cdf }) => cdf.map(([ns]) => ns)).filter((ns) => ns > 0);
  const low = Math.min(...values);
  const high = Math.max(...values);
  const x = (ns: number) => {
    const share = Math.log(Math.max(ns, low) / low) / Math.log(Math.max(high / low, 1.01));
    return margin.left + share * (width - margin.left - margin.right);
  };
  const bottom = height - margin.bottom;
  const y = (percent: number) => bottom - (tail(percent) / tail(99.99)) * (bottom - margin.top);
  return [
    `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${escape(path)}">`,
    ...marks.map((mark) => {
      const at = y(mark).toFixed(1);
      return (
        `<path class="grid" d="M${margin.left} ${at}H${width - margin.right}"/>` +
        `<text class="axis" x="${margin.left - 6}" y="${at}" text-anchor="end" dy="0.32em">${mark} %</text>`
      );
    }),
    ...ticks(low, high).map((ns) => {
      const at = x(ns).toFixed(1);
      return (
        `<path class="grid" d="M${at} ${margin.top}V${bottom}"/>` +
        `<text class="axis" x="${at}" y="${bottom + 16}" text-anchor="middle">${time(ns)}</text>`
      );
    }),
    ...contenders.map((contender, i) => line(contender, i, x, y)),
    '</svg>',
  ].join('\n');
}

/** Nines: 0 at 0 %, 1 at 90 %, 2 at 99 %. */
function tail(percent: number): number {
  return -Math.log10(1 - Math.min(percent, 99.995) / 100);
}

function line(
  { name, cdf }: Contender,
  index: number,
  x: (ns: number) => number,
  y: (percent: number) => number,
): string {
  const colour = colours[index % colours.length];
  const points = cdf.map(([ns, percent]) => `${x(ns).toFixed(1)} ${y(percent).toFixed(1)}`);
  const key = margin.top + 10 + index * 20;
  const left = width - margin.right + 14;
  return (
    `<path d="M${points.join('L')}" fill="none" stroke="${colour}" stroke-width="2"/>` +
    `<path d="M${left} ${key}h18" stroke="${colour}" stroke-width="3"/>` +
    `<text class="key" x="${left + 24}" y="${key}" dy="0.32em">${escape(name)}</text>`
  );
}

function ticks(low: number, high: number): number[] {
  const all = Array.from({ length: 12 }, (_, power) => 10 ** (power - 1)).flatMap((power) => [
    power,
    2 * power,
    5 * power,
  ]);
  const inside = all.filter((ns) => ns >= low && ns <= high);
  // Past about ten the labels touch.
  return inside.length > 10 ? inside.filter((ns) => Number.isInteger(Math.log10(ns))) : inside;
}

export function escape(text: string): string {
  const entities: Record<string, string> = {
    '&': '&amp;',
    '<': '&lt;',
    '>': '&gt;',
    '"': '&quot;',
  };
  return text.replaceAll(/[&<>"]/g, (character) => entities[character] ?? character);
}
