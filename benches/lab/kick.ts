// What does a kick cost the guest that makes it? Its `out` to Queue Notify, each way of a kick beside
// the others: four VFs in one legacy guest under KVM, in the machine of test/lab.

import { readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { bootL1, type L1 } from '../../test/lab/lib/l1.js';
import { assigned, l2Command, l2Files, served } from '../../test/lab/lib/l2.js';
import { lab } from '../../test/lab/lib/lab.js';
import { serve } from '../../test/lab/lib/program.js';
import type { Contender, Path, Round } from '../js/series.js';
import { inScene } from '../vm.js';

export const name = 'guest kick in the lab';
const about =
  'A legacy guest’s out to BAR0+16, timed in the guest by its TSC, 0.2 ms after the one before, on VFs whose queues are live. ' +
  'By message: QEMU as it is. Forwarder and in the kernel: QEMU with contrib/qemu, where our doorbell thread or ' +
  'VFIO_DEVICE_IOEVENTFD rings the VF. Peer: vfio-pci and Linux’ virtio_vfio_pci. The machine under the guest is emulated ' +
  '(nested KVM on TCG): times mean something beside each other only.';

const kernel = 'trixie-backports';
const [rounds, samples] = [11, 200];
const [first, second] = ['127.0.0.1:9100', '127.0.0.1:9101'];

// In the order of their addresses, in which the guest numbers them.
const contenders = [
  {
    name: 'retrovf, by message',
    device: served('/tmp/message.sock', { addr: '10', 'x-io-fds': false }),
  },
  { name: 'retrovf, forwarder', device: served('/tmp/forwarder.sock', { addr: '11' }) },
  { name: 'retrovf, in the kernel', device: served('/tmp/kernel.sock', { addr: '12' }) },
  { name: 'kernel driver', device: assigned('$VF2', ',addr=13') },
];

/** A PF belongs to one process or driver, and a process has one way to forward: hence three PFs. */
const script = `
cd /tmp
${serve(`$VFS --socket-dir /tmp/a --metrics ${first}`)}
${serve(`$VF1 --socket-dir /tmp/b --metrics ${second}`, { name: '1', under: 'without-ioeventfd' })}
ln -s a/$VF.sock kernel.sock
ln -s "a/\${VFS#* }.sock" message.sock
ln -s b/$VF1.sock forwarder.sock
${l2Command(
  contenders.map(({ device }) => device),
  [`kick:${rounds}:${samples}`],
)}
status=$?
for at in ${first} ${second}; do
    wget -q -O - http://$at/metrics | sed -n 's/^retrovf_kicks_total{bdf="\\(.*\\)",path="\\(.*\\)"} /kicks=\\1 \\2 /p'
done
echo "vfs=$VFS $VF1"
kill $server $server1
return $status
`;

export function measureKicks(): Promise<Path> {
  const log = (line: string) => process.stderr.write(`${line}\n`);
  return inScene(name, log, async (scene) => {
    const file = async (path: string, content: string) => ({
      path,
      content: await readFile(content),
      mode: 0o755,
    });
    const step = fileURLToPath(new URL('../../test/lab/l2/kick.sh', import.meta.url));
    const guest = [await file('bin/kick', lab.tool('kick')), await file('steps/kick.sh', step)];
    const l1 = await bootL1(scene, {
      kernel,
      more: [{ vfs: 1 }, { vfs: 1, pf: 'virtio-pci', vf: 'virtio_vfio_pci' }],
      kvm: true,
      files: [
        ...(await l2Files(kernel, guest)),
        await file('usr/bin/without-ioeventfd', lab.tool('without-ioeventfd')),
      ],
      script,
    });
    await l1.done(300);
    requireWays(l1);
    return { path: name, about, unit: 'ns', contenders: contenders.map(figures(l1)) };
  });
}

/** Fails unless kicks took the ways that they are said to have taken. */
function requireWays(l1: L1): void {
  if (l1.one('done', 'GUEST') !== 'ok') throw new Error(`the guest: ${l1.one('done', 'GUEST')}`);
  const [inKernel = '', byMessage = '', forwarded = ''] = l1.one('vfs').split(' ');
  const kicks = (bdf: string, way: string) => {
    const start = `${bdf} ${way} `;
    return Number(
      l1
        .all('kicks')
        .find((line) => line.startsWith(start))
        ?.slice(start.length),
    );
  };
  const least = rounds * samples;
  const right =
    kicks(inKernel, 'message') === 0 &&
    kicks(inKernel, 'eventfd') === 0 &&
    kicks(byMessage, 'message') >= least &&
    kicks(forwarded, 'message') === 0 &&
    // Those that come before the thread is awake are one.
    kicks(forwarded, 'eventfd') > samples;
  if (!right) throw new Error(`kicks went other ways: ${l1.all('kicks').join(', ')}`);
}

/** What test/lab/l2/kick.c printed of a contender. */
const figures =
  (l1: L1) =>
  ({ name: contender }: { readonly name: string }, index: number): Contender => {
    const lines = (what: string) => {
      const start = `${index} ${what} `;
      const all = l1.all('kick', 'GUEST').filter((line) => line.startsWith(start));
      return all.map((line) => line.slice(start.length).split(' ').map(Number));
    };
    const [distribution = []] = lines('cdf');
    if (lines('round').length !== rounds || distribution.length !== percentages.length) {
      throw new Error(`${contender}: ${l1.all('kick', 'GUEST').join(' | ')}`);
    }
    return {
      name: contender,
      rounds: lines('round').map(asRound),
      cdf: distribution.map((ns, i) => [ns, percentages[i] ?? 100] as const),
    };
  };

const percentages = [
  ...Array.from({ length: 198 }, (_, i) => (i + 1) / 2),
  99.25,
  99.5,
  99.75,
  99.9,
];

function asRound([count = 0, p50 = 0, p90 = 0, p99 = 0, , , max = 0]: readonly number[]): Round {
  return { count, p50, p90, p99, max };
}
