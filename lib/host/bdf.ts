// PCI addresses: parsed once, at the edge.

import { bdfSyntax } from '../errors.js';

declare const brand: unique symbol;

/** A PCI address in the form DDDD:BB:DD.F, lower case. */
export type Bdf = string & { readonly [brand]: true };

const shape = /^(?:([0-9a-f]{4}):)?([0-9a-f]{2}):([01][0-9a-f])\.([0-7])$/i;

/** Takes DDDD:BB:DD.F and, for domain 0, BB:DD.F; throws ERR_BDF_SYNTAX. */
export function parseBdf(text: string): Bdf {
  const bdf = tryParseBdf(text);
  if (bdf === null) throw bdfSyntax(text);
  return bdf;
}

export function tryParseBdf(text: string): Bdf | null {
  const match = shape.exec(text);
  if (match === null) return null;
  const [, domain = '0000', bus, device, fn] = match;
  return `${domain}:${bus}:${device}.${fn}`.toLowerCase() as Bdf;
}
