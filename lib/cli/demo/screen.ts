// The demonstration on one screen of 100 columns: steps as they finish, then the numbers.

import { chart } from '../output/histogram.js';
import { padEnd, padStart, plain, widthOf, wrap, type Styles } from '../output/styles.js';
import type { Terminal } from '../output/terminal.js';
import { duration } from '../output/units.js';
import type { DemoReport } from './run-demo.js';
import type { DemoStep, Progress } from './stage.js';

const columns = 100;
const indent = 14;
const chartSize = { columns: 94, rows: 5 };
const eraseLine = '\r\u001b[2K';

export class DemoScreen implements Progress {
  readonly #terminal: Terminal;
  readonly #style: Styles;

  constructor(terminal: Terminal) {
    this.#terminal = terminal;
    this.#style = terminal.styles;
    this.#print(this.#heading());
  }

  started(name: string): void {
    if (this.#terminal.live) this.#terminal.write(` ${this.#style.dim(`… ${name}`)}`);
  }

  /** Takes the name of the step under way from the screen. */
  settle(): void {
    if (this.#terminal.live) this.#terminal.write(eraseLine);
  }

  finished(step: DemoStep): void {
    this.settle();
    this.#print([...this.#stepLines(step), ...this.#traceLines(step), ...this.#hintLines(step)]);
  }

  end(report: DemoReport): void {
    this.#print([...this.#numbers(report), ...this.#histogram(report), ...this.#closing(report)]);
  }

  #heading(): string[] {
    const { title, name, dim } = this.#style;
    return [
      title('RetroVF: a virtio 0.9.5 guest on a modern SR-IOV virtio-net VF'),
      '',
      ` ${name('legacy driver')} ${dim('─┬─ registers ── vfio-user ─▶')} ${name('RetroVF')}  ` +
        `${dim('─ admin commands ─▶')} ${name('PF')} ${dim('─▶')} ${name('VF')}`,
      `                ${dim('└─ notify ───── vfio-user ─▶')} ${name('doorbell')} ` +
        `${dim('─ 16-bit store ─────────▶')} ${name('VF')}`,
      '',
    ];
  }

  #stepLines({ name, ok, result, ms, accesses, commands }: DemoStep): string[] {
    const { good, bad, title, dim } = this.#style;
    const effort = [
      ...(accesses > 0 ? [`${accesses} acc`] : []),
      ...(commands > 0 ? [`${commands} cmd`] : []),
    ].join(' → ');
    const end = `${padStart(dim(effort), 21)} ${padStart(dim(`${ms.toFixed(1)} ms`), 10)}`;
    const mark = ok ? good('✔') : bad('✖');
    const [first = '', ...rest] = wrap(plain(result), columns - indent - widthOf(end));
    const start = padEnd(` ${mark} ${title(name)}`, indent) + first;
    return [
      padEnd(start, columns - widthOf(end)) + end,
      ...rest.map((line) => ' '.repeat(indent) + line),
    ];
  }

  #traceLines({ trace }: DemoStep): string[] {
    const { value, name, dim } = this.#style;
    return trace.map(({ access, command, meaning }) => {
      const left = access === '' ? '' : `${padEnd(value(access), 29)} ${dim('→')} `;
      return `      ${left}${padEnd(name(command), 44)}  ${dim(meaning)}`.trimEnd();
    });
  }

  #hintLines({ error }: DemoStep): string[] {
    if (error?.hint === undefined) return [];
    return [`      ${this.#style.warn('hint:')} ${plain(error.hint)}`];
  }

  #numbers({ packets, ping, control, doorbell }: DemoReport): string[] {
    const { title } = this.#style;
    const rows: [string, string, { p50: number; p90: number; p99: number; max: number } | null][] =
      [
        ['ping', 'to the gateway and back, both virtqueues', ping],
        ['control', 'register read: TypeScript, admin queue, device', control],
        ['doorbell', 'notify write and its reply: Rust only', doorbell],
      ];
    const measured = rows.flatMap(([name, what, times]) => {
      if (times === null) return [];
      const cells = [times.p50, times.p90, times.p99, times.max].map((ns) =>
        padStart(duration(ns), 9),
      );
      return [` ${padEnd(title(name), 12)} ${padEnd(what, 46)}${cells.join('')}`];
    });
    if (measured.length === 0) return [];
    const heads = ['p50', 'p90', 'p99', 'max'].map((head) => padStart(this.#style.dim(head), 9));
    const frames =
      packets === null
        ? ''
        : `${packets.sent} frames out, ${packets.received} in, ${packets.kicks} kicks`;
    return ['', ` ${padEnd(this.#style.dim(frames), 59)}${heads.join('')}`, ...measured];
  }

  #histogram({ doorbell }: DemoReport): string[] {
    if (doorbell === null) return [];
    const { rows, axis, labels, beyond } = chart(doorbell.buckets, chartSize);
    const { good, dim } = this.#style;
    const rest = beyond === 0 ? '' : `, ${beyond} slower ones not drawn`;
    return [
      '',
      dim(` ${doorbell.count} doorbells by the time they took${rest}`),
      ...rows.map((row) => `   ${good(row.trimEnd())}`),
      `   ${dim(axis)}`,
      `   ${dim(labels)}`,
    ];
  }

  #closing({ ok, steps }: DemoReport): string[] {
    const { good, bad, dim } = this.#style;
    if (ok) {
      return [
        '',
        `${good('ok')}  ${dim('Next: retrovf serve --softnic --socket /tmp/vf.sock, and attach QEMU.')}`,
      ];
    }
    const failed = steps.find((step) => !step.ok)?.name ?? '';
    return ['', `${bad('failed')} at step ${failed}`];
  }

  #print(lines: readonly string[]): void {
    if (lines.length > 0) this.#terminal.write(`${lines.join('\n')}\n`);
  }
}
