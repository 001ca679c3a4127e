import test from 'ava';
import {
  bar0Size,
  deviceTypes,
  isModernVirtio,
  legacyConfigLength,
  typeOfFunction,
} from '../../lib/virtio/device-types.js';
import { typeNamed } from '../helpers/config-space.js';

const row = test.macro({
  title: (_, name: string, id: number, trans: number, end: number) =>
    `${name}: virtio id ${id}, transitional id 0x${trans.toString(16)}, ${end} bytes of legacy configuration`,
  exec(t, name: string, id: number, trans: number, end: number) {
    const type = typeNamed(name);
    t.is(type.virtioId, id);
    t.is(type.transitionalId, trans);
    t.is(type.modernId, 0x1040 + id);
    t.is(legacyConfigLength(type, 4096), end);
    t.is(typeOfFunction(0x1af4, 0x1040 + id), type);
  },
});
test(row, 'net', 1, 0x1000, 28);
test(row, 'block', 2, 0x1001, 96);
test(row, 'console', 3, 0x1003, 12);
test(row, 'rng', 4, 0x1005, 0);
test(row, 'balloon', 5, 0x1002, 16);
test(row, 'scsi', 8, 0x1004, 36);

const size = test.macro({
  title: (_, expected: number, name: string, config: number, features: bigint = 0n) =>
    `BAR0 has ${expected} bytes for ${name} with ${config} bytes of configuration` +
    (features === 0n ? '' : ' and several queue pairs'),
  exec(t, expected: number, name: string, config: number, features: bigint = 0n) {
    const type = typeNamed(name);
    t.is(bar0Size(type, legacyConfigLength(type, config), features), expected);
  },
});
const multiQueue = 1n << 22n;
test(size, 32, 'net', 6);
test(size, 32, 'net', 8);
test(size, 32, 'net', 12); // mtu, as the kernel: read before MSI-X is enabled
test(size, 64, 'net', 12, multiQueue);
test(size, 32, 'rng', 0);
test(size, 64, 'console', 8 + 4);
test(size, 32, 'console', 8);
test(size, 64, 'block', 36);
test(size, 128, 'block', 60);
test(size, 128, 'block', 96);
test(size, 64, 'scsi', 36);
test(size, 32, 'balloon', 8);
test(size, 64, 'balloon', 16);

test('a structure that the vendor padded is cut to what the type defines', (t) => {
  t.is(legacyConfigLength(typeNamed('net'), 0x1000), 28);
});

test('fields of every type ascend and do not overlap', (t) => {
  for (const { name, fields } of deviceTypes) {
    let end = 0;
    for (const [offset, length] of fields) {
      t.true(offset >= end, `${name} at ${offset}`);
      end = offset + length;
    }
  }
});

test('a transitional function is not a modern one, and other vendors have no type', (t) => {
  t.false(isModernVirtio(0x1af4, 0x1000));
  t.true(isModernVirtio(0x1af4, 0x1041));
  t.true(isModernVirtio(0x1af4, 0x107f));
  t.false(isModernVirtio(0x1af4, 0x1080));
  t.is(typeOfFunction(0x8086, 0x1041), null);
  t.is(typeOfFunction(0x1af4, 0x1050), null); // gpu: no legacy interface
});

const field = test.macro({
  title: (_, type: string, name: string, offset: number, length: number) =>
    `${type}: ${name} has ${length} bytes at ${offset}`,
  exec(t, type: string, _name: string, offset: number, length: number) {
    t.true(typeNamed(type).fields.some(([at, size]) => at === offset && size === length));
  },
});
test(field, 'net', 'max_virtqueue_pairs', 8, 2);
test(field, 'net', 'rss_max_indirection_table_length', 18, 2);
test(field, 'net', 'supported_tunnel_types', 24, 4);
test(field, 'block', 'sectors', 19, 1);
test(field, 'block', 'opt_io_size', 28, 4);
test(field, 'block', 'wce', 32, 1);
test(field, 'block', 'num_queues', 34, 2);
test(field, 'block', 'write_zeroes_may_unmap', 56, 1);
test(field, 'block', 'max_secure_erase_sectors', 60, 4);
test(field, 'block', 'zoned.model', 92, 1);
test(field, 'console', 'emerg_wr', 8, 4);
test(field, 'scsi', 'cdb_size', 24, 4);
test(field, 'scsi', 'max_lun', 32, 4);
