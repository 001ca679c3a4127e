// The legacy register block (I/O BAR0), and how a guest's access to it becomes accesses to single
// registers: each admin command may touch one register only, a guest may touch what it likes.

import type { ConfigField } from './device-types.js';

/** Register offsets. */
export const register = {
  deviceFeatures: 0x00,
  driverFeatures: 0x04,
  queueAddress: 0x08,
  queueSize: 0x0c,
  queueSelect: 0x0e,
  queueNotify: 0x10,
  status: 0x12,
  isr: 0x13,
  configVector: 0x14,
  queueVector: 0x16,
} as const;

/** Status bit: the driver knows how to drive the device. */
export const statusDriver = 2;

/** The common registers as [offset, bytes]; the last two exist only while MSI-X is enabled. */
export const commonFields: readonly ConfigField[] = [
  [register.deviceFeatures, 4],
  [register.driverFeatures, 4],
  [register.queueAddress, 4],
  [register.queueSize, 2],
  [register.queueSelect, 2],
  [register.queueNotify, 2],
  [register.status, 1],
  [register.isr, 1],
  [register.configVector, 2],
  [register.queueVector, 2],
];

/** Where the device configuration begins. The guest's MSI-X enable bit decides. */
export function configBase(msix: boolean): 20 | 24 {
  return msix ? 24 : 20;
}

/** Part of an access that one register serves, or none. */
export interface Piece {
  /**
   * `common` and `device`: one admin command. `notify`: the whole of queue notify, which a write sends
   * to the doorbell instead. `hole`: no register; reads as all ones, takes no write.
   */
  readonly kind: 'common' | 'device' | 'notify' | 'hole';
  /** First byte: of the common registers, of the device configuration (`device`), of BAR0 (`hole`). */
  readonly offset: number;
  readonly length: number;
  /** First byte within the access. */
  readonly at: number;
}

/** Splits accesses to one device's BAR0; keeps what it computed, as guests repeat a few accesses. */
export class LegacyRegisters {
  readonly #plain: readonly Kind[];
  readonly #msix: readonly Kind[];
  readonly #known = new Map<number, readonly Piece[]>();

  /**
   * Registers whose end is past `configLength` do not exist; neither do those past `size`, the bytes
   * of BAR0.
   */
  constructor(size: number, fields: readonly ConfigField[], configLength: number) {
    const present = fields.filter(([offset, length]) => offset + length <= configLength);
    this.#plain = layout(false, present, size);
    this.#msix = layout(true, present, size);
  }

  /** The pieces of an access, in order; together they cover each of its bytes once. */
  split(offset: number, length: number, msix: boolean): readonly Piece[] {
    const key = (offset * 1024 + length) * 2 + Number(msix);
    let pieces = this.#known.get(key);
    if (pieces === undefined) {
      pieces = split(msix ? this.#msix : this.#plain, offset, length);
      // BAR0 has at most 256 bytes; the bound holds the map small whatever an API user tries.
      if (this.#known.size < 1024) this.#known.set(key, pieces);
    }
    return pieces;
  }
}

/** What a byte of BAR0 belongs to. */
type Kind = { kind: 'hole' } | { kind: 'common' | 'device'; field: ConfigField; base: number };

function layout(msix: boolean, fields: readonly ConfigField[], size: number): Kind[] {
  const bytes: Kind[] = Array.from({ length: size }, () => ({ kind: 'hole' }));
  const base = configBase(msix);
  const place = (kind: 'common' | 'device', field: ConfigField, base: number) => {
    const [offset, length] = field;
    if (base + offset + length <= size)
      bytes.fill({ kind, field, base }, base + offset, base + offset + length);
  };
  for (const field of commonFields) if (field[0] < base) place('common', field, 0);
  for (const field of fields) place('device', field, base);
  return bytes;
}

function split(bytes: readonly Kind[], offset: number, length: number): Piece[] {
  const pieces: Piece[] = [];
  for (let at = 0; at < length;) {
    const owner = bytes[offset + at] ?? { kind: 'hole' };
    let end = at + 1;
    // Bytes of one register share their object; holes join.
    while (end < length && sameOwner(owner, bytes[offset + end] ?? { kind: 'hole' })) end += 1;
    pieces.push(pieceOf(owner, offset + at, end - at, at));
    at = end;
  }
  return pieces;
}

function sameOwner(a: Kind, b: Kind): boolean {
  return a === b || (a.kind === 'hole' && b.kind === 'hole');
}

function pieceOf(owner: Kind, from: number, length: number, at: number): Piece {
  if (owner.kind === 'hole') return { kind: 'hole', offset: from, length, at };
  const offset = from - owner.base;
  const notify = owner.kind === 'common' && offset === register.queueNotify && length === 2;
  return { kind: notify ? 'notify' : owner.kind, offset, length, at };
}
