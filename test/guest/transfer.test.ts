// Bulk data between two guests, legacy drivers at both ends.

import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import test from 'ava';
import { lab } from './lib/lab.js';
import { bootLinux } from './lib/linux.js';
import { startNic } from './lib/nic.js';
import { scene } from '../vm/scene.js';

const mebibytes = 64;

/** The data of image/steps/send.sh, made independently of any guest. */
async function expectedMd5(): Promise<string> {
  const body = (await readFile(lab.busybox)).subarray(0, 1024 * 1024 - 8);
  const hash = createHash('md5');
  for (let number = 1; number <= mebibytes; number += 1) {
    hash.update(String(number).padStart(8, '0')).update(body);
  }
  return hash.digest('hex');
}

test(
  `${mebibytes} MiB go from guest to guest unchanged`,
  scene(async (t, s) => {
    const [first, second] = await startNic(s, { vfs: 2 });
    const receiver = bootLinux(s, first!, {
      name: 'receiver',
      steps: ['identity', 'dhcp', 'receive:5000', 'interrupts'],
    });
    await receiver.said('listening', 120);
    const sender = bootLinux(s, second!, {
      name: 'sender',
      steps: ['identity', 'dhcp', `send:${receiver.one('ip')}:5000:${mebibytes}`, 'interrupts'],
    });
    await Promise.all([sender.done(300), receiver.done(300)]);
    t.is(receiver.one('version_1'), '0');
    t.is(sender.one('version_1'), '0');
    const expected = `${mebibytes * 1024 * 1024} md5=${await expectedMd5()}`;
    t.is(sender.one('sending'), expected);
    t.is(receiver.one('received'), expected);
  }),
);
