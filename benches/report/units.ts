/** Nanoseconds for people: three digits and a unit. */
export function time(ns: number): string {
  const [value, unit] =
    ns < 1e3
      ? [ns, 'ns']
      : ns < 1e6
        ? [ns / 1e3, 'µs']
        : ns < 1e9
          ? [ns / 1e6, 'ms']
          : [ns / 1e9, 's'];
  return `${Number(value.toPrecision(3))} ${unit}`;
}
