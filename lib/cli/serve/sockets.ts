// Where the sockets of served devices go.

import { access, constants, mkdir } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { UsageError } from '../usage-error.js';

// sun_path with its terminating zero.
const maxPath = 107;

export interface SocketChoice {
  readonly socket: string | undefined;
  readonly 'socket-dir': string | undefined;
}

export function checkSocketChoice(
  devices: number,
  { socket, 'socket-dir': dir }: SocketChoice,
): void {
  if ((socket === undefined) === (dir === undefined)) {
    throw new UsageError('Give either --socket PATH or --socket-dir DIR', 'serve');
  }
  if (socket !== undefined && devices > 1) {
    throw new UsageError(`--socket serves one device, not ${devices}: use --socket-dir`, 'serve');
  }
}

/** One absolute path for each device; refuses what UNIX sockets can't be named. */
export function socketPaths(bdfs: readonly string[], choice: SocketChoice): string[] {
  const { socket, 'socket-dir': dir = '' } = choice;
  return bdfs.map((bdf) => {
    const path = resolve(socket ?? join(dir, `${bdf}.sock`));
    const length = Buffer.byteLength(path);
    if (length <= maxPath) return path;
    throw new UsageError(
      `The socket path ${path} has ${length} bytes, a UNIX socket takes at most ${maxPath}`,
      'serve',
    );
  });
}

/**
 * Makes the folder of --socket-dir, for its owner and group, unless it is there. Throws the system's
 * error for a folder that can't be written, before anything is started.
 */
export async function prepareFolders(
  paths: readonly string[],
  choice: SocketChoice,
): Promise<void> {
  const { 'socket-dir': dir } = choice;
  if (dir !== undefined) await mkdir(dir, { recursive: true, mode: 0o750 });
  for (const folder of new Set(paths.map(dirname))) await access(folder, constants.W_OK);
}
