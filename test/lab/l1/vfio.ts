// What `retrovf serve` and the library do with a PF and two VFs of the machine, all on vfio-pci. Runs
// in the lab, as root, with the addresses in PF and VFS, and the way in (group, cdev) in VIA; prints `ok NAME` or `not ok NAME: why` a test,
// and facts as key=value.

import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { chown, mkdtemp, readdir, readFile, readlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  connectGuest,
  OwnerDevice,
  RetroVfError,
  serve,
  serveAll,
  TransitionalDevice,
  VfioHost,
  type Service,
} from '../../../lib/index.js';

const pf = process.env['PF'] ?? '';
const vfs = (process.env['VFS'] ?? '').trim().split(/\s+/);
const [vf1 = '', vf2 = ''] = vfs;
const via = (process.env['VIA'] ?? 'auto') as 'auto' | 'group' | 'cdev';
const main = new URL('../../../lib/cli/main.js', import.meta.url).pathname;
const gateway = '10.0.2.2';
const patience = 30_000;

const folder = await mkdtemp('/tmp/vfio-');
let sockets = 0;
const socket = () => join(folder, `${(sockets += 1)}.sock`);
const sys = (bdf: string, name: string) => `/sys/bus/pci/devices/${bdf}/${name}`;
const driver = (name: string) => `/sys/bus/pci/drivers/vfio-pci/${name}`;

function check(condition: unknown, what: string): asserts condition {
  if (!condition) throw new Error(what);
}

/** The nodes that whoever opens a function has to have. */
async function nodesOf(bdf: string): Promise<string[]> {
  const [own] = await readdir(sys(bdf, 'vfio-dev')).catch(() => []);
  const iommufd = '/dev/iommu';
  if (via !== 'group' && own !== undefined && existsSync(iommufd)) {
    return [iommufd, `/dev/vfio/devices/${own}`];
  }
  const group = (await readlink(sys(bdf, 'iommu_group'))).split('/').at(-1);
  return [`/dev/vfio/${group}`];
}

async function codeOf(work: Promise<unknown>): Promise<string> {
  try {
    await work;
    return 'none';
  } catch (error) {
    return error instanceof RetroVfError ? error.code : String(error);
  }
}

async function within<T>(work: Promise<T>, what: string): Promise<T> {
  const late = sleep(patience, undefined, { ref: false }).then(() => {
    throw new Error(`${what} took too long`);
  });
  return Promise.race([work, late]);
}

/** A guest gets an address and answers. */
async function traffic(path: string, options: { ioeventfds?: boolean } = {}) {
  const guest = await connectGuest(path, options);
  await guest.enumerate();
  const state = await guest.start();
  await guest.dhcp(patience);
  const { received } = await guest.ping(gateway, 3, patience);
  check(received === 3, `${received} of 3 pings were answered`);
  check(state.msix, 'MSI-X is not in use');
  return guest;
}

/** A `retrovf serve` of the test: its announcements, log lines and end. */
class Serving {
  readonly child: ChildProcess;
  readonly log: string[] = [];
  readonly ended: Promise<number | null>;
  readonly announced: { bdf: string; socket: string; notify: unknown; type: string }[] = [];

  /** As another user, it may lock 512 KiB of memory. */
  constructor(args: readonly string[], user?: number) {
    const limited = user === undefined ? '' : 'ulimit -l 512;';
    const shell = ['-c', `${limited} exec "$0" "$@"`, process.execPath, main];
    shell.push('serve', '--via', via, ...args);
    this.child = spawn('sh', shell, {
      stdio: ['ignore', 'pipe', 'pipe'],
      ...(user === undefined ? {} : { uid: user, gid: user }),
    });
    this.ended = once(this.child, 'exit').then(([code]) => code as number | null);
    const { stdout, stderr } = this.child;
    if (stdout === null || stderr === null) throw new Error('no pipes');
    createInterface(stdout).on('line', (line) => this.announced.push(JSON.parse(line)));
    createInterface(stderr).on('line', (line) => this.log.push(line));
  }

  async ready(count: number): Promise<void> {
    await within(
      Promise.race([
        this.until(() => this.announced.length === count),
        this.ended.then((code) => {
          throw new Error(`serve ended with ${code}: ${this.log.join(' | ')}`);
        }),
      ]),
      'serving',
    );
  }

  async until(holds: () => boolean | Promise<boolean>): Promise<void> {
    while (!(await holds())) await sleep(20);
  }

  says(part: string): boolean {
    return this.log.some((line) => line.includes(part));
  }

