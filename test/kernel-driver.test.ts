// Linux' virtio_vfio_pci, observable fact by observable fact: what we do the same way, and what we do
// otherwise and why. A title begins with "kernel" and what the driver does where we agree, with
// "unlike the kernel" where we don't. What needs a device is in test/native/kernel-driver.test.ts.
//
// Facts without a test, because there is nothing of ours to test:
//  matching by driver_override and Kconfig: how a kernel module is chosen; we are told a BDF.
//  migration operations: advertised by neither our server nor the API.
//  a command refused by the device is one unlimited log line: DeviceLog.limited, in log.test.ts.
//  bad user pointers, file positions: there is neither between a vfio-user client and us.
//  runtime power management, notifies in D3: a VF stays in D0 (crates/vfio, `tamed`).
//  AER: ERR irq of the client, passed through by the native server.

import test from 'ava';
import type { Done } from '../lib/admin-lanes.js';
import { Bar0Accesses } from '../lib/bar0-accesses.js';
import { parseBdf } from '../lib/host/bdf.js';
import { judge, type Subject } from '../lib/host/prober.js';
import type { FunctionInfo } from '../lib/host/sysfs.js';
import { DeviceLog } from '../lib/log.js';
import { chooseNotify } from '../lib/notify.js';
import { deviceTypes } from '../lib/virtio/device-types.js';
import { LegacyRegisters } from '../lib/virtio/legacy-registers.js';
import {
  configBytes,
  guestView,
  le32,
  msixOffset,
  typeNamed,
  usualCapabilities,
} from './helpers/config-space.js';

// Matching

function subject(
  change: Partial<FunctionInfo> = {},
  ownerChange: Partial<FunctionInfo> = {},
): Subject {
  const bar = (index: number, size: number) => ({ index, size, kind: 'memory' as const });
  const info: FunctionInfo = {
    bdf: parseBdf('5e:00.1'),
    vendor: 0x1af4,
    device: 0x1041,
    subsystemVendor: 0x1af4,
    subsystem: 0x1041,
    revision: 1,
    classCode: 0x020000,
    driver: 'vfio-pci',
    iommuGroup: '1',
    bars: [0, 0x1000, 0x4000, 0, 0, 0].map((size, index) => bar(index, size)),
    physfn: parseBdf('5e:00.0'),
    virtfns: new Map(),
    sriov: null,
    virtioFeatures: null,
    findings: [],
    ...change,
  };
  const owner = { ...info, bdf: parseBdf('5e:00.0'), physfn: null, ...ownerChange };
  return { info, owner, memberId: 1 };
}
const verdict = (...changes: Parameters<typeof subject>) => {
  const found = judge(subject(...changes), ['vfio-pci']);
  return found.kind === 'passthrough' ? found.reason : found.kind;
};

test('kernel 1: a VF 1af4:1041 with an empty BAR0 may become transitional', (t) => {
  t.is(verdict(), 'unverified');
});

test('kernel 1: a function that is not a VF gets plain operations, and that is no error', (t) => {
  t.is(verdict({ physfn: null }), 'not-a-vf');
});

test('kernel 1: a VF whose BAR0 is not empty gets plain operations', (t) => {
  const bars = [{ index: 0, size: 64, kind: 'memory' as const }];
  t.is(verdict({ bars }), 'bar0-present');
});

test('unlike the kernel 1: any type with a legacy interface may become transitional, not only net', (t) => {
  for (const { modernId } of deviceTypes) t.is(verdict({ device: modernId }), 'unverified');
});

test('unlike the kernel 1: the PF is ours, so one bound to virtio-pci cannot be used', (t) => {
  t.is(verdict({}, { driver: 'virtio-pci' }), 'owner-driver');
});

test('unlike the kernel 1: owner entries are used, and entries are checked, before binding', (t) => {
  const sizes = { member: () => 0x1000, owner: () => 0x1000 };
  const entries = [
    { flags: 2, bar: 4, offset: 0x1001n },
    { flags: 1, bar: 2, offset: 4n },
    { flags: 2, bar: 4, offset: 0n },
  ];
  t.like(chooseNotify(entries, sizes).plan, { kind: 'region', of: 'owner', offset: 4 });
});

