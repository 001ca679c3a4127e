// Programs of the host, run without a shell, for a bounded time and a bounded output.

import { execFile } from 'node:child_process';

export interface Ended {
  /** null: ended by a signal, or could not be started at all. */
  readonly code: number | null;
  readonly stdout: string;
  /** For a program that could not be started, why. */
  readonly stderr: string;
}

/** Runs a program to its end. Never rejects for how it ends. */
export type RunProgram = (
  file: string,
  args: readonly string[],
  options?: { readonly timeoutMs?: number; readonly signal?: AbortSignal | undefined },
) => Promise<Ended>;

const maxOutput = 1 << 20;

export const runProgram: RunProgram = (file, args, { timeoutMs = 10_000, signal } = {}) =>
  new Promise((resolve, reject) => {
    const options = {
      timeout: timeoutMs,
      maxBuffer: maxOutput,
      killSignal: 'SIGKILL' as const,
      env: { ...process.env, LC_ALL: 'C' },
      ...(signal !== undefined && { signal }),
    };
    execFile(file, [...args], options, (error, stdout, stderr) => {
      if (signal?.aborted === true) return reject(signal.reason);
      if (error === null) return resolve({ code: 0, stdout, stderr });
      const code = typeof error.code === 'number' ? error.code : null;
      const why = code === null ? (error.killed === true ? 'took too long' : error.message) : '';
      return resolve({ code, stdout, stderr: stderr === '' ? why : stderr });
    });
  });
