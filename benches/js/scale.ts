// Does a device cost more beside others? Processes with 1, 8, 64 and 512 devices live at the same time;
// one client holds the doorbells of all, and kicks one device of each in turn.

import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import type { Memory } from './memory.js';
import type { Answer, Question } from './scale-server.js';
import type { Path } from './series.js';

/** One process, idle, with a client at each device. */
export interface Scale {
  readonly devices: number;
  /** What a device has added to the process, the VF itself apart; null where too few to tell. */
  readonly memory_bytes_per_device: number | null;
  /** Parts of that. */
  readonly heap_bytes_per_device: number | null;
  readonly stack_bytes_per_device: number | null;
  /** Beside it, in the kernel. */
  readonly page_table_bytes_per_device: number | null;
  readonly threads_per_device: number;
  /** Of one CPU, by the whole process. */
  readonly idle_cpu_percent: number;
  readonly open_ms_per_device: number;
}

const counts = [1, 8, 64, 512];
/** What a smoke test has time for. */
const fewDevices = 64;
/** The memory of fewer is lost in what else a process does, a MiB or two. */
const enough = 64;
/** The client has the other. */
const cpu = '1';
const script = fileURLToPath(new URL('scale-server.js', import.meta.url));

export async function scalePaths(quick: boolean): Promise<{ paths: Path[]; scale: Scale[] }> {
  const program = process.env['RETROVF_BENCH'];
  if (program === undefined) throw new Error('Run benches/bench.ts: it names the client');
  const folder = await mkdtemp('/dev/shm/retrovf-bench-');
  const children: ChildProcess[] = [];
  try {
    const servers = counts
      .filter((devices) => !quick || devices <= fewDevices)
      .map((devices) => new Server(devices, join(folder, String(devices))));
    for (const server of servers) {
      children.push(await server.start());
      await server.serving();
    }
    const where = servers.map(({ devices, place }) => `${devices}:${place}`);
    const client = spawn(program, [...(quick ? ['--quick'] : []), ...where], {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    children.push(client);
    const lines = createInterface(client.stdout)[Symbol.asyncIterator]();
    await lines.next();
    const idleMs = quick ? 2_000 : 10_000;
    const scale = await Promise.all(servers.map((server) => server.measure(idleMs)));
    client.stdin.end('\n');
    const { value } = await lines.next();
    const { paths } = JSON.parse(value ?? '') as { paths: Path[] };
    return { paths, scale };
  } finally {
    for (const child of children) child.kill('SIGKILL');
    await rm(folder, { recursive: true, force: true });
  }
}

class Server {
  readonly devices: number;
  readonly place: string;
  #child: ChildProcess | undefined;
  #openMs = 0;

  constructor(devices: number, place: string) {
    this.devices = devices;
    this.place = place;
  }

  async start(): Promise<ChildProcess> {
    await mkdir(this.place);
    const node = [process.execPath, '--expose-gc', script, String(this.devices), this.place];
    this.#child = spawn('taskset', ['-c', cpu, ...node], {
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    });
    return this.#child;
  }

  async serving(): Promise<void> {
    ({ openMs: this.#openMs } = await this.#answer('serving'));
  }

  async measure(idleMs: number): Promise<Scale> {
    this.#child?.send({ idleMs } satisfies Question);
    const { before, after, idleShare } = await this.#answer('measured');
    const each = (part: keyof Memory) =>
      this.devices < enough ? null : (after[part] - before[part]) / this.devices;
    return {
      devices: this.devices,
      memory_bytes_per_device: each('resident'),
      heap_bytes_per_device: each('heap'),
      stack_bytes_per_device: each('stacks'),
      page_table_bytes_per_device: each('tables'),
      threads_per_device: (after.threads - before.threads) / this.devices,
      idle_cpu_percent: 100 * idleShare,
      open_ms_per_device: this.#openMs / this.devices,
    };
  }

  async #answer<K extends Answer['kind']>(kind: K): Promise<Extract<Answer, { kind: K }>> {
    const child = this.#child as ChildProcess;
    const [answer] = (await Promise.race([
      once(child, 'message'),
      once(child, 'exit').then(() => [null]),
    ])) as [Answer | null];
    if (answer?.kind === kind) return answer as Extract<Answer, { kind: K }>;
    throw new Error(`The server of ${this.devices} devices said ${answer?.kind ?? 'nothing'}`);
  }
}