test('unlike the kernel 1: without a usable entry notifications go by command instead of failing', (t) => {
  const { plan } = chooseNotify([], { member: () => 0, owner: () => 0 });
  t.is(plan.kind, 'command');
});

test('kernel 1: BAR0 of a network device has 32 bytes', (t) => {
  const view = guestView();
  view.write(0x10, [0xff, 0xff, 0xff, 0xff]);
  t.is(view.u32(0x10), 0xffff_ffe1);
});

// Reading configuration space

test('kernel 2: the device id reads 0x1000', (t) => t.is(guestView().u16(0x02), 0x1000));
test('kernel 2: the revision reads 0', (t) => t.is(guestView().u8(0x08), 0));
test('kernel 2: the subsystem id reads 1', (t) => t.is(guestView().u16(0x2e), 1));
test('kernel 2: the subsystem vendor reads 0x1af4', (t) => t.is(guestView().u16(0x2c), 0x1af4));

test('kernel 2: the command register is the device’s, with the guest’s I/O bit', (t) => {
  const view = guestView();
  t.is(view.u16(0x04), 0x0002);
  view.write(0x04, [0x07, 0x01]);
  t.is(view.u16(0x04), 0x0107);
  t.is(view.device.readUInt16LE(0x04), 0x0106, 'the device does not see the I/O bit');
});

test('kernel 2: BAR0 reads what was written, below its size as an I/O BAR', (t) => {
  const view = guestView();
  view.write(0x10, [0xff, 0xe0, 0, 0]);
  t.is(view.u32(0x10), 0x0000_e0e1);
});

const untouched = test.macro({
  title: (_, what: string) => `kernel 2: ${what} is the device’s`,
  exec(t, _what: string, offset: number, length: number) {
    const config = configBytes();
    for (let at = offset; at < offset + length; at += 1) config[at] = at + 1;
    t.deepEqual(
      guestView({ config }).read(offset, length),
      config.subarray(offset, offset + length),
    );
  },
});
test(untouched, 'the vendor id', 0x00, 2);
test(untouched, 'the class code', 0x09, 3);
test(untouched, 'BAR1 to BAR5', 0x14, 20);
test(untouched, 'the expansion ROM', 0x30, 4);

test('kernel 2: the capability list, with the virtio capabilities, is the device’s', (t) => {
  const config = configBytes();
  const view = guestView({ config });
  t.is(view.u8(0x34), config.readUInt8(0x34));
  const seen = view.read(0x40, 192);
  seen.writeUInt16LE(config.readUInt16LE(msixOffset + 2), msixOffset + 2 - 0x40);
  t.deepEqual(seen, config.subarray(0x40));
});

test('kernel 2: the interrupt pin of a VF reads 0', (t) => t.is(guestView().u8(0x3d), 0));

test('unlike the kernel 2: the header type reads 0, so that no guest looks for functions beside it', (t) => {
  t.is(guestView({ config: configBytes(usualCapabilities, { headerType: 0x80 }) }).u8(0x0e), 0);
});

test('kernel 2: reads of one byte, unaligned, and over several overlaid fields are byte exact', (t) => {
  const view = guestView();
  t.deepEqual([...view.read(0x03, 1)], [0x10]);
  t.deepEqual([...view.read(0x01, 4)], [0x1a, 0x00, 0x10, 0x02]);
  t.deepEqual([...view.read(0x2b, 6)], [0, 0xf4, 0x1a, 1, 0, 0]);
  t.is(view.read(0x02, 16).readUInt16LE(), 0x1000);
});

// Writing configuration space

test('kernel 3: partial writes of the command register and BAR0 are accepted', (t) => {
  const view = guestView();
  view.write(0x04, [0x01]);
  t.is(view.u16(0x04) & 1, 1);
  view.write(0x05, [0x00]);
  t.is(view.u16(0x04) & 1, 1, 'the other byte leaves the I/O bit');
  view.write(0x11, [0xe0]);
  t.is(view.u32(0x10), 0x0000_e001);
});

