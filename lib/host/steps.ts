// The steps of which setting up and tearing down consist: what each does, as a sentence and as a shell
// command, and which step takes it back.

import type { Bdf } from './bdf.js';
import { vfioPci, vfioPciModule } from './pf-state.js';

/** A PF, or one of its VFs by number from 1: a VF has no known address before it is made. */
export interface Target {
  readonly pf: Bdf;
  readonly vf: number | null;
}

export type Step =
  | { readonly kind: 'load-module' | 'unload-module' }
  | { readonly kind: 'allow-sriov'; readonly allow: boolean }
  | { readonly kind: 'set-vfs'; readonly pf: Bdf; readonly count: number; readonly was: number }
  | { readonly kind: 'set-autoprobe'; readonly pf: Bdf; readonly on: boolean }
  | { readonly kind: 'unbind' | 'bind'; readonly fn: Target; readonly driver: string }
  | {
      readonly kind: 'override';
      readonly fn: Target;
      readonly driver: string | null;
      readonly was: string | null;
    }
  /** `driver` null: whichever the kernel finds, or none. */
  | { readonly kind: 'probe'; readonly fn: Target; readonly driver: string | null };

/** The folder of a function, below the root of sysfs. */
export function folderOf({ pf, vf }: Target): string {
  const folder = `bus/pci/devices/${pf}`;
  return vf === null ? folder : `${folder}/virtfn${vf - 1}`;
}

/** The file that a step writes, below the root of sysfs; null for those that load a module. */
export function fileOf(step: Step): string | null {
  switch (step.kind) {
    case 'load-module':
    case 'unload-module':
      return null;
    case 'allow-sriov':
      return `${vfioPciModule}/parameters/enable_sriov`;
    case 'set-vfs':
      return `bus/pci/devices/${step.pf}/sriov_numvfs`;
    case 'set-autoprobe':
      return `bus/pci/devices/${step.pf}/sriov_drivers_autoprobe`;
    case 'unbind':
      return `${folderOf(step.fn)}/driver/unbind`;
    case 'bind':
      return `bus/pci/drivers/${step.driver}/bind`;
    case 'override':
      return `${folderOf(step.fn)}/driver_override`;
    case 'probe':
      return 'bus/pci/drivers_probe';
  }
}

/** What a step writes; null where that is the address of its function. */
export function valueOf(step: Step): string | null {
  switch (step.kind) {
    case 'allow-sriov':
      return step.allow ? 'Y' : 'N';
    case 'set-vfs':
      return String(step.count);
    case 'set-autoprobe':
      return step.on ? '1' : '0';
    case 'override':
      // An empty line clears it; an empty write would not reach the kernel.
      return step.driver ?? '';
    default:
      return null;
  }
}

/** The step as a command of the shell. */
export function commandOf(step: Step, root = '/sys'): string {
  const file = fileOf(step);
  if (file === null) return `modprobe ${step.kind === 'unload-module' ? '-r ' : ''}${vfioPci}`;
  const value = valueOf(step);
  if (value !== null) return `echo ${value === '' ? "''" : value} > ${root}/${file}`;
  const { fn } = step as Extract<Step, { fn: Target }>;
  const address = fn.vf === null ? fn.pf : `"$(basename "$(readlink ${root}/${folderOf(fn)})")"`;
  return `echo ${address} > ${root}/${file}`;
}

/** The step in words, to follow "to". */
export function describe(step: Step): string {
  switch (step.kind) {
    case 'load-module':
      return `load the module ${vfioPci}`;
    case 'unload-module':
      return `unload the module ${vfioPci}`;
    case 'allow-sriov':
      return `${step.allow ? 'allow' : 'forbid'} VFs on PFs bound to ${vfioPci}`;
    case 'set-vfs':
      return step.count === 0
        ? `remove the VFs of ${step.pf}`
        : `make ${step.count === 1 ? '1 VF' : `${step.count} VFs`} on ${step.pf}`;
    case 'set-autoprobe':
      return `${step.on ? 'let' : 'keep'} drivers ${step.on ? 'take' : 'from taking'} new VFs of ${step.pf}`;
    case 'unbind':
      return `unbind ${nameOf(step.fn)} from ${step.driver}`;
    case 'bind':
      return `bind ${nameOf(step.fn)} to ${step.driver}`;
    case 'override':
      return step.driver === null
        ? `give ${nameOf(step.fn)} back to its usual driver`
        : `reserve ${nameOf(step.fn)} for ${step.driver}`;
    case 'probe':
      return `bind ${nameOf(step.fn)} to ${step.driver ?? 'its usual driver'}`;
  }
}

export function nameOf({ pf, vf }: Target): string {
  return vf === null ? pf : `VF ${vf} of ${pf}`;
}

/** The step that takes a step back. */
export function inverse(step: Step): Step {
  switch (step.kind) {
    case 'load-module':
      return { kind: 'unload-module' };
    case 'unload-module':
      return { kind: 'load-module' };
    case 'allow-sriov':
      return { ...step, allow: !step.allow };
    case 'set-vfs':
      return { ...step, count: step.was, was: step.count };
    case 'set-autoprobe':
      return { ...step, on: !step.on };
    case 'unbind':
      return { ...step, kind: 'bind' };
    case 'bind':
      return { ...step, kind: 'unbind' };
    case 'override':
      return { ...step, driver: step.was, was: step.driver };
    case 'probe':
      return { kind: 'unbind', fn: step.fn, driver: step.driver ?? 'its driver' };
  }
}

/** The steps that take back what was done, in their order. */
export function undoing(done: readonly Step[]): Step[] {
  const made = done.findIndex((step) => step.kind === 'set-vfs' && step.count > 0);
  return done
    .filter((step, i) => {
      // VFs that were made go away as a whole.
      return made < 0 || i <= made || !('fn' in step) || step.fn.vf === null;
    })
    .map(inverse)
    .reverse();
}
