// An archive that a kernel unpacks after another: how a run's own files get into L1.

export interface ArchiveFile {
  readonly path: string;
  readonly content: Buffer | string;
  readonly mode?: number;
}

/** The "newc" format of cpio, with the folders that the files need. */
export function archive(files: readonly ArchiveFile[]): Buffer {
  const folders = new Set<string>();
  for (const { path } of files) {
    const parts = path.split('/').slice(0, -1);
    for (let i = 1; i <= parts.length; i += 1) folders.add(parts.slice(0, i).join('/'));
  }
  return Buffer.concat([
    ...[...folders].map((folder) => entry(folder, 0o040755, Buffer.alloc(0))),
    ...files.map(({ path, content, mode = 0o644 }) =>
      entry(path, 0o100000 | mode, Buffer.from(content)),
    ),
    entry('TRAILER!!!', 0, Buffer.alloc(0)),
  ]);
}

function entry(name: string, mode: number, content: Buffer): Buffer {
  const links = 1;
  // inode, mode, uid, gid, links, mtime, size, 4 device numbers, length of the name, checksum
  const numbers = [0, mode, 0, 0, links, 0, content.length, 0, 0, 0, 0, name.length + 1, 0];
  const head = `070701${numbers.map((n) => n.toString(16).padStart(8, '0')).join('')}${name}\0`;
  return Buffer.concat([padded(Buffer.from(head)), padded(content)]);
}

function padded(bytes: Buffer): Buffer {
  return Buffer.concat([bytes, Buffer.alloc(-bytes.length & 3)]);
}
