// The CLI, from its sources, as a child process or in the process of the test.

import { spawn, type ChildProcess } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import type { ExecutionContext } from 'ava';
import { run } from '../../lib/cli/run.js';

const main = fileURLToPath(new URL('../../lib/cli/main.ts', import.meta.url));

export interface Ended {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface Running {
  readonly child: ChildProcess;
  readonly ended: Promise<Ended & { readonly signal: NodeJS.Signals | null }>;
}

/** The environment has no colour settings but those given. */
export function launch(args: readonly string[], env: Readonly<Record<string, string>> = {}) {
  const { NO_COLOR: _no, FORCE_COLOR: _force, ...rest } = process.env;
  return spawn(process.execPath, ['--import=tsx', main, ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...rest, ...env },
  });
}

export function start(
  args: readonly string[],
  env: Readonly<Record<string, string>> = {},
): Running {
  const child = launch(args, env);
  const ended = Promise.all([text(child.stdout), text(child.stderr), exitOf(child)]).then(
    ([stdout, stderr, exit]) => ({ stdout, stderr, ...exit }),
  );
  return { child, ended };
}

export function exitOf(
  child: ChildProcess,
): Promise<{ code: number | null; signal: NodeJS.Signals | null }> {
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code, signal) => resolve({ code, signal }));
  });
}

/** As a child process would, but in this one: for what opens no device and takes no signal. */
export async function retrovf(
  args: readonly string[],
  env: Readonly<Record<string, string>> = {},
): Promise<Ended> {
  const written = { stdout: '', stderr: '' };
  const stream = (name: keyof typeof written) => ({
    write: (text: string) => (written[name] += text),
  });
  const code = await run(args, {
    stdout: stream('stdout'),
    stderr: stream('stderr'),
    env,
    signal: new AbortController().signal,
  });
  return { code, ...written };
}

/** Resolves to the first line of stdout. */
export function firstLine({ child, ended }: Running): Promise<string> {
  return new Promise((resolve, reject) => {
    let seen = '';
    child.stdout?.on('data', (chunk: Buffer) => {
      seen += chunk.toString();
      const end = seen.indexOf('\n');
      if (end >= 0) resolve(seen.slice(0, end));
    });
    void ended.then(({ code, stderr }) => reject(new Error(`ended with ${code}: ${stderr}`)));
  });
}

/** A folder that is gone after the test. */
export async function folder(t: ExecutionContext): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), 'retrovf-test-'));
  t.teardown(() => rm(path, { recursive: true, force: true }));
  return path;
}
