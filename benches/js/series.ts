// Rounds of samples, and what is said of them: the shape that benches/native prints.

import type { NativeHistogram } from '../../lib/index.js';

export interface Round {
  readonly count: number;
  readonly p50: number;
  readonly p90: number;
  readonly p99: number;
  readonly p999?: number;
  readonly p9999?: number;
  readonly max: number;
  /** CPU time of the serving thread for each request. */
  readonly server_cpu_ns?: number;
}

export interface Contender {
  readonly name: string;
  readonly rounds: readonly Round[];
  /** Value in ns, and the percentage of samples up to it. */
  readonly cdf: readonly (readonly [number, number])[];
}

export interface Path {
  readonly path: string;
  readonly about: string;
  readonly unit: 'ns';
  readonly contenders: readonly Contender[];
}

export interface Plan {
  readonly rounds: number;
  readonly samples: number;
}

/** As the native benches: short for a smoke test, long for figures. */
export function planOf(quick: boolean): Plan {
  return quick ? { rounds: 3, samples: 1_000 } : { rounds: 15, samples: 5_000 };
}

const percentiles = { p50: 50, p90: 90, p99: 99, p999: 99.9, p9999: 99.99 } as const;

export function describe(samples: readonly number[]): Round {
  const sorted = samples.toSorted((a, b) => a - b);
  const at = (percent: number) => nearestRank(sorted, percent);
  return {
    count: sorted.length,
    p50: at(percentiles.p50),
    p90: at(percentiles.p90),
    p99: at(percentiles.p99),
    p999: at(percentiles.p999),
    p9999: at(percentiles.p9999),
    max: sorted.at(-1) ?? 0,
  };
}

function nearestRank(sorted: readonly number[], percent: number): number {
  const rank = Math.ceil((sorted.length * percent) / 100);
  return sorted[Math.max(rank - 1, 0)] ?? 0;
}

const steps = [
  ...Array.from({ length: 198 }, (_, i) => (i + 1) / 2),
  99.25,
  99.5,
  99.75,
  99.9,
  99.95,
  99.99,
];

export function distribution(samples: readonly number[]): [number, number][] {
  const sorted = samples.toSorted((a, b) => a - b);
  return steps.map((percent) => [nearestRank(sorted, percent), percent]);
}

/** The values that a histogram has gained since an earlier look at it, each at its bucket's end. */
export function gained(before: NativeHistogram, after: NativeHistogram): number[] {
  const old = new Map(before.buckets.map(({ ns, count }) => [ns, count]));
  return after.buckets.flatMap(({ ns, count }) =>
    Array<number>(count - (old.get(ns) ?? 0)).fill(Math.min(ns, after.max)),
  );
}

export interface Measured {
  readonly name: string;
  /** Nanoseconds of each of so many samples. */
  readonly block: (samples: number) => number[] | Promise<number[]>;
}

/** Contenders take turns, and each goes first as often as the others. */
export async function measure(
  about: { readonly path: string; readonly about: string },
  plan: Plan,
  contenders: readonly Measured[],
): Promise<Path> {
  const all = contenders.map(() => [] as number[]);
  const rounds = contenders.map(() => [] as Round[]);
  for (let round = 0; round < plan.rounds; round += 1) {
    for (let turn = 0; turn < contenders.length; turn += 1) {
      const at = (round + turn) % contenders.length;
      const contender = contenders[at];
      if (contender === undefined) continue;
      await contender.block(Math.ceil(plan.samples / 10));
      const samples = await contender.block(plan.samples);
      rounds[at]?.push(describe(samples));
      all[at]?.push(...samples);
    }
    process.stderr.write(`${about.path}: round ${round + 1} of ${plan.rounds}\n`);
  }
  return {
    ...about,
    unit: 'ns',
    contenders: contenders.map(({ name }, at) => ({
      name,
      rounds: rounds[at] ?? [],
      cdf: distribution(all[at] ?? []),
    })),
  };
}
