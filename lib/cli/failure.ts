// What went wrong, as data (the JSON of --json) and as lines for people.

import { jsonLine } from './output/json.js';
import { plain, type Styles } from './output/styles.js';
import type { Terminal } from './output/terminal.js';

export interface Failure {
  readonly code: string;
  readonly message: string;
  readonly bdf?: string;
  readonly detail?: unknown;
  readonly hint?: string;
  readonly cause?: Failure;
}

const deepest = 4;

/** Hints in terms of the command line, where the library's are about its API. */
const hints: Readonly<Record<string, string>> = {
  ERR_VFIO_TOKEN: 'Give the token with which the PF was opened: --vf-token UUID.',
};

export function describeFailure(error: unknown, depth = 0): Failure {
  const thrown = (error instanceof Error ? error : { message: String(error) }) as Partial<Failure>;
  const { bdf, detail, message, cause } = thrown;
  const code = typeof thrown.code === 'string' ? thrown.code : 'ERR_INTERNAL';
  const hint = hints[code] ?? thrown.hint;
  return {
    code,
    message: message ?? '',
    ...(bdf === undefined ? {} : { bdf }),
    ...(detail === undefined ? {} : { detail }),
    ...(hint === undefined ? {} : { hint }),
    ...(cause === undefined || depth >= deepest
      ? {}
      : { cause: describeFailure(cause, depth + 1) }),
  };
}

export function writeFailure(error: unknown, stderr: Terminal, json: boolean): void {
  const failure = describeFailure(error);
  stderr.write(json ? jsonLine(failure) : `${failureLines(failure, stderr.styles).join('\n')}\n`);
}

function failureLines(failure: Failure, style: Styles): string[] {
  const lines = [
    `${style.bad('retrovf:')} ${plain(failure.message)} ${style.dim(`(${failure.code})`)}`,
  ];
  let said = failure.message;
  for (let cause = failure.cause; cause !== undefined; cause = cause.cause) {
    // Errors from native code cross as their own cause.
    if (cause.message !== said) lines.push(`  because: ${plain(cause.message)}`);
    said = cause.message;
  }
  if (failure.hint !== undefined) lines.push(`  ${style.warn('hint:')} ${plain(failure.hint)}`);
  return lines;
}
