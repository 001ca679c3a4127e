import { fc, testProp } from '@fast-check/ava';
import test from 'ava';
import type { Done } from '../lib/admin-lanes.js';
import { Bar0Accesses, type RegisterFile } from '../lib/bar0-accesses.js';
import { ownerLost } from '../lib/errors.js';
import { DeviceLog } from '../lib/log.js';
import { LegacyRegisters } from '../lib/virtio/legacy-registers.js';
import { typeNamed } from './helpers/config-space.js';

type Mode = 'at once' | 'later' | 'never' | 'error';

/** Registers that hold their own offsets. */
class Registers implements RegisterFile {
  readonly log: string[] = [];
  master = true;
  mode: Mode = 'at once';

  read(space: string, offset: number, length: number, done: Done): void {
    this.log.push(`read ${space} ${offset}+${length}`);
    this.#finish(done, Buffer.from(Array.from({ length }, (_, i) => offset + i)));
  }

  write(space: string, offset: number, data: Buffer, done: Done): void {
    this.log.push(`write ${space} ${offset} ${data.toString('hex')}`);
    this.#finish(done, Buffer.alloc(0));
  }

  notify(queue: number): void {
    this.log.push(`notify ${queue}`);
  }

  busMaster(): boolean {
    return this.master;
  }

  enableBusMaster(): void {
    this.master = true;
    this.log.push('bus master');
  }

  #finish(done: Done, result: Buffer): void {
    if (this.mode === 'at once') done(null, result);
    else if (this.mode === 'later') setImmediate(() => done(null, result));
    else if (this.mode === 'error') done(ownerLost('0000:5e:00.0', 'gone'), null);
  }
}

function setUp(options: { mode?: Mode; timeoutMs?: number; msix?: boolean } = {}) {
  const { mode = 'at once', timeoutMs = 1000, msix = false } = options;
  const file = new Registers();
  file.mode = mode;
  const layout = new LegacyRegisters(64, typeNamed('net').fields, 12);
  const accesses = new Bar0Accesses(layout, file, timeoutMs, new DeviceLog('0000:5e:00.1'));
  const read = (offset: number, length: number) =>
    new Promise<Buffer | null>((respond) =>
      accesses.run({ offset, length, data: null, msix, respond }),
    );
  const write = (offset: number, ...bytes: number[]) =>
    new Promise<Buffer | null>((respond) =>
      accesses.run({ offset, length: bytes.length, data: Buffer.from(bytes), msix, respond }),
    );
  return { accesses, file, read, write, counters: accesses.counters };
}

test('an access to one register that completes at once is answered at once', (t) => {
  const { accesses, file } = setUp();
  let answered: Buffer | null = null;
  accesses.run({
    offset: 0x12,
    length: 1,
    data: null,
    msix: false,
    respond: (result) => (answered = result),
  });
  t.deepEqual(answered, Buffer.of(0x12) as unknown as null);
  t.deepEqual(file.log, ['read common 18+1']);
});

test('a read over several registers is joined from one command each', async (t) => {
  const { read, file, counters } = setUp({ mode: 'later' });
  t.deepEqual(await read(0x0c, 4), Buffer.of(0x0c, 0x0d, 0x0e, 0x0f));
  t.deepEqual(file.log, ['read common 12+2', 'read common 14+2']);
  t.is(counters.split, 1);
});

test('a write over queue select and queue notify selects first, then rings the doorbell', async (t) => {
  const { write, file } = setUp({ mode: 'later' });
  t.is(await write(0x0e, 1, 0, 2, 0), null);
  t.deepEqual(file.log, ['write common 14 0100', 'notify 2']);
});

test('a read of queue notify asks the device', async (t) => {
  const { read, file } = setUp();
  await read(0x10, 2);
  t.deepEqual(file.log, ['read common 16+2']);
});

test('the MSI-X enable bit at the time of the access decides where the configuration is', async (t) => {
  const off = setUp();
  await off.read(20, 1);
  t.deepEqual(off.file.log, ['read device 0+1']);
  const on = setUp({ msix: true });
  await on.read(20, 2);
  await on.read(24, 1);
  t.deepEqual(on.file.log, ['read common 20+2', 'read device 0+1']);
});

test('holes read as all ones and drop writes, without any command', async (t) => {
  const { read, write, file, counters } = setUp();
  t.deepEqual(await read(60, 4), Buffer.alloc(4, 0xff));
  await write(60, 1, 2);
  t.deepEqual(file.log, []);
  t.is(counters.holeBytes, 6);
});

test('a read over the end of the configuration keeps what exists', async (t) => {
  const { read } = setUp();
  t.deepEqual(await read(30, 4), Buffer.of(10, 11, 0xff, 0xff));
});