test('unlike the kernel 3: only the I/O bit is shadowed; the rest of the command register goes on', (t) => {
  const view = guestView();
  view.write(0x04, [0x06]);
  t.is(view.device.readUInt16LE(0x04), 0x0006);
});

test('unlike the kernel 3: writes to our fields do not go on to the device, which lacks them', (t) => {
  const view = guestView();
  const before = Buffer.from(view.device);
  view.write(0x00, [9, 9, 9, 9]);
  view.write(0x10, [9, 9, 9, 9]);
  t.deepEqual(view.device.subarray(2, 4), before.subarray(2, 4));
  t.deepEqual(view.device.subarray(0x10, 0x14), before.subarray(0x10, 0x14));
});

test('kernel 3: BAR sizing writes all ones and reads 0xffffffe1', (t) => {
  const view = guestView();
  view.write(0x10, Buffer.alloc(4, 0xff));
  t.is(view.u32(0x10), 0xffff_ffe1);
});

// BAR0

function registers(mode: 'ok' | 'error' = 'ok', msix = false) {
  const log: string[] = [];
  const finish = (done: Done, length: number) => {
    if (mode === 'ok') done(null, Buffer.alloc(length));
    else done(new Error('refused') as never, null);
  };
  const layout = new LegacyRegisters(32, typeNamed('net').fields, 12);
  const accesses = new Bar0Accesses(
    layout,
    {
      read: (space, offset, length, done) => {
        log.push(`read ${space} ${offset}+${length}`);
        finish(done, length);
      },
      write: (space, offset, data, done) => {
        log.push(`write ${space} ${offset}+${data.length}`);
        finish(done, 0);
      },
      notify: (queue) => log.push(`notify ${queue}`),
      busMaster: () => true,
      enableBusMaster: () => {},
    },
    1000,
    new DeviceLog('0000:5e:00.1'),
  );
  const access = (offset: number, length: number, data: Buffer | null) => {
    let answer: Buffer | null | undefined;
    accesses.run({ offset, length, data, msix, respond: (result) => (answer = result) });
    return answer;
  };
  return {
    log,
    accesses,
    read: (offset: number, length: number) => access(offset, length, null),
    write: (offset: number, ...bytes: number[]) => access(offset, bytes.length, Buffer.from(bytes)),
  };
}

test('unlike the kernel 5: with I/O disabled reads are all ones and writes are dropped, no EIO', (t) => {
  const { accesses, log } = registers();
  const answers: unknown[] = [];
  const respond = (result: Buffer | null) => answers.push(result);
  accesses.gate({ offset: 0, length: 1, data: null, msix: false, respond });
  accesses.gate({ offset: 0x12, length: 1, data: Buffer.of(1), msix: false, respond });
  t.deepEqual(answers, [Buffer.of(0xff), null]);
  t.deepEqual(log, []);
});

test('kernel 5: a write of two bytes at 0x10 notifies the queue', (t) => {
  const { write, log } = registers();
  write(0x10, 3, 0);
  t.deepEqual(log, ['notify 3']);
});

test('unlike the kernel 5: one byte at 0x10 is the device’s to judge, no EINVAL', (t) => {
  const { write, log } = registers();
  write(0x10, 3);
  t.deepEqual(log, ['write common 16+1']);
});

test('unlike the kernel 5: a read at 0x10 asks the owner, not the notify address', (t) => {
  const { read, log } = registers();
  read(0x10, 2);
  t.deepEqual(log, ['read common 16+2']);
});

test('kernel 5: an access at or above the base is a device command, less the base', (t) => {
  const { read, log } = registers();
  read(20, 1);
  read(26, 2);
  t.deepEqual(log, ['read device 0+1', 'read device 6+2']);
});

test('kernel 5: the base is 24 with MSI-X and 20 without', (t) => {
  const withMsix = registers('ok', true);
  withMsix.read(20, 2);
  withMsix.read(24, 1);
  t.deepEqual(withMsix.log, ['read common 20+2', 'read device 0+1']);
});