  /** Where a test has not stopped it. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.child.kill('SIGKILL');
    await this.ended;
  }

  async stop(): Promise<void> {
    this.child.kill('SIGTERM');
    const code = await within(this.ended, 'stopping');
    check(code === 0, `serve ended with ${code}: ${this.log.join(' | ')}`);
  }
}

/** Voluntary and other context switches of the threads of this process whose names match. */
async function switches(name: RegExp): Promise<number> {
  let sum = 0;
  for (const task of await readdir('/proc/self/task')) {
    const status = await readFile(`/proc/self/task/${task}/status`, 'latin1');
    if (!name.test(/^Name:\t(.*)$/m.exec(status)?.[1] ?? '')) continue;
    for (const [, count] of status.matchAll(/ctxt_switches:\t(\d+)/g)) sum += Number(count);
  }
  return sum;
}

const tests: Record<string, () => Promise<void>> = {
  'both VFs are served to legacy guests at the same time': async () => {
    await using serving = new Serving([vf1, vf2, '--socket-dir', folder]);
    await serving.ready(2);
    for (const { type, notify } of serving.announced) {
      check(type === 'net', `type ${type}`);
      check(JSON.stringify(notify).includes('"of":"member"'), JSON.stringify(notify));
    }
    const paths = serving.announced.map(({ socket: path }) => path);
    const guests = await Promise.all(paths.map((path) => traffic(path)));
    // A client leaves without a word; the next one finds the device.
    for (const guest of guests) guest.close();
    const again = await traffic(paths[0] ?? '');
    await again.stop();
    again.close();
    await serving.stop();
  },

  'the kernel forwards kicks without a wake-up of this process': async () => {
    await using host = new VfioHost({ via });
    const path = socket();
    await using service = await serveAll(host, [{ bdf: vf1, path }]);
    const [served] = service.served;
    check(served !== undefined, service.failures.map(({ error }) => error.message).join());
    const guest = await traffic(path, { ioeventfds: true });
    const { kernelDoorbells, engineDoorbells } = served.counters();
    console.log(`kernel_doorbells=${kernelDoorbells} engine_doorbells=${engineDoorbells}`);
    check(kernelDoorbells >= 2 && engineDoorbells === 0, 'not in the kernel');
    const ours = /^(vfio-user|retrovf-)/;
    // After the last answers, threads may still be on their way to sleep.
    let before = await switches(ours);
    for (let last = -1; last !== before; before = await switches(ours)) {
      last = before;
      await sleep(500);
    }
    const kicks = 10_000;
    // A thread may wake up for something else once; kicks that woke one would do so every time.
    let woken = -1;
    let measured = { count: 0, p50: 0 };
    for (let round = 0; round < 3 && woken !== 0; round += 1) {
      before = await switches(ours);
      measured = await guest.measureDoorbell(kicks);
      woken = (await switches(ours)) - before;
    }
    console.log(`kicks=${measured.count} kick_p50_ns=${measured.p50} wakeups=${woken}`);
    check(measured.count === kicks && woken === 0, `${woken} wake-ups`);
    check(served.counters().notifies === 0, 'kicks came as messages');
    check(served.counters().notifiesForwarded === 0, 'kicks came through the engine');
    const { received } = await guest.ping(gateway, 3, patience);
    check(received === 3, 'the device is not well afterwards');
    // A reset by the VMM takes the queues, not the eventfds.
    await guest.stop();
    await served.device.reset();
    await guest.enumerate();
    await guest.start();
    await guest.dhcp(patience);
    guest.close();
    await served.device.reset();
  },

  'kicks as messages need no in-kernel way': async () => {
    await using host = new VfioHost({ via });
    const path = socket();
    await using service = await serveAll(host, [{ bdf: vf1, path }]);
    const [served] = service.served;
    check(served !== undefined, 'not served');
    const guest = await traffic(path);
    const { p50 } = await guest.measureDoorbell(1000);
    console.log(`kick_by_message_p50_ns=${p50}`);
    const { notifies, kernelDoorbells } = served.counters();
    check(notifies > 1000 && kernelDoorbells === 0, JSON.stringify({ notifies, kernelDoorbells }));
    guest.close();
  },

  'the last kick of a burst arrives, by the kernel and by message, from clients that come and go':
    async () => {
      await using host = new VfioHost({ via });
      const ways = [
        { bdf: vf1, path: socket(), ioeventfds: true },
        { bdf: vf2, path: socket(), ioeventfds: false },
      ];
      await using service = await serveAll(host, ways);
      check(service.served.length === ways.length, 'not served');
      const [clients, bursts, kicks] = [4, 10, 500];
      let running = true;
      const alongside = (async () => {
        // Of the other queue: the kick that is waited for below has none to stand in for it.
        while (running) {
          for (const { device } of service.served) {
            if (device instanceof TransitionalDevice) device.notify(0);
          }
          await sleep(1);
        }
      })();
      const storm = async ({ path, ioeventfds }: (typeof ways)[number]) => {
        for (let client = 0; client < clients; client += 1) {
          const guest = await traffic(path, { ioeventfds });
          for (let burst = 0; burst < bursts; burst += 1) {
            await guest.measureDoorbell(kicks);
            const { received } = await guest.ping(gateway, 1, patience);
            check(received === 1, `burst ${burst} of client ${client}: its last kick is lost`);
          }
          guest.close();
        }
      };
      try {
        await Promise.all(ways.map(storm));
      } finally {
        running = false;
        await alongside;
      }
      console.log(`kicks_in_bursts=${ways.length * clients * bursts * (kicks + 1)}`);
      const [inKernel, byMessage] = service.served.map((served) => served.counters());
      check(inKernel?.notifies === 0 && inKernel.notifiesForwarded === 0, 'not by the kernel');
      check((byMessage?.notifies ?? 0) >= clients * bursts * kicks, 'not by message');
    },

  'VFs that are enabled after the PF is up are served too': async () => {
    await writeFile(sys(pf, 'sriov_numvfs'), '0');
    await using host = new VfioHost({ via });
    await using owner = await OwnerDevice.open(host, pf);
    await writeFile(sys(pf, 'sriov_numvfs'), String(vfs.length));
    await using device = await TransitionalDevice.open(host, vf1, { owner });
    const path = socket();
    await using _served = serve(device, { path });
    const guest = await traffic(path);
    guest.close();
  },

  'a VF is refused without the token of its PF, and a PF that is in use': async () => {
    await using host = new VfioHost({ via });
    await using owner = await OwnerDevice.open(host, pf);
    await using stranger = new VfioHost({ via });
    const code = await codeOf(TransitionalDevice.open(stranger, vf1, { owner }));
    check(code === 'ERR_VFIO_TOKEN', code);
    await using busy = new Serving([vf2, '--socket', socket()]);
    check((await busy.ended) === 6, `exit code of a busy PF: ${busy.log.join(' | ')}`);
    check(busy.says('ERR_DEVICE_BUSY'), busy.log.join(' | '));
    await using device = await TransitionalDevice.open(host, vf1, { owner });
    check(device.kind === 'transitional', device.kind);
  },

  'a function on another driver, and one that does not exist, are refused': async () => {
    await writeFile(driver('unbind'), vf2);
    await using unbound = new Serving([vf2, '--socket', socket()]);
    const code = await unbound.ended;
    await writeFile(driver('bind'), vf2);
    check(code === 4 && unbound.says('ERR_VFIO_NOT_BOUND'), `${code} ${unbound.log.join(' | ')}`);
    check(unbound.says(`echo ${vf2} >`), `no command that mends it: ${unbound.log.join(' | ')}`);
    await using missing = new Serving(['0000:7f:00.1', '--socket', socket()]);
    check((await missing.ended) === 3, missing.log.join(' | '));
  },

  'a user without rights is refused, and with the nodes is bound by its limit': async () => {
    const nobody = 65534;
    await chown(folder, nobody, nobody);
    const as = (path: string) => new Serving([vf1, '--socket', path], nobody);
    await using refused = as(socket());
    check((await refused.ended) === 5, `refused: ${refused.log.join(' | ')}`);
    check(refused.says('ERR_VFIO_PERMISSION'), refused.log.join(' | '));
    const nodes = (await Promise.all([pf, vf1].map(nodesOf))).flat();
    for (const node of nodes) await chown(node, nobody, nobody);
    const path = socket();
    await using serving = as(path);
    await serving.ready(1);
    // Its memory is 1 MiB.
    const code = await codeOf(connectGuest(path));
    check(code === 'ERR_VFIO_USER_REFUSED', code);
    await within(
      serving.until(() => serving.says('ERR_DMA_LOCKED')),
      'the complaint',
    );
    for (const node of nodes) await chown(node, 0, 0);
    await serving.stop();
  },

  'guest memory without a file is refused and the operator told why': async () => {
    await using serving = new Serving([vf1, '--socket', socket()]);
    await serving.ready(1);
    const path = serving.announced[0]?.socket ?? '';
    const code = await codeOf(connectGuest(path, { sharedMemory: false }));
    check(code === 'ERR_VFIO_USER_REFUSED', code);
    await within(
      serving.until(() => serving.says('ERR_DMA_NOT_SHARED')),
      'the complaint',
    );
    const guest = await traffic(path);
    guest.close();
    await serving.stop();
  },

  'a VF that the host unbinds is given back while the other goes on': async () => {
    await using serving = new Serving([vf1, vf2, '--socket-dir', folder]);
    await serving.ready(2);
    const [first, second] = serving.announced.map(({ socket: path }) => path);
    const guest = await traffic(first ?? '');
    const doomed = await traffic(second ?? '');
    const began = performance.now();
    await within(writeFile(driver('unbind'), vf2), 'unbinding');
    console.log(`unbind_ms=${Math.round(performance.now() - began)}`);
    check(serving.says('the host wants its function back'), serving.log.join(' | '));
    doomed.close();
    check((await codeOf(connectGuest(second ?? ''))) === 'ERR_VFIO_USER_CONNECT', 'still served');
    const { received } = await guest.ping(gateway, 3, patience);
    check(received === 3, 'the other VF is disturbed');
    guest.close();
    await writeFile(driver('bind'), vf2);
    await serving.stop();
  },

  'a PF whose VFs are disabled gives them back, and serves them when they return': async () => {
    await using host = new VfioHost({ via });
    const path = socket();
    await using service: Service = await serveAll(host, [{ bdf: vf1, path }]);
    const guest = await traffic(path);
    await within(writeFile(sys(pf, 'sriov_numvfs'), '0'), 'disabling the VFs');
    check(service.served.length === 0, 'still served');
    check(service.owners[0]?.state.kind === 'ready', 'the owner is lost');
    guest.close();
    await writeFile(sys(pf, 'sriov_numvfs'), String(vfs.length));
    const again = socket();
    await service.add({ bdf: vf1, path: again });
    check(service.failures.length === 0, service.failures.map(({ error }) => error.message).join());
    const next = await traffic(again);
    next.close();
  },

  'a server that is killed leaves nothing behind that keeps the next from serving': async () => {
    const args = [vf1, '--socket', socket()];
    await using killed = new Serving(args);
    await killed.ready(1);
    const path = killed.announced[0]?.socket ?? '';
    const guest = await traffic(path);
    killed.child.kill('SIGKILL');
    await killed.ended;
    check((await codeOf(guest.ping(gateway, 1, 1000))) !== 'none', 'a dead server answers');
    guest.close();
    await using next = new Serving(args);
    await next.ready(1);
    const again = await traffic(path);
    again.close();
    await next.stop();
  },

  'a PF that is reset under our feet is brought up again, and its VFs serve the next guest':
    async () => {
      await using serving = new Serving([vf1, '--socket', socket()]);
      await serving.ready(1);
      const path = serving.announced[0]?.socket ?? '';
      const guest = await traffic(path);
      const ups = () => serving.log.filter((line) => line.includes('Owner device is up')).length;
      check(ups() === 1, serving.log.join(' | '));
      await within(writeFile(sys(pf, 'reset'), '1'), 'resetting the PF');
      await within(
        serving.until(() => ups() > 1),
        'bringing the PF up again',
      ).catch((error: unknown) => {
        throw new Error(`${String(error)}: ${serving.log.join(' | ')}`);
      });
      check(serving.says('Device is degraded'), serving.log.join(' | '));
      // The VF was reset with its PF: whoever drove it has to start again.
      guest.close();
      const next = await traffic(path);
      next.close();
      await serving.stop();
    },

  'a PF that the host unbinds is given back with its VFs': async () => {
    await using serving = new Serving([vf1, vf2, '--socket-dir', folder]);
    await serving.ready(2);
    const guest = await traffic(serving.announced[0]?.socket ?? '');
    await within(writeFile(driver('unbind'), pf), 'unbinding the PF');
    guest.close();
    await within(
      serving.until(async () => !(await readdir(folder)).includes(`${vf1}.sock`)),
      'closing the sockets',
    );
    await serving.stop();
    await writeFile(driver('bind'), pf);
    await writeFile(sys(pf, 'sriov_numvfs'), String(vfs.length));
  },
};

let failed = false;
const only = process.argv[2];
for (const [name, run] of Object.entries(tests)) {
  if (only !== undefined && !name.includes(only)) continue;
  try {
    await run();
    console.log(`ok ${name}`);
  } catch (error) {
    failed = true;
    console.log(`not ok ${name}: ${error instanceof Error ? error.stack : String(error)}`);
  }
}
process.exit(failed ? 1 : 0);
