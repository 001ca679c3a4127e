import { Writable } from 'node:stream';
import test from 'ava';
import winston from 'winston';
import { closeLogging, configureLogging, DeviceLog, logNativeLine } from '../lib/log.js';

function capture() {
  const lines: Record<string, unknown>[] = [];
  const stream = new Writable({
    write(chunk: Buffer, _encoding, done) {
      lines.push(JSON.parse(chunk.toString()) as Record<string, unknown>);
      done();
    },
  });
  return { lines, transport: new winston.transports.Stream({ stream }) };
}

test.serial('the log is silent until it is configured, and again without transports', (t) => {
  const { lines, transport } = capture();
  const log = new DeviceLog('0000:5e:00.1');
  log.info('before');
  configureLogging({ transports: [transport], format: winston.format.json() });
  log.info('between');
  configureLogging({ transports: [] });
  log.info('after');
  t.deepEqual(
    lines.map(({ message }) => message),
    ['between'],
  );
});

test.serial('a device’s lines carry its bdf and their fields', (t) => {
  const { lines, transport } = capture();
  configureLogging({ transports: [transport], format: winston.format.json() });
  new DeviceLog('0000:5e:00.1').warn('Notify address ignored', { bar: 9 });
  t.deepEqual(lines, [
    { level: 'warn', message: 'Notify address ignored', bdf: '0000:5e:00.1', bar: 9 },
  ]);
});

test.serial('lines of the addon keep their level and target', (t) => {
  const { lines, transport } = capture();
  configureLogging({ level: 'warn', transports: [transport], format: winston.format.json() });
  logNativeLine('error', 'retrovf_softnic', 'No memory');
  logNativeLine('debug', 'retrovf_softnic', 'Chatter');
  t.deepEqual(lines, [{ level: 'error', message: 'No memory', target: 'retrovf_softnic' }]);
});

test.serial('what a guest can cause makes one line a second, which counts the others', (t) => {
  const { lines, transport } = capture();
  configureLogging({ transports: [transport], format: winston.format.json() });
  const log = new DeviceLog('0000:5e:00.1');
  for (const at of [0, 1, 999, 1000, 1001])
    log.limited('Register access failed', () => ({ at }), at);
  t.deepEqual(
    lines.map(({ at, suppressed }) => ({ at, suppressed })),
    [
      { at: 0, suppressed: 0 },
      { at: 1000, suppressed: 2 },
    ],
  );
});

test.serial('closing the log waits until every transport has written its lines', async (t) => {
  const written: unknown[] = [];
  class Slow extends winston.transports.Stream {
    override log(info: { message: unknown }, done: () => void): void {
      setTimeout(() => {
        written.push(info.message);
        done();
      }, 20);
    }
  }
  configureLogging({ transports: [new Slow({ stream: new Writable() })] });
  const log = new DeviceLog('0000:5e:00.1');
  log.info('last');
  log.info('words');
  await closeLogging();
  t.deepEqual(written, ['last', 'words']);
});
