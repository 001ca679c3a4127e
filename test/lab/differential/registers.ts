// The legacy registers of a network function, from the specification and not from lib/: what the
// comparison expects must not come from what it tests.

export interface Register {
  readonly offset: number;
  readonly size: number;
}

/** BAR0 of both: 24 bytes of common registers and the first eight of the configuration. */
export const bar0Size = 32;
/** Of a PCI Express function. */
export const configSize = 4096;
export const queueNotify = 16;

const common: readonly Register[] = [
  { offset: 0, size: 4 }, // device features
  { offset: 4, size: 4 }, // driver features
  { offset: 8, size: 4 }, // queue address
  { offset: 12, size: 2 }, // queue size
  { offset: 14, size: 2 }, // queue select
  { offset: queueNotify, size: 2 },
  { offset: 18, size: 1 }, // status
  { offset: 19, size: 1 }, // ISR
];
const vectorRegisters: readonly Register[] = [
  { offset: 20, size: 2 },
  { offset: 22, size: 2 },
];
const network: readonly Register[] = [
  { offset: 0, size: 6 }, // MAC
  { offset: 6, size: 2 }, // status
  { offset: 8, size: 2 }, // max_virtqueue_pairs
  { offset: 10, size: 2 }, // MTU
];

export function registers(msix: boolean): Register[] {
  const base = msix ? 24 : 20;
  const config = network.map(({ offset, size }) => ({ offset: base + offset, size }));
  const all = [...common, ...(msix ? vectorRegisters : []), ...config];
  return all.filter(({ offset, size }) => offset + size <= bar0Size);
}

export interface Part {
  readonly offset: number;
  readonly width: number;
}

/** An access cut where a register ends. */
export function parts(offset: number, width: number, msix: boolean): Part[] {
  const cuts = registers(msix)
    .flatMap((register) => [register.offset, register.offset + register.size])
    .filter((cut) => cut > offset && cut < offset + width);
  const ends = [...new Set(cuts)].toSorted((a, b) => a - b);
  const starts = [offset, ...ends];
  return starts.map((start, i) => ({ offset: start, width: (ends[i] ?? offset + width) - start }));
}

/** Whether a part lies in no register at all. */
export function isHole(part: Part, msix: boolean): boolean {
  return !registers(msix).some(
    ({ offset, size }) => part.offset >= offset && part.offset < offset + size,
  );
}
