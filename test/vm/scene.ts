// What one test has running: a folder, programs, and their orderly end.

import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import { Child } from './child.js';

type Ending = () => Promise<unknown>;

export class Scene {
  /** Logs and sockets. The path is short, since sockets allow 107 bytes. */
  readonly dir: string;
  readonly log: (line: string) => void;
  readonly #children: Child[] = [];
  readonly #endings: Ending[] = [];

  private constructor(dir: string, log: (line: string) => void) {
    this.dir = dir;
    this.log = log;
  }

  static async open(log: (line: string) => void): Promise<Scene> {
    return new Scene(await mkdtemp(join(tmpdir(), 'rvf-')), log);
  }

  /** Starts a program, which ends with the scene: by SIGTERM unless told how. */
  run(
    name: string,
    command: readonly string[],
    ending: (child: Child) => Promise<unknown> = (child) => child.stop(),
  ): Child {
    const child = new Child(name, command, this.dir);
    this.#children.push(child);
    this.atEnd(() => ending(child));
    return child;
  }

  /** Endings run in reverse order, each even if another fails. */
  atEnd(ending: Ending): void {
    this.#endings.push(ending);
  }

  async close(): Promise<void> {
    const failures: unknown[] = [];
    for (const ending of this.#endings.splice(0).reverse()) {
      await ending().catch((cause: unknown) => failures.push(cause));
    }
    if (failures.length > 0) throw failures[0];
  }

  /** What the programs complained of. */
  logErrors(): void {
    for (const { name, errors } of this.#children) {
      for (const line of errors.all.slice(-20)) this.log(`${name} stderr: ${line}`);
    }
  }
}

/** Wraps a test's body, so that its programs end and its logs are found. */
export function scene(body: (t: ExecutionContext, scene: Scene) => Promise<void>) {
  return async (t: ExecutionContext): Promise<void> => {
    const opened = await Scene.open((line) => t.log(line));
    const failures: unknown[] = [];
    await body(t, opened).catch((cause: unknown) => failures.push(cause));
    await opened.close().catch((cause: unknown) => failures.push(cause));
    const failed = failures.length > 0 || !t.passed;
    if (failed) opened.logErrors();
    const keep = failed || process.env['GUEST_KEEP'] === '1';
    if (!keep) await rm(opened.dir, { recursive: true });
    t.log(`logs: ${opened.dir}${keep ? '' : ' (removed; GUEST_KEEP=1 keeps them)'}`);
    // The first failure is the cause of the others more often than not.
    for (const other of failures.slice(1)) t.log(String(other));
    if (failures.length > 0) throw failures[0];
  };
}
