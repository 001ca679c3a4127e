// What `serve` says of a device.

import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { announce, announcementLines } from '../../lib/cli/serve/announcement.js';
import { styles } from '../../lib/cli/output/styles.js';
import { serveAll, SoftNicHost, type SoftNicOptions } from '../../lib/index.js';
import { folder } from './retrovf.js';

async function announced(t: ExecutionContext, options: SoftNicOptions, socket: string) {
  const host = await SoftNicHost.create(options);
  t.teardown(() => host.close());
  const [bdf = ''] = host.members();
  const service = await serveAll(host, [{ bdf, path: join(await folder(t), socket) }]);
  t.teardown(() => service.close());
  const [served] = service.served;
  if (served === undefined) throw service.failures[0]?.error ?? new Error('nothing is served');
  return announce(served, new AbortController().signal);
}

test('a device that can not be transitional is announced as passed through, with the reason', async (t) => {
  const announcement = await announced(t, { adminOpcodes: 0 }, 'a.sock');
  t.like(announcement, {
    verdict: 'passthrough',
    reason: 'owner-no-admin-vq',
    type: null,
    presentation: null,
    bar0: null,
    notify: null,
  });
  const [facts = ''] = announcementLines(announcement, styles(false));
  t.regex(facts, /as it is, not for legacy guests: owner-no-admin-vq/);
});

test('notifications that take commands are announced as such', async (t) => {
  const { notify } = await announced(t, { notify: 'none' }, 'a.sock');
  t.is(notify?.kind, 'command');
});

test('the command for people survives the shell', async (t) => {
  const announcement = await announced(t, {}, "it's a.sock");
  const attach = announcementLines(announcement, styles(false)).at(-1) ?? '';
  t.true(attach.endsWith(`it'\\''s a.sock","type":"unix"}}'`), attach);
});
