// Where notifications of a member go: the choice among the addresses that the device lists (virtio
// 1.4, "Legacy Interfaces: Notification Information").

import type { NotifyEntry } from './virtio/admin-commands.js';

/** How a queue notification reaches the device. */
export type NotifyPlan =
  | {
      /** A 16-bit write to a BAR of the member or of its owner. */
      readonly kind: 'region';
      readonly of: 'member' | 'owner';
      readonly bar: number;
      readonly offset: number;
    }
  | {
      /** An admin command for each: no usable address exists. */
      readonly kind: 'command';
      readonly why: 'not-offered' | 'refused' | 'no-usable-entry';
    };

export interface IgnoredEntry {
  readonly entry: NotifyEntry;
  readonly why: string;
}

export interface BarSizes {
  /** Bytes of a BAR; 0: absent. */
  member(bar: number): number;
  owner(bar: number): number;
}

const end = 0;
const ownerBar = 1;
const memberBar = 2;
// The fourth entry only ends the list.
const maxEntries = 3;

/**
 * Takes the first entry that is usable, in the device's order, which is its order of preference. The
 * kernel's driver takes member entries only, and takes them unchecked.
 */
export function chooseNotify(
  entries: readonly NotifyEntry[],
  sizes: BarSizes,
): { plan: NotifyPlan; ignored: IgnoredEntry[] } {
  const ignored: IgnoredEntry[] = [];
  for (const entry of entries.slice(0, maxEntries)) {
    if (entry.flags === end) break;
    const why = problemOf(entry, sizes);
    if (why === null) {
      const of = entry.flags === memberBar ? 'member' : 'owner';
      const plan = { kind: 'region', of, bar: entry.bar, offset: Number(entry.offset) } as const;
      return { plan, ignored };
    }
    ignored.push({ entry, why });
  }
  return { plan: { kind: 'command', why: 'no-usable-entry' }, ignored };
}

function problemOf({ flags, bar, offset }: NotifyEntry, sizes: BarSizes): string | null {
  if (flags !== ownerBar && flags !== memberBar)
    return `flags ${flags} are neither owner nor member`;
  // BAR0 is where the legacy registers appear.
  if (bar < 1 || bar > 5) return `BAR ${bar} is not 1 to 5`;
  const size = flags === memberBar ? sizes.member(bar) : sizes.owner(bar);
  if (size === 0) return `BAR ${bar} does not exist`;
  if (offset % 2n !== 0n) return `offset 0x${offset.toString(16)} is odd`;
  if (offset + 2n > BigInt(size)) return `offset 0x${offset.toString(16)} is outside BAR ${bar}`;
  return null;
}
