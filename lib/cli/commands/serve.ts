import {
  parseBdf,
  parseMetricsAddress,
  serveAll,
  serveMetrics,
  startDoorbell,
  SoftNicHost,
  VfioHost,
  type Host,
  type Service,
  type Uplink,
} from '../../index.js';
import { delay } from '../../wait.js';
import type { Context } from '../context.js';
import { defineCommand, type Values } from '../command.js';
import { exitCode } from '../exit-codes.js';
import { writeFailure } from '../failure.js';
import { jsonLine } from '../output/json.js';
import { announce, announcementLines } from '../serve/announcement.js';
import { keepUp } from '../serve/recovery.js';
import { checkSocketChoice, prepareFolders, socketPaths } from '../serve/sockets.js';
import { parseUplink, refuseWithoutSoftnic, softnicOptions } from '../softnic-options.js';
import { UsageError } from '../usage-error.js';

const options = {
  ...softnicOptions,
  'queue-pairs': {
    kind: 'number',
    value: 'N',
    min: 1,
    max: 16,
    summary: 'Queue pairs of each SoftNIC function (default 1)',
  },
  msix: {
    kind: 'number',
    value: 'N',
    min: 0,
    max: 64,
    summary: 'MSI-X vectors of each SoftNIC VF, 0 for none (default 2 for each queue pair, and 2)',
  },
  uplink: {
    kind: 'text',
    value: 'UPLINK',
    summary:
      'Where the SoftNIC leads: gateway (a host with DHCP and ping, the default), none, unix:PATH, tap:NAME',
  },
  via: {
    kind: 'choice',
    value: 'WAY',
    choices: ['auto', 'group', 'cdev'],
    summary:
      'How functions are opened: by IOMMU group, or by their own node with iommufd (cdev); auto (the default): the latter where the kernel has it',
  },
  'vf-token': {
    kind: 'text',
    value: 'UUID',
    summary: 'Token to set on the PF and give for its VFs (default random)',
  },
  socket: { kind: 'text', value: 'PATH', summary: 'Socket of the only device' },
  'socket-dir': {
    kind: 'text',
    value: 'DIR',
    summary: 'Folder of the sockets, each named BDF.sock; made with mode 0750 if missing',
  },
  metrics: {
    kind: 'text',
    value: 'ADDRESS',
    summary: 'Answer GET /metrics (Prometheus text) there: HOST:PORT or unix:PATH',
  },
  spin: {
    kind: 'number',
    value: 'US',
    min: 0,
    max: 1_000_000,
    summary:
      'After a request or kick, look so many microseconds for the next one before sleeping (default 0)',
  },
  'doorbell-cpu': {
    kind: 'number',
    value: 'N',
    min: 0,
    max: 1023,
    summary: 'Only CPU of the thread that takes kicks by eventfd; with it the thread never sleeps',
  },
  presentation: {
    kind: 'choice',
    value: 'KIND',
    choices: ['transitional', 'legacy'],
    summary:
      'transitional: modern drivers see the modern device too (default); legacy: they do not',
  },
} as const;

