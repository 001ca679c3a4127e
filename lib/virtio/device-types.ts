// The virtio device types that have a legacy interface here, one row each. Layouts are those of the
// "Device configuration layout" sections of the virtio specification, offsets within device config.

/** A register of the device configuration: [offset, bytes]. */
export type ConfigField = readonly [offset: number, length: number];

export interface DeviceType {
  readonly name: string;
  /** The virtio device id, which a transitional device shows as its PCI subsystem id. */
  readonly virtioId: number;
  /** PCI device id of the transitional device. */
  readonly transitionalId: number;
  /** PCI device id of the modern function. */
  readonly modernId: number;
  /** The legacy device configuration; ascending, not overlapping. */
  readonly fields: readonly ConfigField[];
}

export const virtioVendor = 0x1af4;
const modernIdBase = 0x1040;

/** Fields one after another, by their lengths; a negative length is padding. */
function fields(lengths: readonly number[]): ConfigField[] {
  let end = 0;
  return lengths.flatMap((length): ConfigField[] => {
    const offset = end;
    end += Math.abs(length);
    return length > 0 ? [[offset, length]] : [];
  });
}

export const deviceTypes: readonly DeviceType[] = [
  {
    name: 'net',
    virtioId: 1,
    transitionalId: 0x1000,
    modernId: 0x1041,
    // mac, status, max_virtqueue_pairs, mtu, speed, duplex, rss_max_key_size,
    // rss_max_indirection_table_length, supported_hash_types, supported_tunnel_types
    fields: fields([6, 2, 2, 2, 4, 1, 1, 2, 4, 4]),
  },
  {
    name: 'block',
    virtioId: 2,
    transitionalId: 0x1001,
    modernId: 0x1042,
    fields: fields([
      // capacity, size_max, seg_max, geometry (cylinders, heads, sectors), blk_size
      8, 4, 4, 2, 1, 1, 4,
      // topology (physical_block_exp, alignment_offset, min_io_size, opt_io_size), wce, num_queues
      1, 1, 2, 4, 1, -1, 2,
      // discard (3), write zeroes (2 and may_unmap), secure erase (3), zoned (5 and model)
      4, 4, 4, 4, 4, 1, -3, 4, 4, 4, 4, 4, 4, 4, 4, 1,
    ]),
  },
  {
    name: 'console',
    virtioId: 3,
    transitionalId: 0x1003,
    modernId: 0x1043,
    // cols, rows, max_nr_ports, emerg_wr
    fields: fields([2, 2, 4, 4]),
  },
  { name: 'rng', virtioId: 4, transitionalId: 0x1005, modernId: 0x1044, fields: [] },
  {
    name: 'balloon',
    virtioId: 5,
    transitionalId: 0x1002,
    modernId: 0x1045,
    // num_pages, actual, free_page_hint_cmd_id, poison_val
    fields: fields([4, 4, 4, 4]),
  },
  {
    name: 'scsi',
    virtioId: 8,
    transitionalId: 0x1004,
    modernId: 0x1048,
    // num_queues, seg_max, max_sectors, cmd_per_lun, event_info_size, sense_size, cdb_size,
    // max_channel, max_target, max_lun
    fields: fields([4, 4, 4, 4, 4, 4, 4, 2, 2, 4]),
  },
];

/** The type of a modern function, by its PCI ids. */
export function typeOfFunction(vendor: number, device: number): DeviceType | null {
  if (vendor !== virtioVendor) return null;
  return deviceTypes.find((type) => type.modernId === device) ?? null;
}

/** True for a PCI function with the ids of a modern virtio device, of whatever type. */
export function isModernVirtio(vendor: number, device: number): boolean {
  return vendor === virtioVendor && device > modernIdBase && device <= modernIdBase + 0x3f;
}

const registersWithMsix = 24;
const netMultiQueue = 1n << 22n;

/**
 * Bytes of device configuration that a legacy driver may reach: what the type defines, and no more
 * than the device has. `deviceConfigLength` is the length of the modern structure, which vendors pad.
 */
export function legacyConfigLength(type: DeviceType, deviceConfigLength: number): number {
  const [offset, length] = type.fields.at(-1) ?? [0, 0];
  // Structures end on a multiple of their widest field.
  const defined = Math.ceil((offset + length) / 4) * 4;
  return Math.min(defined, deviceConfigLength);
}

/**
 * Size of the I/O BAR0. A network device has 32 bytes, as the kernel driver gives it, unless it has
 * several queue pairs: max_virtqueue_pairs is out of reach of 32 bytes once MSI-X is enabled.
 */
export function bar0Size(type: DeviceType, configLength: number, features: bigint): number {
  if (type.name === 'net' && (features & netMultiQueue) === 0n) return 32;
  return 2 ** Math.ceil(Math.log2(registersWithMsix + configLength));
}
