// Carries out steps one by one, looks whether each had its effect, and on failure takes back those done.

import { basename, join } from 'node:path';
import { readlink } from 'node:fs/promises';
import { hostStep, hostTimeout, messageOf } from '../errors.js';
import { delay } from '../wait.js';
import { tryParseBdf, type Bdf } from './bdf.js';
import { linkOf, textOf } from './files.js';
import type { Holder } from './holders.js';
import type { Machine } from './machine.js';
import { isYes, moduleLoaded, observePf, vfioPci } from './pf-state.js';
import { reasonOf } from './refusals.js';
import {
  commandOf,
  describe,
  fileOf,
  folderOf,
  undoing,
  valueOf,
  type Step,
  type Target,
} from './steps.js';

/**
 * `already`: it was so before, or an earlier step brought it about. `no-driver`: the kernel has no driver
 * for the function at present.
 */
export type StepOutcome = 'planned' | 'done' | 'already' | 'no-driver';

export interface AppliedStep {
  /** In words, to follow "to". */
  readonly does: string;
  /** As a command of the shell. */
  readonly command: string;
  readonly outcome: StepOutcome;
}

interface ApplyOptions {
  readonly stepTimeoutMs?: number;
  readonly onStep?: (step: AppliedStep) => void;
  readonly signal?: AbortSignal;
}

interface Limits {
  readonly timeoutMs: number;
  readonly signal?: AbortSignal | undefined;
}

/** Throws ERR_HOST_STEP or ERR_HOST_TIMEOUT, or the signal's reason once all is taken back. */
export async function apply(
  machine: Machine,
  pf: Bdf,
  steps: readonly Step[],
  options: ApplyOptions,
): Promise<AppliedStep[]> {
  const { stepTimeoutMs: timeoutMs = 30_000, onStep, signal } = options;
  const applied: AppliedStep[] = [];
  const done: Step[] = [];
  for (const step of steps) {
    try {
      signal?.throwIfAborted();
      const outcome = await perform(machine, step, { timeoutMs, signal });
      if (outcome === 'done') done.push(step);
      const words = { does: describe(step), command: commandOf(step, machine.sysfs.root) };
      applied.push({ ...words, outcome });
      onStep?.({ ...words, outcome });
    } catch (error) {
      // A write that was given up may have had, or still have, its effect.
      const begun = signal?.aborted === true || isTimeout(error) ? [...done, step] : done;
      throw await failureOf(machine, pf, step, { error, done: begun, timeoutMs, signal });
    }
  }
  return applied;
}

interface Trouble extends Limits {
  readonly error: unknown;
  readonly done: readonly Step[];
}

async function failureOf(
  machine: Machine,
  pf: Bdf,
  step: Step,
  { error, done, timeoutMs, signal }: Trouble,
): Promise<unknown> {
  const words = { does: describe(step), command: commandOf(step, machine.sysfs.root) };
  const holders = isTimeout(error) ? await holdersNow(machine, pf) : [];
  const after = await takeBack(machine, done, timeoutMs);
  if (signal?.aborted === true && after.left.length === 0) return signal.reason;
  if (isTimeout(error)) return hostTimeout(pf, words, { holders, timeoutMs }, after, error);
  return hostStep(pf, words, reasonOf(step, error), after, error);
}

async function takeBack(machine: Machine, done: readonly Step[], timeoutMs: number) {
  const undone: string[] = [];
  const left: string[] = [];
  for (const step of undoing(done)) {
    try {
      // The caller's signal has done its work; a half-bound function helps nobody.
      if ((await perform(machine, step, { timeoutMs })) === 'done') undone.push(describe(step));
    } catch (error) {
      left.push(`could not ${describe(step)} (${messageOf(error)})`);
    }
  }
  return { undone, left };
}

async function holdersNow(machine: Machine, pf: Bdf): Promise<Holder[]> {
  try {
    const { holders, vfs } = await observePf(machine, pf);
    return [...holders, ...vfs.flatMap((each) => each.holders)];
  } catch {
    return [];
  }
}

/** A step that was answered, and had no effect. */
class NoEffect extends Error {
  readonly code = 'ENOEFFECT';
}

function isTimeout(error: unknown): boolean {
  return (error as { code?: unknown } | null)?.code === 'ETIMEDOUT';
}

/** The kernel acts within the write; what follows, such as links of new VFs, takes moments. */
const settleMs = 3_000;
const lookEveryMs = 20;

async function perform(machine: Machine, step: Step, limits: Limits): Promise<StepOutcome> {
  if (await holds(machine, step)) return 'already';
  await act(machine, step, limits);
  for (const end = Date.now() + settleMs; !(await holds(machine, step));) {
    if (step.kind === 'probe' && step.driver === null) return 'no-driver';
    if (Date.now() > end) throw new NoEffect('the kernel took the request, but nothing changed');
    await delay(lookEveryMs, limits.signal);
  }
  return 'done';
}

async function act(machine: Machine, step: Step, { timeoutMs, signal }: Limits): Promise<void> {
  const file = fileOf(step);
  if (file === null) {
    const args = step.kind === 'unload-module' ? ['-r', vfioPci] : [vfioPci];
    const { code, stderr } = await machine.run('modprobe', args, { timeoutMs, signal });
    if (code === 0) return;
    throw new Error(`modprobe ${args.join(' ')}: ${stderr.trim().slice(0, 200)}`);
  }
  const value = valueOf(step) ?? (await addressOf(machine, (step as { fn: Target }).fn));
  await machine.writer.write(file, `${value}\n`, { timeoutMs, signal });
}

/** Whether what the step brings about is so. */
async function holds(machine: Machine, step: Step): Promise<boolean> {
  const { sysfs } = machine;
  const file = fileOf(step);
  const text = () => (file === null ? null : textOf(join(sysfs.root, file)));
  switch (step.kind) {
    case 'load-module':
      return moduleLoaded(machine);
    case 'unload-module':
      return !(await moduleLoaded(machine));
    case 'allow-sriov':
      return isYes(await text()) === step.allow;
    case 'set-autoprobe':
      return (await text()) === (step.on ? '1' : '0');
    case 'set-vfs':
      return (await text()) === String(step.count) && (await vfsInPlace(machine, step));
    case 'override': {
      const override = await text();
      return (override === '(null)' || override === '' ? null : override) === step.driver;
    }
    case 'unbind':
      return (await driverOf(machine, step.fn)) === null;
    case 'bind':
      return (await driverOf(machine, step.fn)) === step.driver;
    case 'probe': {
      const driver = await driverOf(machine, step.fn);
      return step.driver === null ? driver !== null : driver === step.driver;
    }
  }
}

async function vfsInPlace(
  machine: Machine,
  { pf, count }: Extract<Step, { kind: 'set-vfs' }>,
): Promise<boolean> {
  const last = count === 0 ? 0 : count - 1;
  const link = await linkOf(machine.sysfs.path(pf, `virtfn${last}`));
  return (link !== null) === count > 0;
}

function driverOf({ sysfs }: Machine, fn: Target): Promise<string | null> {
  return linkOf(join(sysfs.root, folderOf(fn), 'driver'));
}

async function addressOf({ sysfs }: Machine, fn: Target): Promise<Bdf> {
  if (fn.vf === null) return fn.pf;
  const target = basename(await readlink(join(sysfs.root, folderOf(fn))));
  const bdf = tryParseBdf(target);
  if (bdf === null) throw new Error(`${folderOf(fn)} leads to no PCI function`);
  return bdf;
}
