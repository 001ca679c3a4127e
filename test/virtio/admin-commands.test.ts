import { fc, testProp } from '@fast-check/ava';
import test from 'ava';
import {
  decodeAnswer,
  decodeNotifyInfo,
  decodeOpcodes,
  encodeCommand,
  hasOpcode,
  isWorthRetry,
  legacyRead,
  legacyWrite,
  listQuery,
  listUse,
  notifyInfo,
  opcodeName,
  qualifierName,
  statusName,
  type AdminCommand,
} from '../../lib/virtio/admin-commands.js';

const sizes = test.macro({
  title: (_, name: string, __: AdminCommand, readable: number, writable: number) =>
    `${name} has ${readable} readable and ${writable} writable bytes`,
  exec(t, _name: string, command: AdminCommand, readable: number, writable: number) {
    t.is(encodeCommand(command).length, readable);
    t.is(8 + (command.resultLength ?? 0), writable);
  },
});
test(sizes, 'LIST_QUERY', listQuery(), 24, 16);
test(sizes, 'LIST_USE', listUse(0x7fn), 32, 8);
test(sizes, 'a legacy read of 1 byte', legacyRead('common', 1, 0x12, 1), 25, 9);
test(sizes, 'a legacy read of 4 bytes', legacyRead('device', 1, 0, 4), 25, 12);
test(sizes, 'a status write', legacyWrite('common', 1, 0x12, Buffer.of(7)), 33, 8);
test(sizes, 'LEGACY_NOTIFY_INFO', notifyInfo(1), 24, 72);

test('legacy interface, driver: data and header fields are little-endian', (t) => {
  const data = Buffer.of(0x78, 0x56, 0x34, 0x12);
  const bytes = encodeCommand(legacyWrite('common', 0x0102, 0x08, data));
  t.deepEqual([...bytes.subarray(0, 4)], [2, 0, 1, 0], 'opcode, group type');
  t.deepEqual([...bytes.subarray(4, 16)], Array(12).fill(0), 'reserved');
  t.deepEqual([...bytes.subarray(16, 24)], [2, 1, 0, 0, 0, 0, 0, 0], 'member');
  t.deepEqual([...bytes.subarray(24, 32)], [8, 0, 0, 0, 0, 0, 0, 0], 'offset, reserved');
  t.deepEqual(bytes.subarray(32), data);
});

const opcodes = test.macro({
  title: (_, code: number, name: string) => `${name} is opcode ${code}`,
  exec(t, code: number, name: string, command: AdminCommand) {
    t.is(command.opcode, code);
    t.is(opcodeName(code), name);
  },
});
test(opcodes, 0, 'LIST_QUERY', listQuery());
test(opcodes, 1, 'LIST_USE', listUse(0n));
test(opcodes, 2, 'LEGACY_COMMON_CFG_WRITE', legacyWrite('common', 1, 0, Buffer.of(0)));
test(opcodes, 3, 'LEGACY_COMMON_CFG_READ', legacyRead('common', 1, 0, 1));
test(opcodes, 4, 'LEGACY_DEV_CFG_WRITE', legacyWrite('device', 1, 0, Buffer.of(0)));
test(opcodes, 5, 'LEGACY_DEV_CFG_READ', legacyRead('device', 1, 0, 1));
test(opcodes, 6, 'LEGACY_NOTIFY_INFO', notifyInfo(1));

test('an answer of less than 8 bytes is no answer, though its status would read as OK', (t) => {
  for (let length = 0; length < 8; length += 1) t.is(decodeAnswer(Buffer.alloc(length)), null);
  t.deepEqual(decodeAnswer(Buffer.alloc(8)), { status: 0, qualifier: 0, result: Buffer.alloc(0) });
});

test('status and qualifier are named, unknown ones by what they count as', (t) => {
  t.is(statusName(22), 'EINVAL');
  t.is(statusName(99), 'status 99 (as EINVAL)');
  t.is(qualifierName(5), 'INVALID_MEMBER');
  t.is(qualifierName(99), 'qualifier 99 (as INVALID_COMMAND)');
});

test('EAGAIN, ENOMEM, EBUSY, NORESOURCE and TRYAGAIN are worth a retry, nothing else is', (t) => {
  const result = Buffer.alloc(0);
  for (let status = 1; status < 64; status += 1) {
    t.is(isWorthRetry({ status, qualifier: 1, result }), [11, 12, 16].includes(status));
  }
  for (let qualifier = 0; qualifier < 64; qualifier += 1) {
    t.is(isWorthRetry({ status: 22, qualifier, result }), [6, 7].includes(qualifier));
  }
});

test('notify entries that the device did not write end the list', (t) => {
  const one = Buffer.alloc(16);
  one.writeUInt8(2, 0);
  one.writeUInt8(4, 1);
  one.writeBigUInt64LE(0x3000n, 8);
  t.deepEqual(decodeNotifyInfo(one), [
    { flags: 2, bar: 4, offset: 0x3000n },
    ...Array.from({ length: 3 }, () => ({ flags: 0, bar: 0, offset: 0n })),
  ]);
});

testProp(
  'an opcode bitmap survives encoding and decoding',
  [fc.bigInt({ min: 0n, max: 2n ** 64n - 1n })],
  (t, bits) => {
    const data = encodeCommand(listUse(bits)).subarray(24);
    t.is(decodeOpcodes(data), bits);
    for (let code = 0; code < 70; code += 1) {
      t.is(hasOpcode(bits, code), code < 64 && (bits & (1n << BigInt(code))) !== 0n);
    }
  },
);

testProp('no bytes make a decoder throw', [fc.uint8Array({ maxLength: 200 })], (t, bytes) => {
  const buffer = Buffer.from(bytes);
  decodeAnswer(buffer);
  t.is(decodeNotifyInfo(buffer).length, 4);
  decodeOpcodes(buffer);
});
