// Kicks of a legacy guest under KVM, with contrib/qemu: as signals that the kernel forwards, as
// signals that RetroVF forwards, and as messages without it.

import { readFile } from 'node:fs/promises';
import test from 'ava';
import { scene } from '../vm/scene.js';
import { bootL1 } from './lib/l1.js';
import { l2Command, l2Files, legacyGuestIsWell, nested, served } from './lib/l2.js';
import { lab } from './lib/lab.js';
import { serve } from './lib/program.js';

const kernel = 'trixie-backports';
const metrics = '127.0.0.1:9100';

/** Lines of shell: `PREFIX_WHO=VALUE` for each sample of a family of metrics. */
const look = (family: string, label: string, prefix: string) =>
  `wget -q -O - http://${metrics}/metrics |
    sed -n 's/^retrovf_${family}{.*${label}="\\([a-z]*\\)".*} /${prefix}_\\1=/p'`;

interface Case {
  readonly properties?: Record<string, unknown>;
  /** What the server runs under, and what stands between it and QEMU. */
  readonly under?: 'without-ioeventfd';
  readonly through?: 'liar';
  /** Who forwards the eventfds of the guest's queues, while it runs. */
  readonly doorbells: { readonly kernel: boolean; readonly engine: boolean };
  /** How kicks reached RetroVF. */
  readonly kicks: { readonly message: boolean; readonly eventfd: boolean };
}

/** Runs a guest and tells which ways its kicks took, and that they were not lost. */
const kicks = ({ properties, under, through, doorbells, kicks: expected }: Case) =>
  nested(
    scene(async (t, s) => {
      const tools = [under, through].filter((name) => name !== undefined);
      const programs = tools.map(async (name) => ({
        path: `usr/bin/${name}`,
        content: await readFile(lab.tool(name)),
        mode: 0o755,
      }));
      const socket = through === undefined ? '/tmp/vf.sock' : '/tmp/between.sock';
      // The guest has the serial line; what is looked at meanwhile is said at the end.
      const l1 = await bootL1(s, {
        kernel,
        vfs: 1,
        kvm: true,
        files: [...(await l2Files(kernel)), ...(await Promise.all(programs))],
        script: `
cd /tmp
${serve(`"$VF" --socket /tmp/vf.sock --metrics ${metrics}`, under === undefined ? {} : { under })}
${through === undefined ? '' : `while rm -f ${socket}; do ${through} /tmp/vf.sock ${socket}; done & until [ -S ${socket} ]; do usleep 50000; done`}
${l2Command([served(socket, properties)])} &
guest=$!
while kill -0 $guest 2> /dev/null; do
    ${look('doorbells', 'by', 'doorbells')} >> looks
    sleep 1
done
wait $guest
status=$?
sort -u looks
${look('kicks_total', 'path', 'kicks')}
kill $server
wait $server || status=1
[ $status = 0 ] || cat serve.err
return $status
`,
      });
      await l1.done(500);
      legacyGuestIsWell(t, l1);
      for (const [way, some] of Object.entries(doorbells)) {
        const most = Math.max(...l1.all(`doorbells_${way}`).map(Number));
        t.log(`doorbells by ${way}: ${most}`);
        // Receive, transmit, control.
        t.is(most, some ? 3 : 0, `doorbells by ${way}`);
      }
      for (const [way, some] of Object.entries(expected)) {
        const count = Number(l1.one(`kicks_${way}`));
        t.log(`kicks by ${way}: ${count}`);
        if (some) t.true(count > 50, `kicks by ${way}: ${count}`);
        else t.is(count, 0, `kicks by ${way}`);
      }
    }),
  );

test(
  'the kernel forwards each kick of a guest to the VF, and none reaches RetroVF',
  kicks({
    doorbells: { kernel: true, engine: false },
    kicks: { message: false, eventfd: false },
  }),
);

test(
  'RetroVF forwards each kick where the kernel cannot',
  kicks({
    under: 'without-ioeventfd',
    doorbells: { kernel: false, engine: true },
    kicks: { message: false, eventfd: true },
  }),
);

test(
  'kicks come as messages with x-io-fds=off',
  kicks({
    properties: { 'x-io-fds': false },
    doorbells: { kernel: false, engine: false },
    kicks: { message: true, eventfd: false },
  }),
);

test(
  'QEMU under KVM believes only what can be true of the eventfds that a server gives it',
  kicks({
    through: 'liar',
    doorbells: { kernel: true, engine: false },
    kicks: { message: false, eventfd: false },
  }),
);
