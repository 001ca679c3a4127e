// A latency histogram in block characters: columns on a logarithmic time axis,
// linear counts, and at least a sliver for any column that was hit at all.

export interface Bucket {
  readonly ns: number;
  readonly count: number;
}

export interface Chart {
  /** Top row first, each `columns` wide. */
  readonly rows: readonly string[];
  readonly axis: string;
  readonly labels: string;
  /** Samples to the right of the axis. */
  readonly beyond: number;
}

const blocks = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const ticksPerDecade = [1, 2, 5];

export function chart(
  buckets: readonly Bucket[],
  { columns, rows }: { columns: number; rows: number },
): Chart {
  const { drawn, beyond } = split(buckets.filter(({ ns, count }) => ns > 0 && count > 0));
  if (drawn.length === 0) return { rows: [], axis: '', labels: '', beyond };
  const lowest = Math.min(...drawn.map(({ ns }) => ns));
  const highest = Math.max(...drawn.map(({ ns }) => ns));
  // A tenth of a decade at least, so that one bucket alone has an axis too.
  const from = Math.log10(lowest);
  const span = Math.max(0.1, Math.log10(highest) - from);
  const columnOf = (ns: number): number =>
    Math.min(columns - 1, Math.floor(((Math.log10(ns) - from) / span) * columns));

  const counts = Array.from({ length: columns }, () => 0);
  for (const { ns, count } of drawn) counts[columnOf(ns)] = (counts[columnOf(ns)] ?? 0) + count;
  return {
    rows: bars(counts, rows),
    ...ruler(columns, lowest, 10 ** (from + span), columnOf),
    beyond,
  };
}

/** The slowest 0.2 % can lie decades away and would take the room of the rest. */
const drawnShare = 0.998;

function split(buckets: readonly Bucket[]): { drawn: Bucket[]; beyond: number } {
  const sorted = buckets.toSorted((a, b) => a.ns - b.ns);
  const total = sorted.reduce((sum, { count }) => sum + count, 0);
  let seen = 0;
  const drawn = sorted.filter(({ count }) => {
    const earlier = seen;
    seen += count;
    return earlier < total * drawnShare;
  });
  return { drawn, beyond: total - drawn.reduce((sum, { count }) => sum + count, 0) };
}

function bars(counts: readonly number[], rows: number): string[] {
  const most = Math.max(...counts);
  const heights = counts.map((count) =>
    count === 0 ? 0 : Math.max(1, Math.round((count / most) * rows * 8)),
  );
  return Array.from({ length: rows }, (_, row) => {
    const below = (rows - 1 - row) * 8;
    return heights.map((height) => blocks[Math.min(8, Math.max(0, height - below))]).join('');
  });
}

function ruler(
  columns: number,
  lowest: number,
  highest: number,
  columnOf: (ns: number) => number,
): { axis: string; labels: string } {
  const axis = Array.from({ length: columns }, () => '─');
  let labels = '';
  for (let decade = 10 ** Math.floor(Math.log10(lowest)); decade <= highest; decade *= 10) {
    for (const ns of ticksPerDecade.map((tick) => tick * decade)) {
      if (ns < lowest || ns > highest) continue;
      const at = columnOf(ns);
      axis[at] = '┬';
      const text = shortDuration(ns);
      const start = Math.max(0, at - Math.floor(text.length / 2));
      if (start < labels.length + (labels === '' ? 0 : 1) || start + text.length > columns)
        continue;
      labels = labels.padEnd(start) + text;
    }
  }
  return { axis: axis.join(''), labels };
}

/** Such as `20 µs`, for an axis; the value is one that reads well. */
function shortDuration(ns: number): string {
  if (ns < 1e3) return `${Math.round(ns)} ns`;
  if (ns < 1e6) return `${Math.round(ns / 1e3)} µs`;
  if (ns < 1e9) return `${Math.round(ns / 1e6)} ms`;
  return `${Math.round(ns / 1e9)} s`;
}
