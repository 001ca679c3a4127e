// From arguments to an exit code: finds the command, runs it, reports what
// went wrong. Nothing here ends the process.

import { createRequire } from 'node:module';
import { closeLogging } from '../index.js';
import type { Command } from './command.js';
import { commands } from './commands/index.js';
import { exitCodeOf } from './exit-codes.js';
import { writeFailure } from './failure.js';
import { commandHelp, programHelp } from './help.js';
import { writeLog } from './log-output.js';
import { openTerminal, type Environment, type Stream, type Terminal } from './output/terminal.js';
import { UsageError } from './usage-error.js';

export interface Surroundings {
  readonly stdout: Stream;
  readonly stderr: Stream;
  readonly env: Environment;
  readonly signal: AbortSignal;
}

export async function run(args: readonly string[], around: Surroundings): Promise<number> {
  const stdout = openTerminal(around.stdout, around.env);
  const stderr = openTerminal(around.stderr, around.env);
  try {
    return await dispatch(args, stdout, stderr, around.signal);
  } catch (error) {
    // A signal that ended the command tells more than the error it caused.
    const failure = around.signal.aborted ? around.signal.reason : error;
    writeFailure(failure, stderr, asksForJson(args));
    return exitCodeOf(failure);
  } finally {
    await closeLogging();
  }
}

async function dispatch(
  args: readonly string[],
  stdout: Terminal,
  stderr: Terminal,
  signal: AbortSignal,
): Promise<number> {
  const [first, ...rest] = args;
  if (first === undefined) {
    stderr.write(programHelp(commands, stderr.styles));
    return 2;
  }
  if (first === '--version') {
    stdout.write(`${version()}\n`);
    return 0;
  }
  if (first === '--help' || first === '-h' || first === 'help') {
    const topic = rest.find((word) => !word.startsWith('-'));
    stdout.write(
      first === 'help' && topic !== undefined
        ? commandHelp(find(topic), stdout.styles)
        : programHelp(commands, stdout.styles),
    );
    return 0;
  }
  const command = find(first);
  const { globals, run: start } = command.parse(rest);
  if (globals.help) {
    stdout.write(commandHelp(command, stdout.styles));
    return 0;
  }
  writeLog(stderr, {
    level: globals['log-level'] ?? command.logLevel ?? 'warn',
    json: globals.json,
  });
  return start({ stdout, stderr, json: globals.json, signal });
}

function find(name: string): Command {
  const command = commands.find((each) => each.name === name);
  if (command !== undefined) return command;
  const problem = name.startsWith('-') ? 'The command comes before its options' : 'No such command';
  throw new UsageError(`${problem}: ${name}`);
}

/** Also holds for arguments that can't be parsed. */
function asksForJson(args: readonly string[]): boolean {
  const end = args.indexOf('--');
  return args.slice(0, end < 0 ? undefined : end).includes('--json');
}

function version(): string {
  const { version } = createRequire(import.meta.url)('../../package.json') as { version: string };
  return version;
}
