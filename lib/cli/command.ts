// What a command is: one table entry from which parsing, `--help` and
// docs/cli.md follow. A command computes and returns its exit code; what it
// prints goes through the writers in output/.

import { parseArgs } from 'node:util';
import type { LogLevel } from '../index.js';
import type { Context } from './context.js';
import { UsageError } from './usage-error.js';

export type OptionSpec =
  | { readonly kind: 'flag'; readonly summary: string }
  | { readonly kind: 'text'; readonly value: string; readonly summary: string }
  | {
      readonly kind: 'number';
      readonly value: string;
      readonly summary: string;
      readonly min: number;
      readonly max: number;
    }
  | {
      readonly kind: 'choice';
      readonly value: string;
      readonly summary: string;
      readonly choices: readonly string[];
    };

export type OptionTable = { readonly [name: string]: OptionSpec };

type ValueOf<S extends OptionSpec> = S extends { kind: 'flag' }
  ? boolean
  : S extends { kind: 'number' }
    ? number | undefined
    : S extends { kind: 'choice'; choices: readonly (infer C)[] }
      ? C | undefined
      : string | undefined;

export type Values<O extends OptionTable> = { readonly [K in keyof O]: ValueOf<O[K]> };

export interface Example {
  readonly command: string;
  readonly does: string;
}

interface Description {
  readonly name: string;
  readonly summary: string;
  /** The argument part of the usage line, such as `BDF...`. */
  readonly operands?: string;
  /** Default of --log-level; without it, warn. */
  readonly logLevel?: LogLevel;
  readonly details: readonly string[];
  readonly examples: readonly Example[];
}

export interface CommandDefinition<O extends OptionTable> extends Description {
  readonly options: O;
  readonly run: (
    values: Values<O>,
    operands: readonly string[],
    context: Context,
  ) => Promise<number>;
}

export interface Command extends Description {
  readonly options: OptionTable;
  /** Parses what follows the command's name; throws `UsageError`. */
  readonly parse: (args: readonly string[]) => Invocation;
}

export interface Invocation {
  readonly globals: Values<typeof globalOptions>;
  readonly run: (context: Context) => Promise<number>;
}

const logLevels = ['error', 'warn', 'info', 'debug'] as const;

/** Every command takes these. */
export const globalOptions = {
  json: { kind: 'flag', summary: 'Print JSON: results on stdout, a failure and the log on stderr' },
  'log-level': {
    kind: 'choice',
    value: 'LEVEL',
    choices: logLevels,
    summary: `Least severe log line shown: ${logLevels.join(', ')} (default warn; serve: info)`,
  },
  help: { kind: 'flag', summary: 'Show this help' },
} as const satisfies OptionTable;

export function defineCommand<const O extends OptionTable>(
  definition: CommandDefinition<O>,
): Command {
  const { run, ...description } = definition;
  return {
    ...description,
    parse(args) {
      const { values, operands } = parseOptions(description, args);
      if (description.operands === undefined && operands.length > 0 && !values['help']) {
        throw new UsageError(`Unexpected argument: ${operands[0]}`, description.name);
      }
      return {
        globals: values as Values<typeof globalOptions>,
        run: (context) => run(values as Values<O>, operands, context),
      };
    },
  };
}

type Parsed = Record<string, string | number | boolean | undefined>;

function parseOptions(
  command: { readonly name: string; readonly options: OptionTable },
  args: readonly string[],
): { values: Parsed; operands: string[] } {
  const table: OptionTable = { ...command.options, ...globalOptions };
  const { values, positionals } = split(command.name, table, args);
  const parsed: Parsed = {};
  for (const [name, spec] of Object.entries(table)) {
    const value = values[name];
    parsed[name] =
      typeof value === 'string'
        ? parseValue(command.name, name, spec, value)
        : spec.kind === 'flag'
          ? value === true
          : undefined;
  }
  return { values: parsed, operands: positionals };
}

function split(command: string, table: OptionTable, args: readonly string[]) {
  const options = Object.fromEntries(
    Object.entries(table).map(([name, { kind }]) => [
      name,
      {
        type: kind === 'flag' ? ('boolean' as const) : ('string' as const),
        ...(name === 'help' ? { short: 'h' } : {}),
      },
    ]),
  );
  try {
    return parseArgs({ args: [...args], options, allowPositionals: true, strict: true });
  } catch (cause) {
    // Only the first sentence: the rest explains `--`, which the help does.
    const [message = 'Bad arguments'] = (cause as Error).message.split(/\. |\n/);
    throw new UsageError(message, command);
  }
}

function parseValue(
  command: string,
  name: string,
  spec: OptionSpec,
  text: string,
): string | number {
  switch (spec.kind) {
    case 'number': {
      const value = /^\d{1,9}$/.test(text) ? Number(text) : Number.NaN;
      if (value >= spec.min && value <= spec.max) return value;
      throw new UsageError(
        `--${name} takes a number from ${spec.min} to ${spec.max}, not ${JSON.stringify(text)}`,
        command,
      );
    }
    case 'choice':
      if (spec.choices.includes(text)) return text;
      throw new UsageError(
        `--${name} takes ${spec.choices.join(', ')}, not ${JSON.stringify(text)}`,
        command,
      );
    default:
      if (text !== '') return text;
      throw new UsageError(`--${name} takes a value that is not empty`, command);
  }
}
