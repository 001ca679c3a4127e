// What the kernel means by the errors with which it refuses a step.

import { messageOf } from '../errors.js';
import type { Step } from './steps.js';

interface Reason {
  readonly why: string;
  /** undefined: that of the code. */
  readonly hint?: string | undefined;
}

const root: Reason = {
  why: 'this process is not permitted to',
  hint: 'Run it as root; in a container, with /sys writable.',
};

const vfioPciLog = 'The kernel log (dmesg) has the reason of the driver.';

/** By kind of step and errno. */
const reasons: { readonly [kind in Step['kind']]?: { readonly [errno: string]: Reason } } = {
  'set-vfs': {
    ENOENT: {
      why: 'the driver of the PF does not make VFs',
      hint: 'vfio-pci does if its parameter enable_sriov is Y; an unbound PF does not.',
    },
    EBUSY: {
      why: 'another number of VFs is enabled',
      hint: 'Another program may be changing them; try again.',
    },
    ERANGE: { why: 'the PF does not have so many' },
    ENOMEM: {
      why: 'the host has no room for the BARs or bus numbers of the VFs',
      hint: 'Enable SR-IOV in the firmware of the host, or boot with pci=realloc.',
    },
    EINVAL: {
      why: 'the PF cannot enable them',
      hint: 'Enable SR-IOV in the firmware of the host, or boot with pci=realloc.',
    },
  },
  probe: {
    EINVAL: {
      why: 'the driver does not take it',
      hint: `vfio-pci takes functions in an IOMMU group only. ${vfioPciLog}`,
    },
    EBUSY: {
      why: 'the driver does not take it',
      hint: `vfio-pci takes no PF that has VFs. ${vfioPciLog}`,
    },
    ENODEV: { why: 'no driver takes it', hint: vfioPciLog },
    ENOEFFECT: { why: 'the driver did not take it', hint: vfioPciLog },
  },
  bind: { ENODEV: { why: 'the driver does not take it', hint: vfioPciLog } },
  unbind: { ENODEV: { why: 'it was unbound by something else', hint: 'Try again.' } },
  'load-module': {
    '': {
      why: 'modprobe failed',
      hint: 'Install the modules of the running kernel; on Ubuntu they are in linux-modules-extra.',
    },
  },
};

export function reasonOf(step: Step, error: unknown): Reason {
  const code = String((error as { code?: unknown } | null)?.code ?? '');
  if (code === 'EACCES' || code === 'EPERM' || code === 'EROFS') return root;
  const known = reasons[step.kind]?.[code];
  return known ?? { why: messageOf(error) };
}
