import { examineHost, parseBdf, Sysfs, thisMachine } from '../../index.js';
import { defineCommand } from '../command.js';
import { exitCode } from '../exit-codes.js';
import { writeExamination } from '../output/examination.js';
import { jsonLine } from '../output/json.js';

export const doctorCommand = defineCommand({
  name: 'doctor',
  summary: 'Show what this host lacks for serving VFs, and the commands that mend it',
  operands: '[BDF...]',
  details: [
    'Examines the host and the functions named, or all virtio PFs and VFs. Nothing is changed. ' +
      'The commands shown are to be run as root.',
    'The exit code is 4 if a check failed.',
  ],
  options: {
    'guest-memory': {
      kind: 'number',
      value: 'MIB',
      min: 1,
      max: 1 << 26,
      summary: 'Memory of the guests that one process is to serve (default 1024)',
    },
    sysfs: { kind: 'text', value: 'ROOT', summary: 'Read this folder instead of /sys' },
  },
  examples: [
    { command: 'retrovf doctor', does: 'This host and all its virtio functions' },
    { command: 'retrovf doctor 5e:00.0 --guest-memory 8192', does: 'One PF, for guests of 8 GiB' },
    {
      command: `retrovf doctor --json | jq -r '.checks[] | select(.state == "fail") | .mend[]'`,
      does: 'What would have to be run',
    },
  ],
  async run({ 'guest-memory': memory, sysfs }, operands, { stdout, json, signal }) {
    const examination = await examineHost({
      bdfs: operands.map(parseBdf),
      ...(memory !== undefined && { guestMemoryMiB: memory }),
      ...(sysfs !== undefined && { machine: thisMachine({ sysfs: new Sysfs(sysfs) }) }),
      signal,
    });
    if (json) stdout.write(jsonLine(examination));
    else writeExamination(examination, stdout);
    return examination.ok ? exitCode.done : exitCode.precondition;
  },
});
