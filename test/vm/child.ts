// A program that a test runs: its lines, its log file, its end.

import { spawn, type ChildProcess } from 'node:child_process';
import { createWriteStream } from 'node:fs';
import { join } from 'node:path';
import { Lines } from './lines.js';

export type Exit = { code: number | null; signal: NodeJS.Signals | null };

export class Child {
  /** What the program prints on its standard output. */
  readonly lines = new Lines();
  /** What it prints on its standard error. */
  readonly errors = new Lines();
  readonly exit: Promise<Exit>;
  readonly name: string;
  readonly #process: ChildProcess;
  #gone = false;

  /** Both outputs go to `DIR/NAME.log` and `DIR/NAME.err` as they come. */
  constructor(name: string, command: readonly string[], dir: string) {
    this.name = name;
    // A test runner that dies must not leave guests behind, hence setpriv.
    this.#process = spawn('setpriv', ['--pdeathsig', 'TERM', '--', ...command], {
      cwd: dir,
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    const log = createWriteStream(join(dir, `${name}.log`));
    const errors = createWriteStream(join(dir, `${name}.err`));
    errors.write(`${command.join(' ')}\n`);
    this.#process.stdout?.pipe(log);
    this.#process.stderr?.pipe(errors);
    this.#process.stdout?.setEncoding('utf8').on('data', (text: string) => this.lines.push(text));
    this.#process.stderr?.setEncoding('utf8').on('data', (text: string) => this.errors.push(text));
    this.exit = new Promise((resolve) => {
      const end = (exit: Exit, reason: string): void => {
        this.#gone = true;
        this.lines.end(reason);
        this.errors.end(reason);
        resolve(exit);
      };
      this.#process.on('error', (cause) => {
        end({ code: null, signal: null }, `${name} did not start (${cause.message})`);
      });
      this.#process.on('close', (code, signal) => {
        end({ code, signal }, `${name} ended with ${signal ?? `exit code ${code}`}`);
      });
    });
  }

  get gone(): boolean {
    return this.#gone;
  }

  /** Asks the program to end; one that has not ended in time is killed. */
  async stop(seconds = 10): Promise<Exit> {
    const timer = setTimeout(() => this.#process.kill('SIGKILL'), seconds * 1000);
    if (!this.#gone) this.#process.kill('SIGTERM');
    const exit = await this.exit;
    clearTimeout(timer);
    return exit;
  }

  async kill(): Promise<Exit> {
    if (!this.#gone) this.#process.kill('SIGKILL');
    return this.exit;
  }

  /** Waits for the program to end by itself. */
  ended(seconds: number): Promise<Exit> {
    return new Promise((resolve, reject) => {
      const late = new Error(`${this.name} still runs after ${seconds} s`);
      const timer = setTimeout(() => reject(late), seconds * 1000);
      void this.exit.then((exit) => {
        clearTimeout(timer);
        resolve(exit);
      });
    });
  }
}