test('unlike the kernel 5: the guest’s MSI-X enable bit moves the base, whatever the host has set up', (t) => {
  const view = guestView();
  t.is(view.u16(msixOffset + 2) & 0x8000, 0);
  view.device.writeUInt16LE(0x8003, msixOffset + 2); // the host enabled it
  t.is(view.u16(msixOffset + 2) & 0x8000, 0);
  view.write(msixOffset + 3, [0x80]);
  t.is(view.u16(msixOffset + 2) & 0x8000, 0x8000);
});

test('unlike the kernel 5: accesses over field borders are split, so the device need not refuse them', (t) => {
  const { write, log } = registers();
  write(0x0e, 1, 0, 2, 0);
  t.deepEqual(log, ['write common 14+2', 'notify 2']);
});

test('unlike the kernel 5: a device’s refusal is all ones to a read and dropped on a write', (t) => {
  const { read, write, accesses } = registers('error');
  t.deepEqual(read(0, 4), Buffer.alloc(4, 0xff));
  t.is(write(0x12, 1), null);
  t.is(accesses.counters.failed, 2);
});

test('kernel 5: 32 bytes reach max pairs and MTU without MSI-X, and end after status with it', (t) => {
  const off = registers();
  off.read(28, 2);
  off.read(30, 2);
  t.deepEqual(off.log, ['read device 8+2', 'read device 10+2']);
  const on = registers('ok', true);
  on.read(30, 2);
  t.deepEqual(on.log, ['read device 6+2']);
});

test('unlike the kernel 5: with several queue pairs BAR0 has 64 bytes, so max pairs stays in reach', (t) => {
  const view = guestView({ features: 1n << 22n });
  view.write(0x10, Buffer.alloc(4, 0xff));
  t.is(view.u32(0x10), 0xffff_ffc1);
});

// Reset

test('kernel 6: after a reset I/O is disabled and BAR0 keeps its value', (t) => {
  const view = guestView();
  view.write(0x04, [0x07]);
  view.write(0x10, [0x00, 0xc0, 0, 0]);
  view.reset();
  t.is(view.u32(0x10), 0x0000_c001);
  t.is(view.u16(0x04) & 1, 0);
});

test('kernel 6: a function level reset by the guest counts as a reset', (t) => {
  const express = { offset: 0x40, id: 0x10, body: [2, 0, ...le32(1 << 28), 0, 0] };
  const advanced = { offset: 0x60, id: 0x13, body: [6, 3, 0, 0] };
  const config = configBytes([express, advanced]);
  for (const [offset, data] of [
    [0x48, [0x10, 0x80]],
    [0x49, [0x80]],
    [0x64, [1]],
  ] as const) {
    const view = guestView({ config });
    view.write(0x04, [0x01]);
    view.write(offset - 1, [0]);
    t.is(view.u8(0x04) & 1, 1);
    view.write(offset, data);
    t.is(view.u8(0x04) & 1, 0, `bytes at 0x${offset.toString(16)}`);
  }
});

test('kernel 6: bits of capabilities that offer no reset are nothing special', (t) => {
  const express = { offset: 0x40, id: 0x10, body: [2, 0, ...le32(0), 0, 0] };
  const advanced = { offset: 0x60, id: 0x13, body: [6, 1, 0, 0] };
  const view = guestView({ config: configBytes([express, advanced]) });
  view.write(0x04, [0x01]);
  view.write(0x49, [0x80]);
  view.write(0x64, [1]);
  t.is(view.u8(0x04) & 1, 1);
});

test('unlike the kernel 6: after a reset the I/O bit also reads 0, as it acts', (t) => {
  const view = guestView();
  view.write(0x04, [0x01]);
  view.reset();
  t.is(view.u8(0x04) & 1, 0);
});

// Interrupts

test('kernel 7: vector registers go to the device like others', (t) => {
  const { write, log } = registers('ok', true);
  write(0x14, 0, 0);
  write(0x16, 1, 0);
  t.deepEqual(log, ['write common 20+2', 'write common 22+2']);
});

test('kernel 7: ISR reads go to the device', (t) => {
  const { read, log } = registers();
  read(0x13, 1);
  t.deepEqual(log, ['read common 19+1']);
});
