// Colours by meaning, and the width of what carries them.

const codes = {
  title: [1, 22],
  good: [32, 39],
  bad: [31, 39],
  warn: [33, 39],
  dim: [2, 22],
  name: [36, 39],
  value: [35, 39],
} as const;

const escape = '\u001b';

export type Styles = { readonly [K in keyof typeof codes]: (text: string) => string };

export function styles(colour: boolean): Styles {
  return Object.fromEntries(
    Object.entries(codes).map(([name, [on, off]]) => [
      name,
      colour
        ? (text: string) => text && `${escape}[${on}m${text}${escape}[${off}m`
        : (text: string) => text,
    ]),
  ) as Styles;
}

const sequences = new RegExp(`${escape}\\[[\\d;]*m`, 'g');

/** Columns that the text takes; what we print is one column a character. */
export function widthOf(text: string): number {
  return text.replace(sequences, '').length;
}

export function padEnd(text: string, width: number): string {
  return text + ' '.repeat(Math.max(0, width - widthOf(text)));
}

export function padStart(text: string, width: number): string {
  return ' '.repeat(Math.max(0, width - widthOf(text))) + text;
}

/** Makes control characters visible: text from a device or a file must not steer the terminal. */
export function plain(text: string): string {
  return text.replace(
    /\p{Cc}/gu,
    (char) => `\\x${char.charCodeAt(0).toString(16).padStart(2, '0')}`,
  );
}

/** Breaks text at spaces so that no line is wider than `width` where a space allows it. */
export function wrap(text: string, width: number): string[] {
  const lines: string[] = [];
  let line = '';
  for (const word of text.split(' ')) {
    if (line !== '' && widthOf(line) + 1 + widthOf(word) > width) {
      lines.push(line);
      line = word;
    } else {
      line = line === '' ? word : `${line} ${word}`;
    }
  }
  return [...lines, line];
}
