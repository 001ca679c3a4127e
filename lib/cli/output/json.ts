/** One line; 64-bit values, which JSON numbers can't hold, as hexadecimal text. */
export function jsonLine(value: unknown): string {
  return `${JSON.stringify(value, (_key, each: unknown) => (typeof each === 'bigint' ? `0x${each.toString(16)}` : each))}\n`;
}
