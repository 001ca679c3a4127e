// What `retrovf serve` makes of the VFs of a PF that may offer less than usual. Prints what is announced
// of the first VF, and what came of a legacy guest on each.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { connectGuest } from '../../../lib/index.js';

const vfs = (process.env['VFS'] ?? '').trim().split(/\s+/);
const main = new URL('../../../lib/cli/main.js', import.meta.url).pathname;
const patience = 30_000;
const pings = 20;

const server = spawn(process.execPath, [main, 'serve', ...vfs, '--socket-dir', '/tmp/sockets'], {
  stdio: ['ignore', 'pipe', 'inherit'],
});
const announced: { socket: string; verdict: string }[] = [];
for await (const line of createInterface(server.stdout)) {
  if (announced.length === 0) console.log(`announced=${line}`);
  announced.push(JSON.parse(line));
  if (announced.length === vfs.length) break;
}
if (announced.length < vfs.length) throw new Error('serve ended');

for (const { socket, verdict } of announced) {
  // Our guest is a legacy one: it has nothing to drive on a VF that is passed through as it is.
  if (verdict !== 'transitional') continue;
  const guest = await connectGuest(socket);
  await guest.enumerate();
  await guest.start();
  const { address } = await guest.dhcp(patience);
  const { received } = await guest.ping('10.0.2.2', pings, patience);
  console.log(`driven=${address} ${received}/${pings}`);
  await guest.stop();
  guest.close();
}

server.kill('SIGTERM');
const [code] = await once(server, 'exit');
process.exit(code === 0 ? 0 : 1);
