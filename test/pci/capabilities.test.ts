import { fc, testProp } from '@fast-check/ava';
import test from 'ava';
import {
  deviceConfigLength,
  findMsix,
  virtioCapabilityRanges,
  virtioStructures,
  walkCapabilities,
} from '../../lib/pci/capabilities.js';
import { configBytes, msixOffset, usualCapabilities } from '../helpers/config-space.js';

test('the list is walked in the order of its pointers', (t) => {
  const { capabilities, problems } = walkCapabilities(configBytes());
  t.deepEqual(
    capabilities.map(({ offset }) => offset),
    usualCapabilities.map(({ offset }) => offset),
  );
  t.deepEqual(problems, []);
});

test('a function without the capability bit has no capabilities, whatever the pointer holds', (t) => {
  const config = configBytes();
  config.writeUInt16LE(0, 6);
  t.deepEqual(walkCapabilities(config), { capabilities: [], problems: [] });
});

test('a pointer back into the list ends the walk with a problem', (t) => {
  const config = configBytes();
  config.writeUInt8(0x40, 0xe8 + 1);
  const { capabilities, problems } = walkCapabilities(config);
  t.is(capabilities.length, usualCapabilities.length);
  t.deepEqual(problems, ['Capability pointer 0x40 points back into the list']);
});

test('a pointer into the header ends the walk with a problem', (t) => {
  const config = configBytes();
  config.writeUInt8(0x10, 0x34);
  t.deepEqual(walkCapabilities(config), {
    capabilities: [],
    problems: ['Capability pointer 0x10 points into the header'],
  });
});

test('64 bytes, as sysfs gives them to plain users, end the walk with a problem', (t) => {
  const { capabilities, problems } = walkCapabilities(configBytes().subarray(0, 64));
  t.deepEqual(capabilities, []);
  t.regex(problems[0] ?? '', /outside the configuration bytes/);
});

test('the reserved low bits of pointers are ignored', (t) => {
  const config = configBytes();
  config.writeUInt8(0x43, 0x34);
  t.is(walkCapabilities(config).capabilities[0]?.offset, 0x40);
});

test('MSI-X is read with its vectors, table and pending bits', (t) => {
  const config = configBytes();
  t.deepEqual(findMsix(config, walkCapabilities(config)), {
    offset: msixOffset,
    vectors: 4,
    table: { bar: 1, offset: 0x1000 },
    pending: { bar: 1, offset: 0x1800 },
  });
});

test('virtio structures are read with kind, BAR, offset and length', (t) => {
  const config = configBytes();
  const structures = virtioStructures(config, walkCapabilities(config));
  t.deepEqual(
    structures.map(({ kind, bar, offset }) => [kind, bar, offset]),
    [
      [1, 2, 0],
      [3, 2, 0x1000],
      [4, 2, 0x2000],
      [2, 2, 0x3000],
      [5, 0, 0],
    ],
  );
  t.is(deviceConfigLength(structures), 12);
});

test('a virtio capability that is too short for its fields describes no structure', (t) => {
  const config = configBytes();
  config.writeUInt8(8, 0xc4 + 2);
  t.is(deviceConfigLength(virtioStructures(config, walkCapabilities(config))), 0);
});

test('a virtio capability that claims the whole space takes no byte of the next capability', (t) => {
  const config = configBytes([
    { offset: 0x40, id: 0x09, body: [0xff, 1] },
    { offset: 0x60, id: 0x11, body: [3, 0] },
  ]);
  t.deepEqual(virtioCapabilityRanges(config, walkCapabilities(config)), [{ from: 0x40, to: 0x60 }]);
});

testProp(
  'no bytes make the walk throw, repeat a capability, or exceed 48',
  [fc.uint8Array({ minLength: 0, maxLength: 4096 })],
  (t, bytes) => {
    if (bytes.length > 6) bytes[6] = 0x10;
    const list = walkCapabilities(bytes);
    const offsets = list.capabilities.map(({ offset }) => offset);
    t.is(new Set(offsets).size, offsets.length);
    t.true(offsets.length <= 48);
    findMsix(bytes, list);
    virtioStructures(bytes, list);
    for (const { from, to } of virtioCapabilityRanges(bytes, list)) t.true(from < to && to <= 256);
  },
);
