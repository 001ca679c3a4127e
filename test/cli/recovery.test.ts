// What `serve` does when an owner fails.

import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import test, { type ExecutionContext } from 'ava';
import { keepUp } from '../../lib/cli/serve/recovery.js';
import { OwnerDevice, SoftNicHost } from '../../lib/index.js';

async function owner(t: ExecutionContext): Promise<{ host: SoftNicHost; owner: OwnerDevice }> {
  const host = await SoftNicHost.create();
  const owner = await OwnerDevice.open(host, host.owner, {
    healthIntervalMs: 10,
    commandTimeoutMs: 50,
  });
  t.teardown(async () => {
    await owner.close();
    await host.close();
  });
  return { host, owner };
}

test('an owner that fails is brought up again', async (t) => {
  const { host, owner: failing } = await owner(t);
  keepUp([failing], new AbortController().signal);
  host.inject({ kind: 'device-reset', bdf: failing.bdf });
  await once(failing, 'lost');
  await once(failing, 'recovered');
  t.is(failing.state.kind, 'ready');
});

test('a recovery that fails is tried again', async (t) => {
  const { host, owner: failing } = await owner(t);
  keepUp([failing], new AbortController().signal);
  host.inject({ kind: 'no-completion', opcode: 0, count: 1 });
  host.inject({ kind: 'device-reset', bdf: failing.bdf });
  const start = performance.now();
  await once(failing, 'recovered');
  // The pauses before the first and the second attempt.
  t.true(performance.now() - start >= 1400);
  t.is(failing.state.kind, 'ready');
});

test('an owner that had failed before is brought up too', async (t) => {
  const { host, owner: failing } = await owner(t);
  host.inject({ kind: 'device-reset', bdf: failing.bdf });
  await once(failing, 'lost');
  keepUp([failing], new AbortController().signal);
  await once(failing, 'recovered');
  t.is(failing.state.kind, 'ready');
});

test('nothing is brought up for a service that ends', async (t) => {
  const { host, owner: failing } = await owner(t);
  const controller = new AbortController();
  keepUp([failing], controller.signal);
  host.inject({ kind: 'device-reset', bdf: failing.bdf });
  await once(failing, 'lost');
  controller.abort();
  await sleep(800);
  t.is(failing.state.kind, 'failed');
});
