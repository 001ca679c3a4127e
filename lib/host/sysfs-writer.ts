// Writes to sysfs: the only way in which this package changes a host.

import { spawn } from 'node:child_process';
import { join } from 'node:path';

export interface WriteOptions {
  /** The write is given up after this; the kernel may still complete it. */
  readonly timeoutMs: number;
  readonly signal?: AbortSignal | undefined;
}

/** A write that the kernel refused (its errno name) or did not answer (`ETIMEDOUT`). */
export class WriteRefused extends Error {
  override readonly name = 'WriteRefused';
  readonly code: string;

  constructor(file: string, code: string) {
    super(code === 'ETIMEDOUT' ? `${file} took too long` : `${file} refused the write (${code})`);
    this.code = code;
  }
}

// Opens what exists and makes nothing; one write call, as each is one request to the kernel.
const script = `
const fs = require('node:fs');
try {
  const file = fs.openSync(process.argv[1], fs.constants.O_WRONLY);
  fs.writeSync(file, process.argv[2]);
} catch (error) {
  process.stdout.write(String(error.code));
  process.exitCode = 1;
}`;

/**
 * Each write is done by a process of its own: unbinding a function that is open stays in the kernel until
 * its user lets go, and a thread of ours that is stuck there would keep this process from ending.
 */
export class SysfsWriter {
  readonly root: string;

  constructor(root = '/sys') {
    this.root = root;
  }

  /** Writes `text` to `file`, a path below the root; throws `WriteRefused`. */
  async write(file: string, text: string, { timeoutMs, signal }: WriteOptions): Promise<void> {
    signal?.throwIfAborted();
    const path = join(this.root, file);
    const { NODE_OPTIONS: _options, ...env } = process.env;
    const child = spawn(process.execPath, ['-e', script, '--', path, text], {
      stdio: ['ignore', 'pipe', 'ignore'],
      env,
      // Out of reach of the terminal's Ctrl-C, which is for the caller to handle.
      detached: true,
    });
    let timer: NodeJS.Timeout | undefined;
    let onAbort: (() => void) | undefined;
    try {
      await new Promise<void>((resolve, reject) => {
        let answer = '';
        child.stdout.on('data', (chunk: Buffer) => {
          answer = (answer + chunk.toString('latin1')).slice(0, 32);
        });
        child.on('error', reject);
        child.on('close', (code) => {
          if (code === 0) resolve();
          else reject(new WriteRefused(path, /^E[A-Z0-9]+$/.test(answer) ? answer : 'EIO'));
        });
        timer = setTimeout(() => reject(new WriteRefused(path, 'ETIMEDOUT')), timeoutMs);
        onAbort = () => reject(signal?.reason);
        signal?.addEventListener('abort', onAbort, { once: true });
      });
    } finally {
      clearTimeout(timer);
      if (onAbort !== undefined) signal?.removeEventListener('abort', onAbort);
      if (child.exitCode === null) child.kill('SIGKILL');
      child.stdout.destroy();
      child.unref();
    }
  }
}
