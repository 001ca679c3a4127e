// What devices and owners have counted, as Prometheus text (exposition format 0.0.4). Reading the
// counters stops nothing: they are atomics, or belong to this thread. No label is taken from a guest.

import { createServer, type Server } from 'node:http';
import { badArgument } from '../errors.js';
import type { NativeHistogram } from '../native.js';
import type { OwnerDevice } from '../owner-device.js';
import type { Device } from '../passthrough-device.js';

/** What to report on; a `Service` is one once its `served` are mapped to their devices. */
export interface MetricsSource {
  readonly devices: readonly Device[];
  readonly owners: readonly OwnerDevice[];
}

type Labels = Readonly<Record<string, string>>;
type Sample = readonly [labels: Labels, value: number];

/** The metrics of devices and owners at this moment; closed ones are left out. */
export function metrics({ devices, owners }: MetricsSource): string {
  const open = devices.flatMap((device) => {
    const stats = statsOf<ReturnType<Device['stats']>>(device);
    return stats === null ? [] : [{ bdf: device.bdf, stats }];
  });
  const served = open.map(({ bdf, stats }) => ({ bdf, ...stats.served }));
  const transitional = open.flatMap(({ bdf, stats }) =>
    stats.kind === 'transitional' ? [{ bdf, kicks: stats.kicks, ...stats.accesses }] : [],
  );
  const queues = owners.flatMap((owner) => {
    const stats = owner.state.kind === 'ready' ? statsOf(owner) : null;
    return stats === null ? [] : [{ bdf: owner.bdf, ...stats }];
  });
  const lines: string[] = [];
  const family = (name: string, type: string, help: string, samples: readonly Sample[]): void => {
    if (samples.length === 0) return;
    lines.push(`# HELP retrovf_${name} ${help}`, `# TYPE retrovf_${name} ${type}`);
    for (const [labels, value] of samples) lines.push(`retrovf_${name}${braces(labels)} ${value}`);
  };
  const counter = (name: string, help: string, samples: readonly Sample[]): void =>
    family(name, 'counter', help, samples);
  const gauge = (name: string, help: string, samples: readonly Sample[]): void =>
    family(name, 'gauge', help, samples);
  const histogram = (
    name: string,
    help: string,
    all: readonly (readonly [Labels, NativeHistogram])[],
  ): void => {
    if (all.length === 0) return;
    lines.push(`# HELP retrovf_${name} ${help}`, `# TYPE retrovf_${name} histogram`);
    for (const [labels, values] of all) lines.push(...histogramLines(name, labels, values));
  };

  gauge(
    'device_info',
    'Open devices; always 1.',
    open.map(({ bdf, stats }) => [{ bdf, kind: stats.kind }, 1]),
  );
  counter(
    'kicks_total',
    'Queue notifications, by the way they came. What the kernel forwards is not seen here.',
    [
      ...served.flatMap(({ bdf, notifies, notifiesForwarded }): Sample[] => [
        [{ bdf, path: 'message' }, notifies],
        [{ bdf, path: 'eventfd' }, notifiesForwarded],
      ]),
      ...transitional.map(({ bdf, kicks }): Sample => [{ bdf, path: 'call' }, kicks]),
    ],
  );
  gauge(
    'doorbells',
    'Queues of the present client that ring by eventfd, by who forwards them.',
    served.flatMap(({ bdf, kernelDoorbells, engineDoorbells }) => [
      [{ bdf, by: 'kernel' }, kernelDoorbells],
      [{ bdf, by: 'engine' }, engineDoorbells],
    ]),
  );
  counter(
    'control_accesses_total',
    'Accesses of clients to the legacy registers.',
    served.flatMap(({ bdf, controlReads, controlWrites }) => [
      [{ bdf, kind: 'read' }, controlReads],
      [{ bdf, kind: 'write' }, controlWrites],
    ]),
  );
  histogram(
    'control_access_seconds',
    'From an access to the legacy registers to its answer.',
    served.map(({ bdf, controlLatency }) => [{ bdf }, controlLatency]),
  );
  counter(
    'gated_accesses_total',
    'Accesses while the guest had I/O space disabled.',
    served.map(({ bdf, gatedAccesses }) => [{ bdf }, gatedAccesses]),
  );
  counter(
    'timed_out_accesses_total',
    'Accesses that were answered at their deadline, with all ones.',
    served.map(({ bdf, timedOutAccesses }) => [{ bdf }, timedOutAccesses]),
  );
  counter(
    'failed_registers_total',
    'Registers that the owner could not read or write.',
    transitional.map(({ bdf, failed }) => [{ bdf }, failed]),
  );
  counter(
    'protocol_errors_total',
    'Messages that broke the vfio-user protocol.',
    served.map(({ bdf, protocolErrors }) => [{ bdf }, protocolErrors]),
  );
  counter(
    'sessions_total',
    'Clients that have connected.',
    served.map(({ bdf, sessions }) => [{ bdf }, sessions]),
  );
  gauge(
    'owner_ready',
    '1 if the owner device takes commands.',
    owners.map(({ bdf, state }) => [{ bdf }, state.kind === 'ready' ? 1 : 0]),
  );
  counter(
    'admin_commands_total',
    'Admin commands since the owner came up, by what became of them.',
    queues.flatMap(({ bdf, completed, timedOut }) => [
      [{ bdf, result: 'completed' }, completed],
      [{ bdf, result: 'timed-out' }, timedOut],
    ]),
  );
  gauge(
    'admin_commands_in_flight',
    'Admin commands that the owner has not completed.',
    queues.map(({ bdf, inFlight }) => [{ bdf }, inFlight]),
  );
  histogram(
    'admin_command_seconds',
    'From giving an admin command to the device to its completion.',
    queues.map(({ bdf, latency }) => [{ bdf }, latency]),
  );
  return `${lines.join('\n')}\n`;
}

