// Where text goes and whether it may carry colour.

import { styles, type Styles } from './styles.js';

export interface Terminal {
  readonly styles: Styles;
  /** Whether a person watches: progress may be drawn and drawn over. */
  readonly live: boolean;
  readonly columns: number;
  write(text: string): void;
}

export interface Stream {
  readonly isTTY?: boolean;
  readonly columns?: number;
  write(text: string): unknown;
}

export type Environment = Readonly<Record<string, string | undefined>>;

/** NO_COLOR (no-color.org) wins over FORCE_COLOR, which wins over what the stream is. */
export function openTerminal(stream: Stream, env: Environment): Terminal {
  const live = stream.isTTY === true && env['TERM'] !== 'dumb';
  const colour = env['NO_COLOR'] ? false : env['FORCE_COLOR'] ? env['FORCE_COLOR'] !== '0' : live;
  return {
    styles: styles(colour),
    live,
    columns: stream.columns ?? 100,
    write: (text) => void stream.write(text),
  };
}
