// Turns what `retrovf demo` printed in colour into docs/demo.svg:
//   FORCE_COLOR=1 node dist/cli/main.js demo | npx tsx docs/make-demo-svg.ts > docs/demo.svg

import { text } from 'node:stream/consumers';

const cell = { width: 8.4, height: 18 };
const margin = 20;
const background = '#11151c';
const foreground = '#d5dbe5';
const colours: Readonly<Record<number, string>> = {
  31: '#ff7b72',
  32: '#5fd38d',
  33: '#e3b341',
  35: '#d2a8ff',
  36: '#79c0ff',
};

interface Run {
  readonly column: number;
  readonly text: string;
  readonly style: Style;
}

interface Style {
  readonly colour: string;
  readonly bold: boolean;
  readonly dim: boolean;
}

const plainStyle: Style = { colour: foreground, bold: false, dim: false };

process.stdout.write(draw((await text(process.stdin)).trimEnd().split('\n')));

function draw(lines: readonly string[]): string {
  const parsed = lines.map(runsOf);
  const columns = Math.max(...parsed.flat().map((run) => run.column + run.text.length));
  const width = Math.ceil(columns * cell.width + 2 * margin);
  const height = lines.length * cell.height + 2 * margin;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img" aria-label="Output of retrovf demo">`,
    `<rect width="100%" height="100%" rx="10" fill="${background}"/>`,
    `<g font-family="ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace" font-size="14" xml:space="preserve">`,
    ...parsed.flatMap((runs, row) => runs.flatMap((run) => shapes(run, row))),
    '</g>',
    '</svg>',
    '',
  ].join('\n');
}

function runsOf(line: string): Run[] {
  const runs: Run[] = [];
  let style = plainStyle;
  let column = 0;
  const add = (text: string): void => {
    if (text !== '') runs.push({ column, text, style });
    column += text.length;
  };
  const [first = '', ...parts] = line.split('\u001b[');
  add(first);
  for (const part of parts) {
    const [, codes = '', text = ''] = /^([\d;]*)m(.*)$/s.exec(part) ?? [];
    for (const code of codes.split(';')) style = styled(style, Number(code));
    add(text);
  }
  return runs;
}

function styled(style: Style, code: number): Style {
  if (code === 0) return plainStyle;
  if (code === 1) return { ...style, bold: true };
  if (code === 2) return { ...style, dim: true };
  if (code === 22) return { ...style, bold: false, dim: false };
  return { ...style, colour: colours[code] ?? foreground };
}

/** Block characters become rectangles, as fonts leave gaps between them. */
function shapes(run: Run, row: number): string[] {
  const top = margin + row * cell.height;
  const paint = `fill="${run.style.colour}"${run.style.dim ? ' opacity="0.6"' : ''}`;
  return [...run.text.matchAll(/[▁-█]+|[^▁-█]+/g)].flatMap(({ 0: part, index }) => {
    const left = margin + (run.column + index) * cell.width;
    if (/[▁-█]/.test(part)) return [...part].map((block, i) => bar(block, left + i * cell.width));
    if (part.trim() === '') return [];
    const length = `textLength="${round(part.length * cell.width)}" lengthAdjust="spacingAndGlyphs"`;
    const weight = run.style.bold ? ' font-weight="bold"' : '';
    return [
      `<text x="${round(left)}" y="${round(top + 13.5)}" ${length}${weight} ${paint}>${escaped(part)}</text>`,
    ];
  });

  function bar(block: string, left: number): string {
    const height = ((block.charCodeAt(0) - 0x2580) / 8) * cell.height;
    return `<rect x="${round(left)}" y="${round(top + cell.height - height)}" width="${cell.width + 0.3}" height="${round(height)}" ${paint}/>`;
  }
}

function round(value: number): number {
  return Math.round(value * 100) / 100;
}

function escaped(part: string): string {
  return part.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');
}
