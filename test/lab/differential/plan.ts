// What each side is given to play. Where RetroVF makes several register accesses of one of the guest's
// and the kernel's driver refuses it, the kernel's side plays those accesses after the refusal: the
// device stays the same on both sides, and the comparison sees what the parts read.

import { bar0Size, parts } from './registers.js';
import { State } from './state.js';
import { formatAccess, parseAccess, type Access } from './transcript.js';

export interface Step {
  readonly access: Access;
  /** Accesses that only the kernel's side plays. */
  readonly added: readonly Access[];
  readonly state: Readonly<State>;
}

export function plan(accesses: readonly Access[]): Step[] {
  const state = new State();
  return accesses.map((access) => {
    const step = { access, added: added(access, state), state: Object.assign(new State(), state) };
    state.apply(access);
    return step;
  });
}

function added(access: Access, state: State): Access[] {
  if (access.kind !== 'read' && access.kind !== 'write') return [];
  const { region, offset, width } = access;
  if (region !== 'bar0' || !state.io || offset + width > bar0Size) return [];
  const pieces = parts(offset, width, state.guestMsix);
  if (pieces.length === 1) return [];
  return pieces.map((piece) => {
    if (access.kind === 'read') return { ...access, ...piece };
    const value = BigInt.asUintN(
      8 * piece.width,
      access.value >> BigInt(8 * (piece.offset - offset)),
    );
    return { ...access, ...piece, value };
  });
}

export function parseTranscript(text: string): Access[] {
  return text.split('\n').flatMap((line) => {
    // What an earlier comparison added is added again.
    if (line.startsWith('+')) return [];
    const access = parseAccess(line.trim());
    return access === null ? [] : [access];
  });
}

export function forKernel(steps: readonly Step[]): string {
  return lines(
    steps.flatMap(({ access, added }) => [
      formatAccess(access),
      ...added.map((extra) => `+${formatAccess(extra)}`),
    ]),
  );
}

export function forRetroVf(steps: readonly Step[]): string {
  return lines(steps.map(({ access }) => formatAccess(access)));
}

function lines(all: readonly string[]): string {
  return all.map((line) => `${line}\n`).join('');
}
