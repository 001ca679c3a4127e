// The capability list of a PCI function, read from its configuration bytes. The bytes are the
// device's: every walk is bounded, and what is wrong is reported, not thrown.

export const configOffset = {
  deviceId: 0x02,
  command: 0x04,
  status: 0x06,
  revision: 0x08,
  headerType: 0x0e,
  bar0: 0x10,
  subsystemVendor: 0x2c,
  subsystem: 0x2e,
  capabilityPointer: 0x34,
  interruptPin: 0x3d,
} as const;

export const command = { io: 1, memory: 2, busMaster: 4 } as const;
export const statusCapabilities = 0x10;

const vendorId = 0x09;
const expressId = 0x10;
const msixId = 0x11;
const advancedFeaturesId = 0x13;
const firstCapability = 0x40;
const conventionalSize = 256;
// As many as fit in 192 bytes at 4 bytes each.
const maxCapabilities = 48;

export interface Capability {
  readonly id: number;
  readonly offset: number;
}

export interface CapabilityList {
  /** In the order of the list. */
  readonly capabilities: readonly Capability[];
  /** What is wrong with the list, in words; the walk ends there. */
  readonly problems: readonly string[];
}

export function walkCapabilities(config: Uint8Array): CapabilityList {
  const capabilities: Capability[] = [];
  const problems: string[] = [];
  const list = { capabilities, problems };
  if ((byteAt(config, configOffset.status) & statusCapabilities) === 0) return list;
  const seen = new Set<number>();
  let offset = byteAt(config, configOffset.capabilityPointer) & ~3;
  while (offset !== 0) {
    const problem =
      offset < firstCapability
        ? 'points into the header'
        : seen.has(offset)
          ? 'points back into the list'
          : offset + 1 >= Math.min(config.length, conventionalSize)
            ? 'is outside the configuration bytes that can be read'
            : seen.size === maxCapabilities
              ? 'is one capability too many'
              : null;
    if (problem !== null) {
      problems.push(`Capability pointer 0x${offset.toString(16)} ${problem}`);
      break;
    }
    seen.add(offset);
    capabilities.push({ id: byteAt(config, offset), offset });
    offset = byteAt(config, offset + 1) & ~3;
  }
  return list;
}

export interface MsixCapability {
  readonly offset: number;
  readonly vectors: number;
  readonly table: { readonly bar: number; readonly offset: number };
  readonly pending: { readonly bar: number; readonly offset: number };
}

/** The MSI-X capability, if there is a whole one. */
export function findMsix(config: Uint8Array, list: CapabilityList): MsixCapability | null {
  const found = list.capabilities.find(({ id }) => id === msixId);
  if (found === undefined || found.offset + 12 > config.length) return null;
  const view = viewOf(config);
  const place = (at: number) => {
    const word = view.getUint32(at, true);
    return { bar: word & 7, offset: (word & ~7) >>> 0 };
  };
  return {
    offset: found.offset,
    vectors: (view.getUint16(found.offset + 2, true) & 0x7ff) + 1,
    table: place(found.offset + 4),
    pending: place(found.offset + 8),
  };
}

/** Where a function can be told to reset itself. */
export interface ResetControl {
  readonly offset: number;
  readonly width: 1 | 2;
  /** The bit to write. */
  readonly bit: number;
}

/**
 * The function level reset bits: Device Control of the PCI Express capability, and the control
 * register of Advanced Features, each where its capability offers it.
 */
export function resetControls(config: Uint8Array, list: CapabilityList): ResetControl[] {
  const view = viewOf(config);
  const controls: ResetControl[] = [];
  for (const { id, offset } of list.capabilities) {
    if (id === expressId && offset + 10 <= config.length) {
      const offered = (view.getUint32(offset + 4, true) & (1 << 28)) !== 0;
      if (offered) controls.push({ offset: offset + 8, width: 2, bit: 0x8000 });
    }
    if (id === advancedFeaturesId && offset + 5 <= config.length) {
      const offered = (byteAt(config, offset + 3) & 2) !== 0;
      if (offered) controls.push({ offset: offset + 4, width: 1, bit: 1 });
    }
  }
  return controls;
}

/** The virtio structure kinds that we look for. */
export const structureKind = { common: 1, notify: 2, isr: 3, device: 4 } as const;

export interface VirtioStructure {
  /** One of `structureKind`, or a later kind. */
  readonly kind: number;
  readonly capability: number;
  readonly bar: number;
  readonly offset: number;
  readonly length: number;
}

/** The structures that the vendor capabilities of a virtio function describe, in list order. */
export function virtioStructures(config: Uint8Array, list: CapabilityList): VirtioStructure[] {
  const view = viewOf(config);
  return list.capabilities
    .filter(({ id, offset }) => id === vendorId && offset + 16 <= config.length)
    .filter(({ offset }) => byteAt(config, offset + 2) >= 16)
    .map(({ offset }) => ({
      kind: byteAt(config, offset + 3),
      capability: offset,
      bar: byteAt(config, offset + 4),
      offset: view.getUint32(offset + 8, true),
      length: view.getUint32(offset + 12, true),
    }));
}

/** Bytes of the modern device configuration; the first capability of a kind counts, as for drivers. */
export function deviceConfigLength(structures: readonly VirtioStructure[]): number {
  return structures.find(({ kind }) => kind === structureKind.device)?.length ?? 0;
}

export interface ByteRange {
  readonly from: number;
  readonly to: number;
}

/** The virtio capabilities and the bytes they take, never bytes of a capability that follows. */
export function virtioCapabilityRanges(config: Uint8Array, list: CapabilityList): ByteRange[] {
  return list.capabilities
    .filter(({ id }) => id === vendorId)
    .map(({ offset }) => {
      const next = list.capabilities
        .map((other) => other.offset)
        .filter((other) => other > offset)
        .reduce((a, b) => Math.min(a, b), conventionalSize);
      // A device may give any length; at least the id, the pointer, the length and the kind are its.
      const length = Math.max(byteAt(config, offset + 2), 4);
      return { from: offset, to: Math.min(offset + length, next) };
    });
}

export function isVirtioCapability(capability: Capability): boolean {
  return capability.id === vendorId;
}

function byteAt(config: Uint8Array, offset: number): number {
  return config[offset] ?? 0;
}

function viewOf(config: Uint8Array): DataView {
  return new DataView(config.buffer, config.byteOffset, config.byteLength);
}
