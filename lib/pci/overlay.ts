// The configuration space that a guest sees, as a table of bits that we answer instead of the device.
// Computed once at open; Rust applies it to every access (virtio 1.4, "PCI Device Discovery", legacy
// interface, and what the kernel's driver does).

import type { NativeOverlayRow } from '../native.js';
import { virtioVendor, type DeviceType } from '../virtio/device-types.js';
import {
  command,
  configOffset,
  isVirtioCapability,
  resetControls,
  statusCapabilities,
  virtioCapabilityRanges,
  type CapabilityList,
  type MsixCapability,
} from './capabilities.js';

/**
 * `transitional`: the virtio capabilities stay, so a modern driver in the guest goes modern and a
 * legacy one uses BAR0. `legacy`: they are hidden, so every driver uses BAR0.
 */
export type Presentation = 'transitional' | 'legacy';

export interface OverlayInput {
  readonly config: Uint8Array;
  readonly list: CapabilityList;
  readonly msix: MsixCapability | null;
  readonly type: DeviceType;
  readonly bar0Size: number;
  readonly presentation: Presentation;
  /** The function can raise INTx; a VF cannot. */
  readonly intx: boolean;
}

const msixControlBits = 0xc000; // enable, mask all
const barIo = 1;

export function transitionalOverlay(input: OverlayInput): NativeOverlayRow[] {
  return [
    constant(configOffset.deviceId, 2, input.type.transitionalId),
    {
      // A VF has no I/O space, so this is the only holder of the bit. Unlike the kernel's, it reads
      // as it acts after a reset: clear.
      ...constant(configOffset.command, 2, 0, command.io),
      writable: command.io,
      resets: true,
    },
    constant(configOffset.revision, 1, 0),
    // One function by itself, whatever its neighbours are.
    constant(configOffset.headerType, 1, 0),
    {
      // Kept over a reset, as the kernel keeps it: resets restore BARs.
      ...constant(configOffset.bar0, 4, barIo),
      writable: ~(input.bar0Size - 1) >>> 0,
    },
    constant(configOffset.subsystemVendor, 2, virtioVendor),
    constant(configOffset.subsystem, 2, input.type.virtioId),
    ...(input.intx ? [] : [constant(configOffset.interruptPin, 1, 0)]),
    ...msixRows(input.msix),
    // The bits are the device's; what it forgets when they are set, the rows above forget too.
    ...resetControls(input.config, input.list).map(({ offset, width, bit }) => ({
      ...constant(offset, width, 0, 0),
      flr: bit,
    })),
    ...(input.presentation === 'legacy' ? hiddenCapabilities(input) : []),
  ];
}

/** Bits that read as `value` and ignore writes. */
function constant(
  offset: number,
  width: 1 | 2 | 4,
  value: number,
  mask = 2 ** (8 * width) - 1,
): NativeOverlayRow {
  return { offset, width, value, mask, writable: 0, forward: false, resets: false, flr: 0 };
}

/**
 * The guest's view of MSI-X enable, which moves the device configuration from 20 to 24. The device's
 * own bit follows the interrupts that the client installs, earlier or later.
 */
function msixRows(msix: MsixCapability | null): NativeOverlayRow[] {
  if (msix === null) return [];
  const control = constant(msix.offset + 2, 2, 0, msixControlBits);
  return [{ ...control, writable: msixControlBits, resets: true }];
}

/** Takes the virtio capabilities out of the list, and their bytes (one is a window into BARs) away. */
function hiddenCapabilities({ config, list }: OverlayInput): NativeOverlayRow[] {
  const rows: NativeOverlayRow[] = [];
  for (const { from, to } of virtioCapabilityRanges(config, list)) {
    for (let at = from; at < to; at += 1) rows.push(constant(at, 1, 0));
  }
  const kept = list.capabilities.filter((capability) => !isVirtioCapability(capability));
  // Every pointer is written, so that a list which ended badly ends cleanly for the guest.
  let pointer: number = configOffset.capabilityPointer;
  for (const { offset } of kept) {
    rows.push(constant(pointer, 1, offset));
    pointer = offset + 1;
  }
  rows.push(constant(pointer, 1, 0));
  if (kept.length === 0) rows.push(constant(configOffset.status, 2, 0, statusCapabilities));
  return rows;
}
