// What devices cost beside others in one process, for people.

import type { Scale } from '../js/scale.js';
import type { Held } from './ratios.js';

interface Column {
  readonly title: string;
  readonly figure: keyof Scale;
  readonly text: (value: number) => string;
}

const kibibytes = (bytes: number) => `${(bytes / 1024).toFixed(1)} KiB`;
const plain = (value: number) => String(Math.round(value));

const columns: readonly Column[] = [
  { title: 'devices', figure: 'devices', text: plain },
  { title: 'memory a device', figure: 'memory_bytes_per_device', text: kibibytes },
  { title: 'JavaScript', figure: 'heap_bytes_per_device', text: kibibytes },
  { title: 'stacks', figure: 'stack_bytes_per_device', text: kibibytes },
  { title: 'page tables', figure: 'page_table_bytes_per_device', text: kibibytes },
  { title: 'threads', figure: 'threads_per_device', text: plain },
  { title: 'idle CPU', figure: 'idle_cpu_percent', text: (value) => `${value.toFixed(2)} %` },
  { title: 'to open', figure: 'open_ms_per_device', text: (value) => `${value.toFixed(1)} ms` },
];

export function scaleSection(scale: readonly Scale[], held: readonly Held[]): string {
  if (scale.length === 0) return '';
  const rows = scale.map((row) => {
    const cells = columns.map(({ figure, text }) => {
      const limit = held.find((one) => one.devices === row.devices && one.figure === figure);
      const verdict = limit === undefined ? '' : ` class="${limit.met ? 'met' : 'missed'}"`;
      const bound = limit === undefined ? '' : `<br><small>&lt; ${text(limit.below)}</small>`;
      const value = row[figure];
      return `<td${verdict}>${value === null ? '' : text(value)}${bound}`;
    });
    return `<tr>${cells.join('')}`;
  });
  return `<h2>scale</h2>
<p>Processes whose devices each have a client with eight doorbells; none is kicked. Memory is what a
device has added to the process, with its parts JavaScript and stacks; the VFs, which are simulated, and
V8's nursery are not in it.</p>
<table><tr>${columns.map(({ title }) => `<th>${title}`).join('')}
${rows.join('\n')}</table>`;
}

/** One line for a terminal. */
export function heldLine({ devices, figure, value, below, met }: Held): string {
  const text = columns.find((column) => column.figure === figure)?.text ?? plain;
  const subject = `scale, ${devices} devices, ${figure.replaceAll('_', ' ')}`;
  return `${met ? 'met   ' : 'missed'}  ${subject.padEnd(46)} ${text(value)} (below ${text(below)})`;
}
