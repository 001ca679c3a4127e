// The overlay beyond what the kernel's driver does (for that, see kernel-driver.test.ts).

import { fc, testProp } from '@fast-check/ava';
import test from 'ava';
import { walkCapabilities } from '../../lib/pci/capabilities.js';
import { deviceTypes } from '../../lib/virtio/device-types.js';
import { configBytes, guestView, msixOffset, usualCapabilities } from '../helpers/config-space.js';

const identity = test.macro({
  title: (_, name: string) =>
    `a ${name} VF shows the transitional ids of its type and keeps its class`,
  exec(t, name: string) {
    const type = deviceTypes.find((row) => row.name === name)!;
    const config = configBytes(usualCapabilities, { device: type.modernId });
    const view = guestView({ config, type: name });
    t.is(view.u16(0x00), 0x1af4);
    t.is(view.u16(0x02), type.transitionalId);
    t.is(view.u8(0x08), 0);
    t.is(view.u16(0x2c), 0x1af4);
    t.is(view.u16(0x2e), type.virtioId);
    t.deepEqual(view.read(0x09, 3), config.subarray(0x09, 0x0c));
  },
});
for (const { name } of deviceTypes) test(identity, name);

test('the interrupt pin reads 0 when the function has no INTx', (t) => {
  const config = configBytes(usualCapabilities, { interruptPin: 1 });
  t.is(guestView({ config }).u8(0x3d), 0);
});

test('the interrupt pin is the function’s own when it has INTx', (t) => {
  const config = configBytes(usualCapabilities, { interruptPin: 1 });
  t.is(guestView({ config, intx: true }).u8(0x3d), 1);
});

test('the header type reads 0: one function, even if the VF says otherwise', (t) => {
  t.is(guestView({ config: configBytes(usualCapabilities, { headerType: 0x80 }) }).u8(0x0e), 0);
});

test('MSI-X enable and mask-all are the guest’s own bits and never reach the device', (t) => {
  const view = guestView();
  view.write(msixOffset + 2, [0xff, 0xff]);
  t.is(view.u16(msixOffset + 2) & 0xc000, 0xc000);
  t.is(view.device.readUInt16LE(msixOffset + 2) & 0xc000, 0);
});

test('MSI-X enable and mask-all are clear after a reset', (t) => {
  const view = guestView();
  view.write(msixOffset + 3, [0xc0]);
  view.reset();
  t.is(view.u16(msixOffset + 2) & 0xc000, 0);
});

test('a function without MSI-X has no MSI-X rows', (t) => {
  const config = configBytes(usualCapabilities.filter(({ id }) => id !== 0x11));
  t.is(guestView({ config }).u16(msixOffset + 2), 0);
});

test('presentation legacy leaves the other capabilities in the list, in order', (t) => {
  const view = guestView({ presentation: 'legacy' });
  const { capabilities, problems } = walkCapabilities(view.read(0, 256));
  t.deepEqual(capabilities, [
    { id: 0x10, offset: 0x40 },
    { id: 0x11, offset: msixOffset },
  ]);
  t.deepEqual(problems, []);
});

test('presentation legacy hides the bytes of the virtio capabilities and drops writes to them', (t) => {
  const view = guestView({ presentation: 'legacy' });
  const before = Buffer.from(view.device);
  for (let at = 0xa4; at < 0xfc; at += 1) {
    view.write(at, [0xff]);
    t.is(view.u8(at), 0, `byte ${at}`);
  }
  t.deepEqual(view.device, before, 'the window into BARs is closed too');
});

test('presentation legacy clears the capability bit when no capability is left', (t) => {
  const config = configBytes(usualCapabilities.filter(({ id }) => id === 0x09));
  const view = guestView({ config, presentation: 'legacy' });
  t.is(view.u16(0x06) & 0x10, 0);
  t.is(view.u8(0x34), 0);
});

test('presentation legacy ends a list cleanly that the device ends with a loop', (t) => {
  const config = configBytes();
  config.writeUInt8(0x40, 0xe8 + 1);
  const view = guestView({ config, presentation: 'legacy' });
  const { capabilities, problems } = walkCapabilities(view.read(0, 256));
  t.is(capabilities.length, 2);
  t.deepEqual(problems, []);
});

testProp(
  'a read of any offset and width agrees with one read of the whole space',
  [
    fc.constantFrom('transitional' as const, 'legacy' as const),
    fc.nat(255),
    fc.integer({ min: 1, max: 8 }),
  ],
  (t, presentation, offset, width) => {
    const view = guestView({ presentation });
    const length = Math.min(width, 256 - offset);
    t.deepEqual(view.read(offset, length), view.read(0, 256).subarray(offset, offset + length));
  },
);

testProp(
  'no sequence of guest writes changes an id, the revision or BAR0’s I/O bit',
  [
    fc.array(fc.tuple(fc.nat(255), fc.uint8Array({ minLength: 1, maxLength: 8 })), {
      maxLength: 32,
    }),
  ],
  (t, writes) => {
    const view = guestView();
    for (const [offset, data] of writes)
      view.write(offset, Buffer.from(data.subarray(0, 256 - offset)));
    t.is(view.u16(0x02), 0x1000);
    t.is(view.u8(0x08), 0);
    t.is(view.u16(0x2e), 1);
    t.is(view.u32(0x10) & 0x1f, 1);
  },
);

testProp(
  'no capability bytes make the overlay leave the configuration space',
  [
    fc.uint8Array({ minLength: 256, maxLength: 256 }),
    fc.constantFrom('transitional' as const, 'legacy' as const),
  ],
  (t, bytes, presentation) => {
    bytes[6] = 0x10;
    for (const row of guestView({ config: Buffer.from(bytes), presentation }).rows) {
      t.true(row.offset + row.width <= 256);
      t.true([1, 2, 4].includes(row.width));
      t.is((row.writable & ~row.mask) >>> 0, 0);
    }
  },
);
