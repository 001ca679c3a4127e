import { fc, testProp } from '@fast-check/ava';
import test from 'ava';
import { deviceTypes, type ConfigField } from '../../lib/virtio/device-types.js';
import { commonFields, configBase, LegacyRegisters } from '../../lib/virtio/legacy-registers.js';
import { typeNamed } from '../helpers/config-space.js';

const net = new LegacyRegisters(64, typeNamed('net').fields, 12);

const pieces = test.macro({
  title: (providedTitle) => providedTitle ?? '',
  exec(
    t,
    at: readonly [offset: number, length: number, msix: boolean],
    expected: readonly string[],
  ) {
    const found = net.split(...at).map(({ kind, offset, length }) => `${kind} ${offset}+${length}`);
    t.deepEqual(found, expected);
  },
});

test('an aligned register access is one command', pieces, [0x00, 4, false], ['common 0+4']);
test('one byte of a register is one command', pieces, [0x09, 1, false], ['common 9+1']);
test(
  'a 4-byte access at 0x0e is a queue select and a notify',
  pieces,
  [0x0e, 4, false],
  ['common 14+2', 'notify 16+2'],
);
test(
  'a 4-byte access at 0x10 is a notify, status and ISR',
  pieces,
  [0x10, 4, false],
  ['notify 16+2', 'common 18+1', 'common 19+1'],
);
test('half of queue notify is no notification', pieces, [0x11, 1, false], ['common 17+1']);
test(
  'the device configuration begins at 20 while MSI-X is disabled',
  pieces,
  [20, 4, false],
  ['device 0+4'],
);
test(
  'the vectors are at 20 and 22 while MSI-X is enabled',
  pieces,
  [20, 4, true],
  ['common 20+2', 'common 22+2'],
);
test(
  'the device configuration begins at 24 while MSI-X is enabled',
  pieces,
  [24, 4, true],
  ['device 0+4'],
);
test(
  'an access over the border to the device configuration is split there',
  pieces,
  [18, 4, false],
  ['common 18+1', 'common 19+1', 'device 0+2'],
);
test(
  'the MAC address is one field, which a 4-byte access may cut',
  pieces,
  [20, 4, false],
  ['device 0+4'],
);
test(
  'an access over two configuration fields is split at their border',
  pieces,
  [24, 4, false],
  ['device 4+2', 'device 6+2'],
);
test(
  'what is past the device’s configuration is a hole',
  pieces,
  [24 + 10, 4, true],
  ['device 10+2', 'hole 36+2'],
);
test('adjacent bytes without a register are one hole', pieces, [40, 8, true], ['hole 40+8']);
test(
  'a 20-byte read of the whole header is one command for each register',
  pieces,
  [0, 20, false],
  [
    'common 0+4',
    'common 4+4',
    'common 8+4',
    'common 12+2',
    'common 14+2',
    'notify 16+2',
    'common 18+1',
    'common 19+1',
  ],
);

test('a field that the device has only half of does not exist', (t) => {
  const half = new LegacyRegisters(64, typeNamed('net').fields, 9);
  t.deepEqual(half.split(24 + 8, 2, true), [{ kind: 'hole', offset: 32, length: 2, at: 0 }]);
});

test('a 32-byte BAR0 with MSI-X enabled ends after the link status', (t) => {
  const kernel = new LegacyRegisters(32, typeNamed('net').fields, 12);
  t.deepEqual(
    kernel.split(30, 2, true).map(({ kind, offset }) => [kind, offset]),
    [['device', 6]],
  );
  t.deepEqual(
    kernel.split(28, 2, false).map(({ kind, offset }) => [kind, offset]),
    [['device', 8]],
  );
});

test('padding between the fields of a block device is a hole', (t) => {
  const block = new LegacyRegisters(128, typeNamed('block').fields, 96);
  t.deepEqual(
    block.split(24 + 56, 4, true).map(({ kind, length }) => [kind, length]),
    [
      ['device', 1],
      ['hole', 3],
    ],
  );
});

test('common registers are adjacent, as the specification lays them out', (t) => {
  let at = 0;
  for (const [offset, length] of commonFields) {
    t.is(offset, at);
    at += length;
  }
  t.is(at, 24);
});

const access = fc.record({
  type: fc.constantFrom(...deviceTypes),
  size: fc.constantFrom(32, 64, 128, 256),
  config: fc.nat(256),
  msix: fc.boolean(),
  offset: fc.nat(255),
  length: fc.integer({ min: 1, max: 64 }),
});

testProp(
  'the pieces of any access cover each of its bytes exactly once, in order',
  [access],
  (t, { type, size, config, msix, offset, length }) => {
    const registers = new LegacyRegisters(size, type.fields, config);
    let at = 0;
    for (const piece of registers.split(offset, length, msix)) {
      t.is(piece.at, at);
      t.true(piece.length >= 1);
      const base = piece.kind === 'device' ? configBase(msix) : 0;
      t.is(base + piece.offset, offset + at);
      at += piece.length;
    }
    t.is(at, length);
  },
);

testProp(
  'legacy interface, driver: every command touches one field only',
  [access],
  (t, { type, size, config, msix, offset, length }) => {
    const registers = new LegacyRegisters(size, type.fields, config);
    const inside = (fields: readonly ConfigField[], from: number, count: number) =>
      fields.some(([at, width]) => from >= at && from + count <= at + width);
    const wide = registers
      .split(offset, length, msix)
      .filter(({ kind }) => kind !== 'hole')
      .filter(
        (piece) =>
          !inside(piece.kind === 'device' ? type.fields : commonFields, piece.offset, piece.length),
      );
    t.deepEqual(wide, []);
  },
);

testProp(
  'a device command never leaves the device’s configuration',
  [access],
  (t, { type, size, config, msix, offset, length }) => {
    const registers = new LegacyRegisters(size, type.fields, config);
    const outside = registers
      .split(offset, length, msix)
      .filter((piece) => piece.kind === 'device' && piece.offset + piece.length > config);
    t.deepEqual(outside, []);
  },
);
