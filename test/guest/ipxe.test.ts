// iPXE's legacy driver: DHCP and TFTP before any operating system is there.

import { copyFile, mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import test from 'ava';
import { noPingLost } from './lib/checks.js';
import { bootIpxe } from './lib/ipxe.js';
import { lab } from './lib/lab.js';
import { commandLine } from './lib/linux.js';
import { startNic } from './lib/nic.js';
import { scene, type Scene } from '../vm/scene.js';

async function tftpFolder(s: Scene): Promise<string> {
  const dir = join(s.dir, 'tftp');
  await mkdir(dir);
  return dir;
}

const size = 1_000_003; // odd, and some hundred packets

for (const msix of [undefined, 0]) {
  test(
    `iPXE gets a lease and files (${msix === 0 ? 'no MSI-X' : 'MSI-X left alone'})`,
    scene(async (t, s) => {
      const tftp = await tftpFolder(s);
      await writeFile(join(tftp, 'data'), Buffer.alloc(size, 'legacy'));
      await writeFile(join(tftp, 'next.ipxe'), '#!ipxe\necho GUEST next=${net0/ip}\n');
      const [port] = await startNic(s, { tftp, ...(msix === undefined ? {} : { msix }) });
      const guest = await bootIpxe(s, port!, {
        commands: [
          'echo GUEST chip=${net0/chip}',
          'echo GUEST bus=${net0/busid}',
          'dhcp net0',
          'echo GUEST ip=${net0/ip}',
          'ping --count 3 ${net0/gateway}',
          'imgfetch --name data tftp://${next-server}/data',
          'imgstat',
          'chain tftp://${next-server}/next.ipxe',
          'ifstat net0',
        ],
      });
      await guest.done(120);
      t.is(guest.one('chip'), 'virtio-net');
      t.is(guest.one('bus'), '01:1a:f4:10:00');
      t.is(guest.one('next'), guest.one('ip'), 'the fetched script did not run');
      const text = guest.child.lines.all.join('\n');
      t.regex(text, new RegExp(`^data : ${size} bytes`, 'm'));
      t.is(text.match(/^\d+ bytes from .*: seq=\d+$/gm)?.length, 3);
      for (const line of text.match(/.*\[Link:.*|.*: \d+ bytes.*/g) ?? []) s.log(line);
    }),
  );
}

test(
  'iPXE boots Linux over the network, which then takes the function over',
  scene(async (t, s) => {
    const tftp = await tftpFolder(s);
    await copyFile(lab.bzImage, join(tftp, 'vmlinuz'));
    await copyFile(lab.initrd, join(tftp, 'initrd'));
    const [port] = await startNic(s, { tftp });
    const steps = ['identity', 'dhcp', 'ping:200', 'interrupts'];
    const guest = await bootIpxe(s, port!, {
      commands: [
        'dhcp net0',
        'echo GUEST ipxe=${net0/ip}',
        'kernel tftp://${next-server}/vmlinuz ' + commandLine(steps),
        'initrd tftp://${next-server}/initrd',
        'boot',
      ],
    });
    await guest.done(240);
    t.is(guest.one('version_1'), '0');
    t.is(guest.one('ip'), guest.one('ipxe'));
    noPingLost(t, guest, 200);
  }),
);
