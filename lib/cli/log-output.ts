// The library's log on stderr: lines for people, or one JSON object a line.

import { Writable } from 'node:stream';
import winston from 'winston';
import { configureLogging, type LogLevel } from '../index.js';
import { jsonLine } from './output/json.js';
import { plain, type Styles } from './output/styles.js';
import type { Terminal } from './output/terminal.js';

export function writeLog(
  stderr: Terminal,
  { level, json }: { readonly level: LogLevel; readonly json: boolean },
): void {
  const stream = new Writable({
    decodeStrings: false,
    write(line: string, _encoding, done) {
      stderr.write(line);
      done();
    },
  });
  configureLogging({
    level,
    transports: [new winston.transports.Stream({ stream })],
    format: json
      ? winston.format.printf((info) =>
          jsonLine({ time: new Date().toISOString(), ...info }).trimEnd(),
        )
      : winston.format.printf((info) => logLine(info, new Date(), stderr.styles)),
  });
}

const marks = { error: 'bad', warn: 'warn', info: 'good', debug: 'dim' } as const;

export function logLine(
  { level, message, bdf, ...fields }: Readonly<Record<string, unknown>>,
  at: Date,
  style: Styles,
): string {
  const mark = style[marks[level as LogLevel] ?? 'dim'](String(level).padEnd(5));
  return [
    style.dim(at.toISOString().slice(11, 23)),
    mark,
    ...(bdf === undefined ? [] : [style.name(plain(String(bdf)))]),
    plain(String(message)),
    ...Object.entries(fields).map(([name, value]) => style.dim(`${name}=${shown(value)}`)),
  ].join(' ');
}

function shown(value: unknown): string {
  if (value instanceof Error) return JSON.stringify(value.message);
  if (typeof value === 'bigint') return `0x${value.toString(16)}`;
  return typeof value === 'string' && /^[\w.:/@-]+$/.test(value)
    ? value
    : plain(jsonLine(value).trimEnd());
}
