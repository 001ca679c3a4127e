import { tearDown } from '../../index.js';
import { defineCommand } from '../command.js';
import { changeHost, hostChangeOptions } from '../host-change.js';

export const teardownCommand = defineCommand({
  name: 'teardown',
  summary: 'Undo a setup: remove the VFs of a PF and give it back to its usual driver',
  operands: 'PF',
  details: [
    'Goes by what the kernel says, so that it also ends a setup that was killed half-way. A PF that is ' +
      'bound to another driver than vfio-pci keeps it, and its VFs. vfio-pci stays loaded.',
    'The steps are shown on stderr as they are done; with --dry-run, on stdout as a shell script.',
  ],
  options: hostChangeOptions,
  examples: [{ command: 'retrovf teardown 5e:00.0', does: 'As root: give the PF back' }],
  run(values, operands, context) {
    return changeHost('teardown', values, operands, context, tearDown);
  },
});
