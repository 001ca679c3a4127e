/** Three significant digits: `843 ns`, `12.4 µs`, `1.08 ms`. */
export function duration(ns: number): string {
  const [unit, scale] =
    ns < 999.5
      ? (['ns', 1] as const)
      : ns < 999.5e3
        ? (['µs', 1e3] as const)
        : ns < 999.5e6
          ? (['ms', 1e6] as const)
          : (['s', 1e9] as const);
  const value = ns / scale;
  const digits = scale === 1 ? 0 : value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
  return `${value.toFixed(digits)} ${unit}`;
}

export function hex(value: number | bigint, digits = 0): string {
  return `0x${value.toString(16).padStart(digits, '0')}`;
}

/** `1 command`, `2 commands`. */
export function plural(count: number, noun: string, nouns = `${noun}s`): string {
  return `${count} ${count === 1 ? noun : nouns}`;
}
