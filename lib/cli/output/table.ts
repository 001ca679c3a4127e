// Columns of text, each as wide as its widest cell.

import { padEnd, widthOf, type Styles } from './styles.js';

export function table(
  heads: readonly string[],
  rows: readonly (readonly string[])[],
  style: Styles,
): string[] {
  const lines = [heads.map((head) => style.title(head)), ...rows];
  const widths = heads.map((_, column) =>
    Math.max(...lines.map((line) => widthOf(line[column] ?? ''))),
  );
  return lines.map((line) =>
    line
      .map((cell, column) => padEnd(cell, widths[column] ?? 0))
      .join('  ')
      .trimEnd(),
  );
}