test('what the device refuses reads as all ones, is dropped on writes, and is counted', async (t) => {
  const { read, write, counters } = setUp({ mode: 'error' });
  t.deepEqual(await read(0, 4), Buffer.alloc(4, 0xff));
  t.is(await write(0x12, 0), null);
  t.is(counters.failed, 2);
});

test('accesses reach the device in the order they came, each after the one before', async (t) => {
  const { read, write, file } = setUp({ mode: 'later' });
  const done: string[] = [];
  await Promise.all([
    write(0x0e, 1, 0).then(() => done.push('select')),
    read(0x0c, 2).then(() => done.push('size')),
    write(0x08, 1, 2, 3, 4).then(() => done.push('address')),
  ]);
  t.deepEqual(file.log, ['write common 14 0100', 'read common 12+2', 'write common 8 01020304']);
  t.deepEqual(done, ['select', 'size', 'address']);
});

test('an access that the device does not answer is answered with all ones in time', async (t) => {
  const { read, counters } = setUp({ mode: 'never', timeoutMs: 20 });
  const before = performance.now();
  t.deepEqual(await read(0, 4), Buffer.alloc(4, 0xff));
  t.true(performance.now() - before < 500);
  t.is(counters.timedOut, 1);
});

test('accesses behind a stuck one are answered in time too, and do not overtake it', async (t) => {
  const { read, file, counters } = setUp({ mode: 'never', timeoutMs: 20 });
  await Promise.all([read(0, 4), read(4, 4), read(8, 4)]);
  t.is(counters.timedOut, 3);
  t.deepEqual(file.log, ['read common 0+4']);
});

test('the rest of an access that was answered late is not performed', async (t) => {
  const { accesses, file } = setUp({ mode: 'never', timeoutMs: 10 });
  let late: Done | undefined;
  file.read = (space, offset, length, done) => {
    file.log.push(`read ${space} ${offset}+${length}`);
    late = done;
  };
  await new Promise((respond) =>
    accesses.run({ offset: 0x0c, length: 4, data: null, msix: false, respond }),
  );
  late?.(null, Buffer.of(1, 2));
  t.deepEqual(file.log, ['read common 12+2']);
});

test('accesses beyond 64 waiting are answered with all ones at once', async (t) => {
  const { read, counters } = setUp({ mode: 'never', timeoutMs: 50 });
  const all = Array.from({ length: 70 }, () => read(0, 4));
  t.is(counters.dropped, 5);
  t.is((await Promise.all(all)).length, 70);
});

test('a status write with DRIVER enables bus mastering for a driver that forgot, before the write', async (t) => {
  const { write, file, counters } = setUp();
  file.master = false;
  await write(0x12, 3);
  t.deepEqual(file.log, ['bus master', 'write common 18 03']);
  t.is(counters.busMasterFixes, 1);
});

test('a status write without DRIVER, as a reset is, leaves bus mastering alone', async (t) => {
  const { write, file } = setUp();
  file.master = false;
  await write(0x12, 0);
  await write(0x12, 1);
  t.false(file.master);
});

test('a notify or bus master that fails is counted and does not reach the caller', async (t) => {
  const { write, file, counters } = setUp();
  file.notify = () => {
    throw Object.assign(new Error('gone'), { code: 'ERR_DEVICE_GONE' });
  };
  t.is(await write(0x0e, 0, 0, 0, 0), null);
  t.is(counters.failed, 1);
});

test('a gated access reads as all ones and reaches nothing', (t) => {
  const { accesses, file, counters } = setUp();
  const got: (Buffer | null)[] = [];
  const access = {
    offset: 0,
    length: 2,
    msix: false,
    respond: (result: Buffer | null) => got.push(result),
  };
  accesses.gate({ ...access, data: null });
  accesses.gate({ ...access, data: Buffer.of(1, 2) });
  t.deepEqual(got, [Buffer.of(0xff, 0xff), null]);
  t.deepEqual(file.log, []);
  t.is(counters.gated, 2);
});

const guestAccess = fc.record({
  offset: fc.nat(63),
  length: fc.integer({ min: 1, max: 8 }),
  write: fc.boolean(),
});

testProp(
  'every access is answered exactly once, in order, whatever it touches',
  [
    fc.array(guestAccess, { minLength: 1, maxLength: 30 }),
    fc.constantFrom<Mode>('at once', 'later', 'error'),
  ],
  async (t, list, mode) => {
    const { accesses } = setUp({ mode });
    const order: number[] = [];
    await new Promise<void>((resolve) => {
      for (const [index, { offset, length, write }] of list.entries()) {
        const data = write ? Buffer.alloc(length, 1) : null;
        accesses.run({
          offset,
          length,
          data,
          msix: false,
          respond: (result) => {
            t.is(result?.length, write ? undefined : length);
            order.push(index);
            if (order.length === list.length) resolve();
          },
        });
      }
    });
    t.deepEqual(
      order,
      list.map((_, index) => index),
    );
  },
);
