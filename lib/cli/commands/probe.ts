import {
  parseBdf,
  probe,
  SoftNicHost,
  Sysfs,
  VfioHost,
  type Host,
  type ProbeReport,
} from '../../index.js';
import { defineCommand } from '../command.js';
import { exitCode } from '../exit-codes.js';
import { jsonLine } from '../output/json.js';
import { writeProbeReport } from '../output/probe-report.js';
import { refuseWithoutSoftnic, softnicOptions } from '../softnic-options.js';
import { UsageError } from '../usage-error.js';

export const probeCommand = defineCommand({
  name: 'probe',
  summary: 'Show which functions can serve legacy guests, and why the others can not',
  operands: '[BDF...]',
  details: [
    'Reads sysfs and reports on the functions named, or on all virtio functions. Nothing is changed.',
    'With --open each owner (PF) is opened and asked for its admin commands. That resets the PF and ' +
      'with it all of its VFs: do not use it on a PF that is at work.',
  ],
  options: {
    ...softnicOptions,
    open: { kind: 'flag', summary: 'Open the owners and ask them; resets them and their VFs' },
    sysfs: { kind: 'text', value: 'ROOT', summary: 'Read this folder instead of /sys' },
  },
  examples: [
    { command: 'retrovf probe', does: 'All virtio functions of this host' },
    { command: 'retrovf probe 5e:00.1 --json', does: 'One function, for a program' },
    { command: 'retrovf probe --softnic --vfs 4 --open', does: 'Try it without hardware' },
  ],
  async run(values, operands, { stdout, stderr, json, signal }) {
    if (!values.softnic) refuseWithoutSoftnic('probe', values, ['vfs']);
    if (values.softnic && values.sysfs !== undefined) {
      throw new UsageError('--sysfs and --softnic exclude each other', 'probe');
    }
    const bdfs = operands.map(parseBdf);
    await using host: Host & AsyncDisposable = values.softnic
      ? await SoftNicHost.create({ vfs: values.vfs ?? 1 })
      : new VfioHost({ sysfs: new Sysfs(values.sysfs) });
    const report = await probeAll(host, bdfs, { open: values.open, signal });
    if (json) stdout.write(jsonLine(report));
    else writeProbeReport(report, stdout, stderr);
    return exitCode.done;
  },
});

async function probeAll(
  host: Host,
  bdfs: readonly string[],
  options: { open: boolean; signal: AbortSignal },
): Promise<ProbeReport> {
  if (bdfs.length === 0) return probe(host, options);
  const reports: ProbeReport[] = [];
  for (const bdf of new Set(bdfs)) reports.push(await probe(host, { ...options, bdf }));
  return {
    functions: reports.flatMap(({ functions }) => functions),
    findings: reports.flatMap(({ findings }) => findings),
  };
}
