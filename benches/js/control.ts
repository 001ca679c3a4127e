// A register access through TypeScript, beside a bare call into JavaScript and back.

import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { connectGuest, serve, SoftNicHost, TransitionalDevice } from '../../lib/index.js';
import { bench } from './addon.js';
import { gained, measure, planOf, type Path } from './series.js';

export async function controlPaths(quick: boolean, where: string): Promise<Path[]> {
  const plan = planOf(quick);
  const folder = await mkdtemp(join(tmpdir(), 'retrovf-bench-'));
  try {
    await using host = await SoftNicHost.create({ vfs: 1 });
    await using device = await TransitionalDevice.open(host, host.members()[0] ?? '');
    await using served = serve(device, { path: join(folder, 'vf.sock') });
    const guest = await connectGuest(served.path);
    await guest.enumerate();
    await guest.start();
    const roundTrip = new bench.RoundTrip(() => roundTrip.answer());
    const path = await measure(
      {
        path: `control access, ${where}`,
        about: 'from the session thread to TypeScript, an admin command to SoftNIC, and back',
      },
      { rounds: plan.rounds, samples: quick ? 500 : 2_000 },
      [
        {
          name: 'retrovf',
          block: async (n) => {
            const before = served.counters().controlLatency;
            await guest.measureControl(n);
            return gained(before, served.counters().controlLatency);
          },
        },
        { name: 'bare threadsafe function', block: (n) => roundTrip.measure(n) },
      ],
    );
    guest.close();
    return [path];
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}
