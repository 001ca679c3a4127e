// What does a whole guest notice? A Linux that can only do virtio 0.9.5 boots, gets a lease, pings and
// moves data: with RetroVF and its SoftNIC, and with QEMU's own virtio-net-pci, on equal networks.

import { bootLinux } from '../../test/guest/lib/linux.js';
import { startNetwork } from '../../test/guest/lib/network.js';
import type { Port } from '../../test/guest/lib/nic.js';
import { startRetroVf } from '../../test/guest/lib/retrovf.js';
import { standinPort } from '../../test/guest/lib/standin.js';
import type { Scene } from '../../test/vm/scene.js';
import { describe, distribution, type Path } from '../js/series.js';
import { inScene } from '../vm.js';
import { Streams } from './streams.js';

export const name = 'whole guest';

const rounds = 3;
const echoes = 1_000;
const streams = 4;
const mebibytes = { out: 2, in: 8 };
/** QEMU's user network has the host there. */
const host = '10.0.2.2';

const paths = [
  {
    path: 'guest, boot to lease',
    about: 'From the start of QEMU to the lease by DHCP, one boot a round. Emulated CPU (TCG).',
  },
  {
    path: 'guest, ping',
    about: `Round-trip time that the guest’s ping tells, ${echoes} echoes a boot, each sent when the last has come.`,
  },
  {
    path: 'guest, TCP out',
    about: `Time for one MiB of a stream of ${mebibytes.out} from the guest, ${streams} a boot.`,
  },
  {
    path: 'guest, TCP in',
    about: `Time for one MiB of a stream of ${mebibytes.in} to the guest, ${streams} a boot.`,
  },
];
/** Of one boot, in nanoseconds, a list for each of these paths. */
type Samples = readonly number[][];

const contenders = [
  { name: 'retrovf', port: retrovf },
  { name: 'QEMU’s virtio-net-pci', port: standin },
];

export async function measureGuests(): Promise<Path[]> {
  const all: Samples[][] = contenders.map(() => []);
  for (let round = 0; round < rounds; round += 1) {
    for (let turn = 0; turn < contenders.length; turn += 1) {
      const at = (round + turn) % contenders.length;
      all[at]?.push(await measured(contenders[at]!.port));
    }
    process.stderr.write(`${name}: round ${round + 1} of ${rounds}\n`);
  }
  return paths.map((path, figure) => ({
    ...path,
    unit: 'ns',
    contenders: contenders.map((contender, at) => {
      const boots = all[at]!.map((samples) => samples[figure]!);
      return {
        name: contender.name,
        rounds: boots.map(describe),
        cdf: distribution(boots.flat()),
      };
    }),
  }));
}

/** One boot. */
function measured(port: (scene: Scene) => Promise<Port>): Promise<Samples> {
  return inScene(
    name,
    () => {},
    async (scene) => {
      const [taking, giving] = [await Streams.taking(), await Streams.giving(mebibytes.in)];
      scene.atEnd(async () => [taking, giving].forEach((ends) => ends.close()));
      const function_ = await port(scene);
      const start = process.hrtime.bigint();
      const guest = bootLinux(scene, function_, {
        steps: [
          'dhcp',
          `echoes:${echoes}`,
          `upload:${host}:${taking.port}:${mebibytes.out}:${streams}`,
          `download:${host}:${giving.port}:${streams}`,
        ],
      });
      await guest.said('step', 60);
      const boot = Number(process.hrtime.bigint() - start);
      await guest.done(120);
      const milliseconds = guest.one('echoes').split(' ').map(Number);
      const pings = milliseconds.map((ms) => Math.round(ms * 1e6));
      const whole =
        pings.length === echoes && [taking, giving].every(({ times }) => times.length === streams);
      if (!whole) throw new Error(`the guest did less than it should, see ${scene.dir}`);
      return [[boot], pings, taking.times, giving.times];
    },
  );
}

const settings = { vfs: 1, presentation: 'legacy' } as const;

async function retrovf(scene: Scene): Promise<Port> {
  const [port] = await startRetroVf(scene, { ...settings, network: await startNetwork(scene) });
  return port!;
}

/** Without the switch that the stand-in has for several guests. */
async function standin(scene: Scene): Promise<Port> {
  return standinPort(await startNetwork(scene), 0, settings);
}