export const serveCommand = defineCommand({
  name: 'serve',
  summary: 'Serve VFs to virtual machines over vfio-user sockets',
  operands: '(BDF... | --softnic)',
  logLevel: 'info',
  details: [
    'Prints one line of JSON on stdout for each device once its socket accepts a client, and the ' +
      'QEMU arguments to attach it on stderr. Runs until SIGTERM or SIGINT, then closes everything, ' +
      'removes its sockets and exits with 0; a second signal ends it at once.',
    'A VF that cannot be transitional is passed through as it is, with the reason. A device that ' +
      'fails does not keep the others from being served. An owner (PF) that fails is brought up again.',
    'A function of this host must be bound to vfio-pci, VF and PF both; opening the PF resets it and all ' +
      'of its VFs. When the host wants a function back (unbinding, unplugging) its socket and device ' +
      'are closed, and the others go on.',
    'QEMU needs version 10.1 or later, and guest memory that is shared (memory-backend-memfd).',
  ],
  options,
  examples: [
    {
      command: 'retrovf serve --softnic --socket /tmp/nic.sock',
      does: 'A NIC in software, for a first try',
    },
    {
      command: 'retrovf serve --softnic --vfs 2 --uplink tap:tap0 --socket-dir /run/retrovf',
      does: 'Two NICs on a switch that leads to a tap interface',
    },
    {
      command: 'retrovf serve 5e:00.1 --presentation legacy --socket /run/retrovf/a.sock',
      does: 'A VF of this host, for guests that must take the legacy driver',
    },
  ],
  async run(values, operands, context) {
    const bdfs = operands.map(parseBdf);
    const uplink = check(values, bdfs);
    try {
      await using host: Host & AsyncDisposable = values.softnic
        ? await SoftNicHost.create({
            vfs: values.vfs ?? 1,
            uplink,
            ...(values['queue-pairs'] && { queuePairs: values['queue-pairs'] }),
            ...(values.msix !== undefined && { msixVectors: values.msix }),
          })
        : new VfioHost({
            via: values.via ?? 'auto',
            ...(values['vf-token'] && { vfToken: values['vf-token'] }),
          });
      const chosen = host instanceof SoftNicHost ? host.members() : bdfs;
      const paths = socketPaths(chosen, values);
      await prepareFolders(paths, values);
      const presentation = values.presentation ?? 'transitional';
      const entries = chosen.map((bdf, i) => ({ bdf, path: paths[i] ?? '', presentation }));
      startDoorbellAsAsked(values);
      await using service = await serveAll(host, entries, {
        signal: context.signal,
        spinMicros: values.spin ?? 0,
      });
      await using _metrics = await metricsOf(service, values.metrics);
      await attend(service, context);
    } catch (error) {
      // Ending when asked to is what a service is for, whatever it was doing then.
      if (!context.signal.aborted || error !== context.signal.reason) throw error;
    }
    return exitCode.done;
  },
});

function check(values: Values<typeof options>, bdfs: readonly string[]): Uplink {
  const devices = values.softnic ? (values.vfs ?? 1) : bdfs.length;
  if (!values.softnic) {
    refuseWithoutSoftnic('serve', values, ['vfs', 'queue-pairs', 'msix', 'uplink']);
    if (devices === 0) throw new UsageError('Give the VFs to serve, or --softnic', 'serve');
  } else if (bdfs.length > 0) {
    throw new UsageError('--softnic serves its own VFs: give no BDF', 'serve');
  } else {
    const stray = (['via', 'vf-token'] as const).find((name) => values[name] !== undefined);
    if (stray !== undefined) throw new UsageError(`--${stray} is not for --softnic`, 'serve');
  }
  if (new Set(bdfs).size < bdfs.length) throw new UsageError('A BDF is given twice', 'serve');
  checkSocketChoice(devices, values);
  if (values.metrics !== undefined) parseMetricsAddress(values.metrics);
  return parseUplink('serve', values.uplink ?? 'gateway');
}

function startDoorbellAsAsked({ spin = 0, 'doorbell-cpu': cpu }: Values<typeof options>): void {
  if (cpu !== undefined) startDoorbell({ mode: 'busy', cpu });
  else if (spin > 0) startDoorbell({ mode: 'adaptive', spinMicros: spin });
}

async function metricsOf(
  service: Service,
  address: string | undefined,
): Promise<AsyncDisposable | null> {
  if (address === undefined) return null;
  const source = () => ({
    devices: service.served.map(({ device }) => device),
    owners: service.owners,
  });
  const server = await serveMetrics(source, parseMetricsAddress(address));
  return {
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

/** Announces what is served and waits for the signal, which it throws. */
async function attend(service: Service, context: Context): Promise<never> {
  const { stdout, stderr, json, signal } = context;
  const [first, ...others] = service.failures;
  if (first !== undefined && service.served.length === 0) {
    for (const { error } of others) writeFailure(error, stderr, json);
    throw first.error;
  }
  for (const { error } of service.failures) writeFailure(error, stderr, json);
  keepUp(service.owners, signal);
  for (const served of service.served) {
    const announcement = await announce(served, signal);
    stdout.write(jsonLine(announcement));
    if (!json) stderr.write(announcementLines(announcement, stderr.styles).join('\n') + '\n');
  }
  // Also keeps the process alive, which handles of native threads need not do.
  for (;;) await delay(2 ** 30, signal);
}
