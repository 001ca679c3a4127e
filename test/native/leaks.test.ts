// What is opened and closed a few hundred times leaves nothing behind.

import { readdirSync, readFileSync } from 'node:fs';
import test from 'ava';
import { serve, SoftNicHost, TransitionalDevice } from '../../lib/index.js';
import { memberOf, socketFolder, softNic } from '../helpers/softnic.js';
import { until } from '../helpers/until.js';

const descriptors = () => readdirSync('/proc/self/fd').length;
const threads = () => readdirSync('/proc/self/task').length;
const maps = () => readFileSync('/proc/self/maps', 'utf8').split('\n').length;

test.serial(
  'opening, serving and closing a device leaves no descriptor, thread or mapping',
  async (t) => {
    const host = await softNic(t);
    const socket = await socketFolder(t);
    const once = async () => {
      const device = await TransitionalDevice.open(host, memberOf(host));
      const handle = serve(device, { path: socket('vf') });
      device.configWrite(4, Buffer.of(7));
      await device.bar0Read(0x12, 1);
      await handle.close();
      await device.close();
    };
    // V8's heap takes some hundred rounds to reach its size.
    for (let i = 0; i < 500; i += 1) await once();
    const before = { descriptors: descriptors(), threads: threads(), maps: maps() };
    for (let i = 0; i < 250; i += 1) await once();
    await until('descriptors are back', () => descriptors() <= before.descriptors + 4);
    await until('threads are back', () => threads() <= before.threads + 2);
    t.true(maps() <= before.maps + 100, `${maps()} mappings after ${before.maps}`);
  },
);

test.serial('making and closing a SoftNIC leaves no descriptor or thread', async (t) => {
  const once = async () => {
    const host = await SoftNicHost.create({ vfs: 4, uplink: { kind: 'gateway' } });
    await host.close();
  };
  for (let i = 0; i < 5; i += 1) await once();
  const before = { descriptors: descriptors(), threads: threads() };
  for (let i = 0; i < 50; i += 1) await once();
  await until('descriptors are back', () => descriptors() <= before.descriptors + 4);
  await until('threads are back', () => threads() <= before.threads + 2);
  t.pass();
});
