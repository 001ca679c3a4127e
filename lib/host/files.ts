// Reads of /sys, /proc and /lib/modules for which "not there" is an answer. As bounded as those of Sysfs.

import { readdir, readlink } from 'node:fs/promises';
import { basename } from 'node:path';
import { printable, readBounded } from './sysfs.js';

/** The text of a file, trimmed; null if it cannot be read. */
export async function textOf(path: string, limit = 4096): Promise<string | null> {
  try {
    return (await readBounded(path, limit)).toString('latin1').trim();
  } catch {
    return null;
  }
}

/** The last part of what a link points to; null if there is no such link. */
export async function linkOf(path: string): Promise<string | null> {
  try {
    return printable(basename(await readlink(path)));
  } catch {
    return null;
  }
}

const maxNames = 65536;

/** The names in a folder, sorted; none if it cannot be read. */
export async function namesIn(path: string): Promise<string[]> {
  try {
    return (await readdir(path)).slice(0, maxNames).sort();
  } catch {
    return [];
  }
}
