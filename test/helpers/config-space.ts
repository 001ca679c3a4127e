// Configuration bytes of a modern virtio-net VF, and the overlay as Rust applies it, in a few lines.

import type { NativeOverlayRow } from '../../lib/native.js';
import {
  findMsix,
  virtioStructures,
  walkCapabilities,
  deviceConfigLength,
} from '../../lib/pci/capabilities.js';
import { transitionalOverlay, type Presentation } from '../../lib/pci/overlay.js';
import {
  bar0Size,
  deviceTypes,
  legacyConfigLength,
  type DeviceType,
} from '../../lib/virtio/device-types.js';

export interface CapabilityBytes {
  readonly offset: number;
  /** Without the pointer to the next: id, then what follows the pointer. */
  readonly id: number;
  readonly body: readonly number[];
}

const virtio = (offset: number, kind: number, bar: number, at: number, length: number) => ({
  offset,
  id: 0x09,
  body: [16, kind, bar, 0, 0, 0, ...le32(at), ...le32(length)],
});

export const msixOffset = 0x98;

/** Express, MSI-X and five virtio capabilities, in the order that devices tend to have them. */
export const usualCapabilities: readonly CapabilityBytes[] = [
  { offset: 0x40, id: 0x10, body: [2, 0, ...Array<number>(56).fill(0)] },
  { offset: msixOffset, id: 0x11, body: [3, 0, ...le32(0x1001), ...le32(0x1801)] },
  virtio(0xa4, 1, 2, 0, 64),
  virtio(0xb4, 3, 2, 0x1000, 4),
  virtio(0xc4, 4, 2, 0x2000, 12),
  {
    ...virtio(0xd4, 2, 2, 0x3000, 0x1000),
    body: [20, 2, 2, 0, 0, 0, ...le32(0x3000), ...le32(0x1000), ...le32(4)],
  },
  { ...virtio(0xe8, 5, 0, 0, 0), body: [20, 5, 0, 0, 0, 0, ...le32(0), ...le32(0), ...le32(0)] },
];

export function configBytes(
  capabilities: readonly CapabilityBytes[] = usualCapabilities,
  header: { device?: number; headerType?: number; interruptPin?: number } = {},
): Buffer {
  const config = Buffer.alloc(256);
  config.writeUInt16LE(0x1af4, 0);
  config.writeUInt16LE(header.device ?? 0x1041, 2);
  config.writeUInt16LE(2, 4);
  config.writeUInt16LE(0x10, 6);
  config.writeUInt8(1, 8);
  config.writeUIntLE(0x020000, 9, 3);
  config.writeUInt8(header.headerType ?? 0, 0x0e);
  config.writeUInt16LE(0x1af4, 0x2c);
  config.writeUInt16LE(0x1100, 0x2e);
  config.writeUInt8(header.interruptPin ?? 0, 0x3d);
  let pointer = 0x34;
  for (const { offset, id, body } of capabilities) {
    config.writeUInt8(offset, pointer);
    config.set([id, 0, ...body], offset);
    pointer = offset + 1;
  }
  return config;
}

export function typeNamed(name: string): DeviceType {
  const type = deviceTypes.find((row) => row.name === name);
  if (type === undefined) throw new Error(`no type ${name}`);
  return type;
}

export interface ViewOptions {
  config?: Buffer;
  type?: string;
  presentation?: Presentation;
  features?: bigint;
  intx?: boolean;
}

/** What a guest sees of a function. */
export function guestView(options: ViewOptions = {}): ConfigView {
  const { config = configBytes(), presentation = 'transitional', features = 0n } = options;
  const type = typeNamed(options.type ?? 'net');
  const list = walkCapabilities(config);
  const modern = deviceConfigLength(virtioStructures(config, list));
  const rows = transitionalOverlay({
    config,
    list,
    msix: findMsix(config, list),
    type,
    bar0Size: bar0Size(type, legacyConfigLength(type, modern), features),
    presentation,
    intx: options.intx ?? false,
  });
  return new ConfigView(config, rows);
}

/** crates/pci/src/overlay.rs, bit for bit; test/native compares the two. */
export class ConfigView {
  readonly rows: readonly NativeOverlayRow[];
  readonly device: Buffer;
  readonly #bytes: {
    value: number;
    initial: number;
    mask: number;
    writable: number;
    forward: number;
    resets: number;
    flr: number;
  }[];

  constructor(device: Buffer, rows: readonly NativeOverlayRow[]) {
    this.device = Buffer.from(device);
    this.rows = rows;
    this.#bytes = Array.from(device, () => ({
      value: 0,
      initial: 0,
      mask: 0,
      writable: 0,
      forward: 0,
      resets: 0,
      flr: 0,
    }));
    for (const row of rows) {
      for (let i = 0; i < row.width; i += 1) {
        const byte = this.#bytes[row.offset + i]!;
        const part = (word: number) => (word >>> (8 * i)) & 0xff;
        const mask = part(row.mask);
        byte.initial = (byte.initial & ~mask) | (part(row.value) & mask);
        byte.value = byte.initial;
        byte.mask |= mask;
        byte.writable = (byte.writable & ~mask) | (part(row.writable) & mask);
        byte.forward = (byte.forward & ~mask) | (row.forward ? mask : 0);
        byte.resets = (byte.resets & ~mask) | (row.resets ? mask : 0);
        byte.flr |= part(row.flr);
      }
    }
  }

  read(offset: number, length: number): Buffer {
    const out = Buffer.alloc(length);
    for (let i = 0; i < length; i += 1) {
      const byte = this.#bytes[offset + i]!;
      out[i] = (this.device[offset + i]! & ~byte.mask) | (byte.value & byte.mask);
    }
    return out;
  }

  /** What is left for the device goes into `device`, as if all of it were writable. */
  write(offset: number, data: Buffer | readonly number[]): void {
    let resets = false;
    for (const [i, value] of [...data].entries()) {
      const byte = this.#bytes[offset + i]!;
      resets ||= (value & byte.flr) !== 0;
      byte.value = (byte.value & ~byte.writable) | (value & byte.writable);
      const visible = (~byte.mask & 0xff) | byte.forward;
      if (visible !== 0) this.device[offset + i] = value & visible;
    }
    if (resets) this.reset();
  }

  reset(): void {
    for (const byte of this.#bytes) {
      byte.value = (byte.value & ~byte.resets) | (byte.initial & byte.resets);
    }
  }

  u8 = (offset: number) => this.read(offset, 1).readUInt8();
  u16 = (offset: number) => this.read(offset, 2).readUInt16LE();
  u32 = (offset: number) => this.read(offset, 4).readUInt32LE();
}

export function le32(value: number): number[] {
  return [value & 0xff, (value >>> 8) & 0xff, (value >>> 16) & 0xff, value >>> 24];
}