/** Closed between the list and the look: nothing to report. */
function statsOf<T>(device: { stats(): T }): T | null {
  try {
    return device.stats();
  } catch {
    return null;
  }
}

const second = 1e9;
/** Upper bounds in ns: 1, 2 and 5 of each power of ten from a microsecond to a second. */
const bounds = [1e3, 1e4, 1e5, 1e6, 1e7, 1e8]
  .flatMap((power) => [power, 2 * power, 5 * power])
  .concat(second);

function histogramLines(name: string, labels: Labels, values: NativeHistogram): string[] {
  // A bucket that straddles a bound counts above it: it may be 1/32 too high, never too low.
  const upTo = (bound: number) =>
    values.buckets.reduce((sum, { ns, count }) => (ns <= bound ? sum + count : sum), 0);
  const bucket = (le: string, count: number) =>
    `retrovf_${name}_bucket${braces({ ...labels, le })} ${count}`;
  return [
    ...bounds.map((bound) => bucket(String(bound / second), upTo(bound))),
    bucket('+Inf', values.count),
    `retrovf_${name}_sum${braces(labels)} ${values.sum / second}`,
    `retrovf_${name}_count${braces(labels)} ${values.count}`,
  ];
}

/** Values are PCI addresses and words of ours: nothing to escape. */
function braces(labels: Labels): string {
  const pairs = Object.entries(labels).map(([name, value]) => `${name}="${value}"`);
  return `{${pairs.join(',')}}`;
}

export type MetricsAddress =
  | { readonly path: string }
  | { readonly host: string; readonly port: number };

/** Understands `unix:PATH` and `HOST:PORT`, with an IPv6 host in brackets. */
export function parseMetricsAddress(text: string): MetricsAddress {
  const [, path] = /^unix:(\/.+)$/.exec(text) ?? [];
  if (path !== undefined) return { path };
  const [, six, four, digits] = /^(?:\[([^\]]+)\]|([^:]+)):(\d{1,5})$/.exec(text) ?? [];
  const host = six ?? four;
  const port = Number(digits);
  if (host !== undefined && port <= 65_535) return { host, port };
  throw badArgument('metrics address', text, 'unix:/PATH or HOST:PORT');
}

/**
 * Answers GET /metrics over HTTP. Resolves when it listens; rejects with the error of the system if
 * it cannot. Close it like any server.
 */
export function serveMetrics(source: () => MetricsSource, at: MetricsAddress): Promise<Server> {
  const server = createServer((request, response) => {
    const found = request.url?.split('?', 1)[0] === '/metrics';
    if (!found || (request.method !== 'GET' && request.method !== 'HEAD')) {
      response.writeHead(found ? 405 : 404).end();
      return;
    }
    response.writeHead(200, { 'content-type': 'text/plain; version=0.0.4; charset=utf-8' });
    response.end(request.method === 'HEAD' ? undefined : metrics(source()));
  });
  // A scraper that dawdles or is many must not cost descriptors that guests need.
  server.maxConnections = 16;
  server.requestTimeout = 10_000;
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(at, () => {
      server.off('error', reject);
      resolve(server);
    });
  });
}
