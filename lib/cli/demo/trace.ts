// What a legacy driver did to BAR0, beside the admin commands that it became.

import { opcode, opcodeName, type CommandTrace, type GuestAccess } from '../../index.js';
import { register } from '../../virtio/legacy-registers.js';
import { hex } from '../output/units.js';
import type { TraceLine } from './stage.js';

/** An access to a control register, with the commands that served it. */
interface Served {
  readonly access: GuestAccess;
  readonly commands: readonly CommandTrace[];
}

/** A kind of access worth showing. */
interface Telling {
  readonly offset: number;
  readonly write: boolean;
  readonly meaning: string;
  readonly when?: (value: number) => boolean;
}

const telling: readonly Telling[] = [
  { offset: register.deviceFeatures, write: false, meaning: 'device features' },
  { offset: register.driverFeatures, write: true, meaning: 'driver features' },
  { offset: register.queueSize, write: false, meaning: 'queue size' },
  {
    offset: register.queueAddress,
    write: true,
    meaning: 'page of a ring',
    when: (page) => page > 0,
  },
  { offset: register.status, write: true, meaning: 'DRIVER_OK', when: (status) => status === 7 },
  { offset: register.status, write: true, meaning: 'reset', when: (status) => status === 0 },
];

/** The first access of each telling kind, in the order in which they happened. */
export function tellingAccesses(
  accesses: readonly GuestAccess[],
  commands: readonly CommandTrace[],
): TraceLine[] {
  const served = pair(accesses, commands);
  const shown = telling.flatMap(({ offset, write, when, meaning }) => {
    const at = served.findIndex(
      ({ access }) =>
        access.offset === offset &&
        access.write === write &&
        (when === undefined || when(access.value)),
    );
    const found = served[at];
    return found === undefined ? [] : [{ at, found, meaning }];
  });
  return shown
    .sort((a, b) => a.at - b.at)
    .map(({ found, meaning }) => ({
      access: accessText(found.access),
      command: found.commands.map(commandText).join(', '),
      meaning,
    }));
}

/**
 * Gives each control access the commands that cover its bytes. Both lists are in the order of the
 * guest, which waits for each access; notifications take no command.
 */
function pair(accesses: readonly GuestAccess[], commands: readonly CommandTrace[]): Served[] {
  const legacy = commands.filter(({ command }) => bytesOf(command) > 0);
  let next = 0;
  return accesses.filter(isControl).map((access) => {
    const first = next;
    for (let bytes = 0; bytes < access.width && next < legacy.length; next += 1) {
      bytes += bytesOf(legacy[next]?.command);
    }
    return { access, commands: legacy.slice(first, next) };
  });
}

/** Accesses to BAR0 that are no notification. */
function isControl({ region, write, offset }: GuestAccess): boolean {
  return region === 'bar0' && !(write && offset === register.queueNotify);
}

/** Bytes of the guest that a command carries. */
function bytesOf(command: CommandTrace['command'] | undefined): number {
  switch (command?.opcode) {
    case opcode.legacyCommonRead:
    case opcode.legacyDeviceRead:
      return command.resultLength ?? 0;
    case opcode.legacyCommonWrite:
    case opcode.legacyDeviceWrite:
      return Math.max(0, (command.data?.length ?? 0) - 8);
    default:
      return 0;
  }
}

function accessText({ write, offset, width, value }: GuestAccess): string {
  return `${write ? 'out' : 'in '} BAR0+${hex(offset, 2)}/${width} = ${hex(value, width * 2)}`;
}

export function commandText({ command, result, error }: CommandTrace): string {
  const name = opcodeName(command.opcode);
  if (error !== null) return `${name}: ${error.message}`;
  const bytes = bytesOf(command);
  switch (command.opcode) {
    case opcode.listQuery:
      return `${name} = ${bitmap(result)}`;
    case opcode.listUse:
      return `${name}(${bitmap(command.data)})`;
    case opcode.legacyNotifyInfo:
      return `${name} = ${firstAddress(result)}`;
    case opcode.legacyCommonWrite:
    case opcode.legacyDeviceWrite:
      return `${name}(${command.data?.[0]},${bytes}) = ${littleEndian(command.data?.subarray(8))}`;
    case opcode.legacyCommonRead:
    case opcode.legacyDeviceRead:
      return `${name}(${command.data?.[0]},${bytes}) = ${littleEndian(result)}`;
    default:
      return name;
  }
}

/** The first entry of LEGACY_NOTIFY_INFO. */
function firstAddress(entries: Buffer | null): string {
  if (entries === null || entries.length < 16) return '-';
  const flags = entries.readUInt8(0);
  const whose = flags === 2 ? 'member' : flags === 1 ? 'owner' : 'none';
  return `${whose} BAR${entries.readUInt8(1)}+${hex(entries.readBigUInt64LE(8))}`;
}

function bitmap(bytes: Buffer | null | undefined): string {
  const digits = littleEndian(bytes);
  return digits === '-' ? digits : hex(BigInt(digits));
}

function littleEndian(bytes: Buffer | null | undefined): string {
  return bytes == null || bytes.length === 0
    ? '-'
    : `0x${Buffer.from(bytes).reverse().toString('hex')}`;
}
