// The command line: help, versions, and what is refused.

import { readFile } from 'node:fs/promises';
import { text } from 'node:stream/consumers';
import test, { type ExecutionContext } from 'ava';
import { commands } from '../../lib/cli/commands/index.js';
import { exitOf, launch, retrovf, start } from './retrovf.js';

test.serial('--version prints the version of the package', async (t) => {
  const { version } = JSON.parse(await readFile('package.json', 'utf8')) as { version: string };
  const { code, stdout, stderr } = await retrovf(['--version']);
  t.deepEqual({ code, stdout, stderr }, { code: 0, stdout: `${version}\n`, stderr: '' });
});

test.serial('without arguments the help goes to stderr and the exit code is 2', async (t) => {
  const { code, stdout, stderr } = await retrovf([]);
  t.is(code, 2);
  t.is(stdout, '');
  t.regex(stderr, /^Usage: retrovf COMMAND/m);
});

test.serial('the help names every command and every exit code', async (t) => {
  const { code, stdout } = await retrovf(['help']);
  t.is(code, 0);
  for (const { name, summary } of commands) {
    t.regex(stdout, new RegExp(`^  ${name} +${summary.slice(0, 40)}`, 'm'));
  }
  for (const exit of ['0', '1', '2', '3', '4', '5', '6', '7', '8', '130, 143']) {
    t.regex(stdout, new RegExp(`^  ${exit} +\\w`, 'm'));
  }
});

test.serial('--help and help print the same, with every option and an example', async (t) => {
  for (const { name, options, examples } of commands) {
    const [asked, told] = await Promise.all([retrovf([name, '--help']), retrovf(['help', name])]);
    t.is(asked.code, 0);
    t.is(asked.stdout, told.stdout);
    for (const option of Object.keys(options))
      t.regex(asked.stdout, new RegExp(`^  --${option}\\b`, 'm'));
    for (const { command } of examples) t.true(asked.stdout.includes(`  ${command}\n`));
  }
});

test.serial('help fits 100 columns', async (t) => {
  for (const { name } of commands) {
    const { stdout } = await retrovf(['help', name]);
    for (const line of stdout.split('\n')) t.true(line.length <= 100, line);
  }
});

interface Refusal {
  readonly args: readonly string[];
  readonly says: RegExp;
}

const refused = test.macro(async (t: ExecutionContext, { args, says }: Refusal) => {
  const { code, stdout, stderr } = await retrovf(args);
  t.is(code, 2);
  t.is(stdout, '');
  t.regex(stderr, says);
});

test.serial('an unknown command is refused', refused, {
  args: ['sevre'],
  says: /No such command: sevre/,
});
test.serial('an option in place of the command is refused', refused, {
  args: ['--json', 'probe'],
  says: /command comes before its options: --json/,
});
test.serial('an unknown option is refused', refused, {
  args: ['probe', '--opne'],
  says: /'--opne'/,
});
test.serial('an option without its value is refused', refused, {
  args: ['probe', '--sysfs'],
  says: /'--sysfs <value>' argument missing/,
});
test.serial('an argument is refused where none is taken', refused, {
  args: ['demo', 'now'],
  says: /Unexpected argument: now/,
});
test.serial('a number past its bounds is refused', refused, {
  args: ['demo', '--pings', '0'],
  says: /--pings takes a number from 1 to 10000, not "0"/,
});
test.serial('a number in another notation is refused', refused, {
  args: ['demo', '--pings', '1e3'],
  says: /not "1e3"/,
});
test.serial('a choice that does not exist is refused', refused, {
  args: ['demo', '--presentation', 'modern'],
  says: /--presentation takes transitional, legacy, not "modern"/,
});
test.serial('a text that is no PCI address is refused', refused, {
  args: ['probe', '1:2'],
  says: /"1:2" is not a PCI address/,
});
test.serial('a SoftNIC option without --softnic is refused', refused, {
  args: ['probe', '--vfs', '2'],
  says: /--vfs needs --softnic/,
});
test.serial('probe refuses --sysfs beside --softnic', refused, {
  args: ['probe', '--softnic', '--sysfs', '/sys'],
  says: /exclude each other/,
});
test.serial('a way to open functions of the host is refused for the SoftNIC', refused, {
  args: ['serve', '--softnic', '--via', 'group', '--socket', '/tmp/a.sock'],
  says: /--via is not for --softnic/,
});
test.serial('serve needs devices', refused, {
  args: ['serve', '--socket', '/tmp/a.sock'],
  says: /Give the VFs to serve, or --softnic/,
});
test.serial('serve needs a place for its sockets', refused, {
  args: ['serve', '--softnic'],
  says: /either --socket PATH or --socket-dir DIR/,
});
test.serial('serve refuses one socket for two devices', refused, {
  args: ['serve', '--softnic', '--vfs', '2', '--socket', '/tmp/a.sock'],
  says: /--socket serves one device, not 2/,
});
test.serial('serve refuses a device that is given twice', refused, {
  args: ['serve', '5e:00.1', '0000:5e:00.1', '--socket-dir', '/tmp'],
  says: /given twice/,
});
test.serial('serve refuses an uplink that it does not know', refused, {
  args: ['serve', '--softnic', '--socket', '/tmp/a.sock', '--uplink', 'tap:'],
  says: /--uplink takes gateway, none, unix:PATH or tap:NAME, not "tap:"/,
});

test.serial('with --json a usage error is an object on stderr', async (t) => {
  const { code, stdout, stderr } = await retrovf(['demo', '--json', '--pings', 'many']);
  t.is(code, 2);
  t.is(stdout, '');
  t.deepEqual(JSON.parse(stderr), {
    code: 'ERR_USAGE',
    message: '--pings takes a number from 1 to 10000, not "many"',
    hint: 'See: retrovf demo --help',
  });
});

test.serial('colour is for terminals, unless FORCE_COLOR asks for it', async (t) => {
  const escape = '\u001b[';
  const [pipe, forced, refused] = await Promise.all([
    retrovf(['help']),
    retrovf(['help'], { FORCE_COLOR: '1' }),
    retrovf(['help'], { FORCE_COLOR: '1', NO_COLOR: '1' }),
  ]);
  t.false(pipe.stdout.includes(escape));
  t.true(forced.stdout.includes(escape));
  t.is(refused.stdout, pipe.stdout);
});

test.serial('the program writes to its own streams and exits with the code', async (t) => {
  const help = await start(['help']).ended;
  t.is(help.code, 0);
  t.is(help.stdout, (await retrovf(['help'])).stdout);
  const bad = await start(['demo', '--pings', 'x']).ended;
  t.is(bad.code, 2);
  t.regex(bad.stderr, /--pings takes/);
});

test.serial('a reader that leaves early is no failure', async (t) => {
  const child = launch(['help']);
  child.stdout.destroy();
  const [stderr, exit] = await Promise.all([text(child.stderr), exitOf(child)]);
  t.deepEqual({ stderr, ...exit }, { stderr: '', code: 0, signal: null });
});

test.serial('docs/cli.md has the help as it is; else run docs/make-cli-md.ts', async (t) => {
  const page = await readFile('docs/cli.md', 'utf8');
  t.true(page.includes((await retrovf(['help'])).stdout));
  for (const { name } of commands) {
    t.true(page.includes((await retrovf(['help', name])).stdout), name);
  }
});
