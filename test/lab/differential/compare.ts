// Both sides' answers to one transcript, access by access.

import { differences } from './differences.js';
import type { Step } from './plan.js';
import { msixControl } from './state.js';
import {
  formatAccess,
  parseAccess,
  parseAnswer,
  sameAnswer,
  type Access,
  type Answer,
} from './transcript.js';

export interface Comparison {
  accesses: number;
  equal: number;
  /** Intended differences by name. */
  readonly intended: Record<string, number>;
  /** What fits no row: the access and both answers. */
  readonly others: string[];
}

export function compare(
  steps: readonly Step[],
  kernelLines: readonly string[],
  ourLines: readonly string[],
): Comparison {
  const kernel = new Player('the kernel', kernelLines);
  const ours = new Player('RetroVF', ourLines);
  const result: Comparison = { accesses: 0, equal: 0, intended: {}, others: [] };
  for (const { access, added, state } of steps) {
    const kernelAnswer = kernel.answer(access);
    const addedAnswers = added.map((extra) => kernel.answer(extra));
    const ourAnswer = ours.answer(access);
    result.accesses += 1;
    if (sameAnswer(kernelAnswer, ourAnswer)) {
      result.equal += 1;
      continue;
    }
    const observed = { access, state, kernel: kernelAnswer, added: addedAnswers, ours: ourAnswer };
    const row = differences.find(({ fits }) => fits(observed));
    if (row === undefined) {
      const text = `${formatAccess(access)}: kernel ${show(kernelAnswer)}, RetroVF ${show(ourAnswer)}`;
      result.others.push(`access ${result.accesses}, ${text}`);
    } else {
      result.intended[row.name] = (result.intended[row.name] ?? 0) + 1;
    }
  }
  kernel.end();
  ours.end();
  return result;
}

export function total(comparisons: readonly Comparison[]): Comparison {
  const sum: Comparison = { accesses: 0, equal: 0, intended: {}, others: [] };
  for (const { accesses, equal, intended, others } of comparisons) {
    sum.accesses += accesses;
    sum.equal += equal;
    sum.others.push(...others);
    for (const [name, count] of Object.entries(intended)) {
      sum.intended[name] = (sum.intended[name] ?? 0) + count;
    }
  }
  return sum;
}

/** One line of all counts. */
export function summary({ accesses, equal, intended, others }: Comparison): string {
  const kinds = Object.entries(intended).toSorted(([a], [b]) => a.localeCompare(b));
  const sum = kinds.reduce((count, [, n]) => count + n, 0);
  const list = kinds.map(([name, count]) => `${name} ${count}`).join(', ');
  return (
    `${accesses} accesses: ${equal} equal, ${sum} intended differences` +
    `${list === '' ? '' : ` (${list})`}, ${others.length} others`
  );
}

/** What a player printed, checked to be answers to the accesses that it was given. */
class Player {
  readonly #name: string;
  readonly #lines: readonly string[];
  #next = 0;

  constructor(name: string, lines: readonly string[]) {
    this.#name = name;
    const msix = /^# msix (0x[0-9a-f]+)$/.exec(lines[0] ?? '')?.[1];
    if (Number(msix) !== msixControl) {
      throw new Error(`${name} has MSI-X control at ${msix}, not at ${msixControl}: ${lines[0]}`);
    }
    this.#lines = lines.filter((line) => line !== '' && !line.startsWith('#'));
  }

  answer(access: Access): Answer {
    const line = this.#lines[this.#next]?.replace(/^\+/, '');
    this.#next += 1;
    const asked = formatAccess(access);
    const played = line === undefined ? null : parseAccess(line);
    if (line === undefined || played === null || formatAccess(played) !== asked) {
      throw new Error(`${this.#name} was asked "${asked}" and answered "${line ?? 'nothing'}"`);
    }
    return parseAnswer(line);
  }

  end(): void {
    if (this.#next !== this.#lines.length) {
      throw new Error(`${this.#name} answered more than it was asked`);
    }
  }
}

function show(answer: Answer): string {
  switch (answer.kind) {
    case 'bytes':
      return answer.bytes.toString('hex');
    case 'error':
      return answer.name;
    case 'short':
      return answer.text;
    case 'done':
      return 'ok';
  }
}
