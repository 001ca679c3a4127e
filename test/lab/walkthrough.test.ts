// docs/hardware.md, command by command.

import { readFileSync } from 'node:fs';
import test from 'ava';
import { scene } from '../vm/scene.js';
import { bootL1 } from './lib/l1.js';
import { retrovf, serve } from './lib/program.js';

const page = readFileSync(new URL('../../docs/hardware.md', import.meta.url), 'utf8');

/** The commands of ours in the page's blocks of shell, in order. */
const commands = [...page.matchAll(/^```sh\n(.*?)^```$/gms)].flatMap(([, block = '']) =>
  block.split('\n').filter((line) => line.startsWith('retrovf ')),
);

/** Exit codes that are not 0: before the set-up the PF has another driver. */
const expected = new Map([['retrovf doctor', 4]]);

/** Runs one, in the foreground or, if it serves, until its socket takes a client. */
function step(command: string, index: number): string {
  const inLab = command
    .replace('retrovf', retrovf)
    .replaceAll('5e:00.0', '$PF')
    .replaceAll('5e:00.1', '$(basename $(readlink /sys/bus/pci/devices/$PF/virtfn0))');
  const log = `step${index}`;
  const code = expected.get(command) ?? 0;
  const [, options] = inLab.split(`${retrovf} serve `);
  if (options !== undefined) {
    return `
${serve(options)}
cat /tmp/served /tmp/serve.err > /tmp/${log}
emit ${log}
kill $server
wait $server || { echo "serve ended with $?"; return 1; }
`;
  }
  return `
${inLab} > /tmp/${log} 2>&1
code=$?
emit ${log}
[ $code = ${code} ] || { echo "exit $code: ${command}"; return 1; }
`;
}

test(
  'the commands of docs/hardware.md do what the page says',
  scene(async (t, s) => {
    t.true(commands.length >= 6, commands.join('\n'));
    const l1 = await bootL1(s, {
      vfs: 0,
      pf: 'virtio-pci',
      script: commands.map(step).join(''),
    });
    await l1.done(500);
    const said = (command: string) => {
      const index = commands.findIndex((candidate) => candidate.startsWith(command));
      const lines = l1.file(`step${index}`);
      for (const line of lines) t.log(`${command}: ${line}`);
      return lines.join('\n');
    };
    t.regex(said('retrovf doctor'), /fail.*pf-driver|pf-driver.*fail/);
    t.regex(said('retrovf setup 5e:00.0 --vfs 2 --dry-run'), /driver_override/);
    t.regex(said('retrovf probe'), /transitional, if its owner agrees/);
    const served = JSON.parse(said('retrovf serve').split('\n')[0] ?? '') as { verdict: string };
    t.is(served.verdict, 'transitional');
    const device = '{"driver":"vfio-user-pci","socket":{"path":"/tmp/vf.sock","type":"unix"}}';
    t.true(page.includes(device), 'the page has the argument for QEMU');
    t.true(said('retrovf serve').includes(device));
    said('retrovf teardown');
  }),
);
