import { setUp } from '../../index.js';
import { defineCommand } from '../command.js';
import { changeHost, hostChangeOptions } from '../host-change.js';
import { UsageError } from '../usage-error.js';

export const setupCommand = defineCommand({
  name: 'setup',
  summary: 'Bind a PF to vfio-pci and make its VFs, bound to vfio-pci too',
  operands: 'PF',
  details: [
    'Loads vfio-pci, allows it to make VFs, binds the PF to it, makes the VFs and binds them. What is so ' +
      'already is left alone: run again, it changes nothing. If the PF has another number of VFs, they ' +
      'are removed first. If a step fails or a signal comes, the steps before it are taken back.',
    'The steps are shown on stderr as they are done; with --dry-run, on stdout as a shell script.',
    'A PF that carries a network interface in use needs --yes. A PF or VF that a process holds open, or ' +
      'with a disk that is mounted, is not taken away.',
  ],
  options: {
    vfs: {
      kind: 'number',
      value: 'N',
      min: 1,
      max: 65535,
      summary: 'VFs to make; needed',
    },
    ...hostChangeOptions,
  },
  examples: [
    { command: 'retrovf setup 5e:00.0 --vfs 4 --dry-run', does: 'Look first' },
    { command: 'retrovf setup 5e:00.0 --vfs 4', does: 'As root: do it' },
  ],
  run(values, operands, context) {
    const { vfs } = values;
    if (vfs === undefined) throw new UsageError('setup needs --vfs N', 'setup');
    return changeHost('setup', values, operands, context, (pf, options) =>
      setUp(pf, { ...options, vfs }),
    );
  },
});
