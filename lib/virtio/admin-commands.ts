// Group administration commands as bytes (virtio 1.4, "Group administration commands" and its "Legacy
// Interfaces"). All values are little-endian. Parts have their exact length: the general rule to pad
// to 8 bytes cannot hold for the legacy commands, whose data length is the width of the access.

import { badArgument } from '../errors.js';

export const opcode = {
  listQuery: 0x00,
  listUse: 0x01,
  legacyCommonWrite: 0x02,
  legacyCommonRead: 0x03,
  legacyDeviceWrite: 0x04,
  legacyDeviceRead: 0x05,
  legacyNotifyInfo: 0x06,
} as const;

/** Group type: owner the PF, member n the n-th VF, from 1. */
export const groupSriov = 1;

const opcodeNames: Readonly<Record<number, string>> = {
  0x00: 'LIST_QUERY',
  0x01: 'LIST_USE',
  0x02: 'LEGACY_COMMON_CFG_WRITE',
  0x03: 'LEGACY_COMMON_CFG_READ',
  0x04: 'LEGACY_DEV_CFG_WRITE',
  0x05: 'LEGACY_DEV_CFG_READ',
  0x06: 'LEGACY_NOTIFY_INFO',
};

export function opcodeName(code: number): string {
  return opcodeNames[code] ?? `opcode 0x${code.toString(16)}`;
}

/** One command to the SR-IOV group. */
export interface AdminCommand {
  readonly opcode: number;
  /** VF number, from 1; 0 for commands that concern the group. */
  readonly member: number;
  /** What follows the command header. */
  readonly data?: Buffer;
  /** Most bytes of result that the device may write. */
  readonly resultLength?: number;
  /** Fewer bytes of result are an error; default 0: what is missing reads as zero. */
  readonly resultMinimum?: number;
}

const headerSize = 24;
export const answerHeaderSize = 8;

/** The readable part of a command. */
export function encodeCommand(command: AdminCommand): Buffer {
  const data = command.data;
  const bytes = Buffer.alloc(headerSize + (data?.length ?? 0));
  bytes.writeUInt16LE(command.opcode, 0);
  bytes.writeUInt16LE(groupSriov, 2);
  bytes.writeBigUInt64LE(BigInt(command.member), 16);
  if (data !== undefined) bytes.set(data, headerSize);
  return bytes;
}

export interface AdminAnswer {
  readonly status: number;
  readonly qualifier: number;
  readonly result: Buffer;
}

/**
 * Takes what the device says it wrote. Less than the header is no answer (null): its missing status
 * would read as OK.
 */
export function decodeAnswer(written: Buffer): AdminAnswer | null {
  if (written.length < answerHeaderSize) return null;
  return {
    status: written.readUInt16LE(0),
    qualifier: written.readUInt16LE(2),
    result: written.subarray(answerHeaderSize),
  };
}

/** LEGACY_COMMON_CFG_READ or LEGACY_DEV_CFG_READ; the device must give every byte asked for. */
export function legacyRead(
  space: 'common' | 'device',
  member: number,
  offset: number,
  length: number,
): AdminCommand {
  checkOffset(offset);
  return {
    opcode: space === 'common' ? opcode.legacyCommonRead : opcode.legacyDeviceRead,
    member,
    data: Buffer.of(offset),
    resultLength: length,
    resultMinimum: length,
  };
}

/** LEGACY_COMMON_CFG_WRITE or LEGACY_DEV_CFG_WRITE: offset, 7 reserved bytes, the data. */
export function legacyWrite(
  space: 'common' | 'device',
  member: number,
  offset: number,
  data: Buffer,
): AdminCommand {
  checkOffset(offset);
  const payload = Buffer.alloc(8 + data.length);
  payload.writeUInt8(offset, 0);
  payload.set(data, 8);
  return {
    opcode: space === 'common' ? opcode.legacyCommonWrite : opcode.legacyDeviceWrite,
    member,
    data: payload,
  };
}

function checkOffset(offset: number): void {
  if (Number.isInteger(offset) && offset >= 0 && offset <= 255) return;
  throw badArgument('offset', offset, 'a whole number from 0 to 255');
}

const notifyEntrySize = 16;
const notifyEntries = 4;

/** LEGACY_NOTIFY_INFO. */
export function notifyInfo(member: number): AdminCommand {
  return {
    opcode: opcode.legacyNotifyInfo,
    member,
    resultLength: notifyEntries * notifyEntrySize,
  };
}

/** One entry of LEGACY_NOTIFY_INFO, as the device gave it. */
export interface NotifyEntry {
  /** 0 end of the list, 1 a BAR of the owner, 2 a BAR of the member. */
  readonly flags: number;
  readonly bar: number;
  readonly offset: bigint;
}

/** All four entries; bytes that the device did not write count as zero and so end the list. */
export function decodeNotifyInfo(result: Buffer): NotifyEntry[] {
  const whole = Buffer.alloc(notifyEntries * notifyEntrySize);
  result.copy(whole);
  return Array.from({ length: notifyEntries }, (_, i) => ({
    flags: whole.readUInt8(i * notifyEntrySize),
    bar: whole.readUInt8(i * notifyEntrySize + 1),
    offset: whole.readBigUInt64LE(i * notifyEntrySize + 8),
  }));
}

/** LIST_QUERY; one word of the bitmap covers every opcode that we know. */
export function listQuery(): AdminCommand {
  return { opcode: opcode.listQuery, member: 0, resultLength: 8 };
}

/** LIST_USE. */
export function listUse(opcodes: bigint): AdminCommand {
  const data = Buffer.alloc(8);
  data.writeBigUInt64LE(opcodes);
  return { opcode: opcode.listUse, member: 0, data };
}

/** Opcodes 0 to 63 of a LIST_QUERY result; what is missing reads as zero. */
export function decodeOpcodes(result: Buffer): bigint {
  const whole = Buffer.alloc(8);
  result.copy(whole);
  return whole.readBigUInt64LE();
}

export function hasOpcode(opcodes: bigint, code: number): boolean {
  return code < 64 && ((opcodes >> BigInt(code)) & 1n) === 1n;
}

/** The four commands that reach a member's legacy registers: a device has all of them or none. */
export const legacyOpcodes = 0b111100n;
/** Every opcode that we use. */
export const knownOpcodes = 0b1111111n;

const statusNames: Readonly<Record<number, string>> = {
  0: 'OK',
  6: 'ENXIO',
  11: 'EAGAIN',
  12: 'ENOMEM',
  16: 'EBUSY',
  22: 'EINVAL',
  28: 'ENOSPC',
};

export const statusOk = 0;
const retryStatuses: ReadonlySet<number> = new Set([11, 12, 16]);

export function statusName(status: number): string {
  return statusNames[status] ?? `status ${status} (as EINVAL)`;
}

const qualifierNames = [
  'OK',
  'INVALID_COMMAND',
  'INVALID_OPCODE',
  'INVALID_FIELD',
  'INVALID_GROUP',
  'INVALID_MEMBER',
  'NORESOURCE',
  'TRYAGAIN',
] as const;

const retryQualifiers: ReadonlySet<number> = new Set([6, 7]);

export function qualifierName(qualifier: number): string {
  return qualifierNames[qualifier] ?? `qualifier ${qualifier} (as INVALID_COMMAND)`;
}

/** True for an answer that left nothing behind and may differ next time. */
export function isWorthRetry(answer: AdminAnswer): boolean {
  return retryStatuses.has(answer.status) || retryQualifiers.has(answer.qualifier);
}
