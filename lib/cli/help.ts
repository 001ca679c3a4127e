// Help, generated from the command table.

import { globalOptions, type Command, type OptionSpec, type OptionTable } from './command.js';
import { padEnd, wrap, type Styles } from './output/styles.js';

const width = 96;

const showVersion: OptionSpec = { kind: 'flag', summary: 'Show the version, without a command' };

const about =
  'Runs legacy virtio guests on modern SR-IOV virtio devices: a VF is presented as a transitional ' +
  'virtio device, its legacy registers become admin commands to the PF.';

const exitCodes: readonly (readonly [string, string])[] = [
  ['0', 'done'],
  ['1', 'failed'],
  ['2', 'the command line is wrong'],
  ['3', 'no such device'],
  ['4', 'a precondition is not met'],
  ['5', 'not permitted'],
  ['6', 'the device or the socket is in use'],
  ['7', 'a service can not be reached'],
  ['8', 'the device failed'],
  ['130, 143', 'ended by SIGINT, SIGTERM'],
];

export function programHelp(commands: readonly Command[], style: Styles): string {
  return lines([
    ...wrap(about, width),
    '',
    `${style.title('Usage:')} retrovf COMMAND [OPTION...]`,
    '',
    style.title('Commands:'),
    ...definitions(
      [
        ...commands.map(({ name, summary }) => [name, summary] as const),
        ['help [COMMAND]', 'Show this help, or that of a command'],
      ],
      style,
    ),
    '',
    style.title('Options:'),
    ...options({ ...globalOptions, version: showVersion }, style),
    '',
    style.title('Exit codes:'),
    ...definitions(exitCodes, style),
  ]);
}

export function commandHelp(command: Command, style: Styles): string {
  const { name, summary, operands, details, examples } = command;
  const usage = ['retrovf', name, ...(operands === undefined ? [] : [operands]), '[OPTION...]'];
  return lines([
    `${summary}.`,
    '',
    `${style.title('Usage:')} ${usage.join(' ')}`,
    ...details.flatMap((paragraph) => ['', ...wrap(paragraph, width)]),
    '',
    style.title('Options:'),
    ...options({ ...command.options, ...globalOptions }, style),
    '',
    style.title('Examples:'),
    ...examples.flatMap(({ command: line, does }) => [`  ${style.dim(`# ${does}`)}`, `  ${line}`]),
  ]);
}

function options(table: OptionTable, style: Styles): string[] {
  return definitions(
    Object.entries(table).map(([name, spec]) => [label(name, spec), spec.summary]),
    style,
  );
}

function label(name: string, spec: OptionSpec): string {
  const long = spec.kind === 'flag' ? `--${name}` : `--${name} ${spec.value}`;
  return name === 'help' ? `-h, ${long}` : long;
}

function definitions(entries: readonly (readonly [string, string])[], style: Styles): string[] {
  const column = Math.max(...entries.map(([term]) => term.length)) + 4;
  return entries.flatMap(([term, text]) =>
    wrap(text, width - column).map((line, i) =>
      i === 0 ? padEnd(`  ${style.name(term)}`, column) + line : ' '.repeat(column) + line,
    ),
  );
}

function lines(all: readonly string[]): string {
  return `${all.join('\n')}\n`;
}
