// Targets, with what a run has measured.

import type { Scale } from '../js/scale.js';
import type { Path, Round } from '../js/series.js';
import { limits, targets, type Limit, type Target } from './targets.js';

export interface Ratio extends Target {
  readonly oursNs: number;
  readonly peerNs: number;
  readonly ratio: number;
  readonly met: boolean;
}

/** The targets whose contenders were all measured. */
export function ratios(paths: readonly Path[]): Ratio[] {
  return targets.flatMap((target) => {
    const path = paths.find((candidate) => candidate.path === target.path);
    const oursNs = medianOf(path, target.ours, target.figure);
    const peerNs = medianOf(path, target.peer, target.figure);
    if (oursNs === null || peerNs === null) return [];
    const { bound } = target;
    const ratio = 'below' in bound ? oursNs / peerNs : peerNs / oursNs;
    const met = 'below' in bound ? ratio <= bound.below : ratio >= bound.above;
    return [{ ...target, oursNs, peerNs, ratio, met }];
  });
}

export interface Held extends Limit {
  readonly value: number;
  readonly met: boolean;
}

/** The limits of processes that were measured. */
export function held(scale: readonly Scale[]): Held[] {
  return limits.flatMap((limit) => {
    const value = scale.find(({ devices }) => devices === limit.devices)?.[limit.figure];
    return value === undefined || value === null
      ? []
      : [{ ...limit, value, met: value < limit.below }];
  });
}

/** The path and the figure of it that a target is about. */
export function subjectOf({ path, figure }: Target): string {
  return `${path}, ${figure === 'server_cpu_ns' ? 'server CPU' : figure}`;
}

function medianOf(path: Path | undefined, contender: string, figure: keyof Round): number | null {
  return median(path?.contenders.find(({ name }) => name === contender)?.rounds ?? [], figure);
}

/** Median over rounds of one of their figures. */
export function median(rounds: readonly Round[], figure: keyof Round): number | null {
  const values = rounds.flatMap((round) => round[figure] ?? []).toSorted((a, b) => a - b);
  return values[values.length >> 1] ?? null;
}
