// The only importer of the native addon. It loads on first use, so importing the package works
// everywhere: types and the pure parts need no addon.

import { createRequire } from 'node:module';
import { messageOf, nativeLoad } from './errors.js';
import { logNativeLine } from './log.js';
import type { NativeAddon } from './native.js';

const platformPackage = '@retrovf/linux-x64-gnu';
const overrideVariable = 'NAPI_RS_NATIVE_LIBRARY_PATH';

let loaded: NativeAddon | undefined;

/** The native addon; ERR_NATIVE_LOAD keeps the reason of a failure. */
export function native(): NativeAddon {
  loaded ??= load();
  return loaded;
}

function load(): NativeAddon {
  const host = `${process.platform}-${process.arch}`;
  if (host !== 'linux-x64') throw nativeLoad(host, 'only linux-x64 is supported');
  // The .node file itself: the loader that napi generates tries more places and drops the reasons that
  // dlopen gives. In a checkout the platform package is the npm workspace that the build writes to.
  const path = process.env[overrideVariable] || platformPackage;
  try {
    const addon = createRequire(import.meta.url)(path) as NativeAddon;
    addon.setLogger(logNativeLine);
    return addon;
  } catch (error) {
    throw nativeLoad(path, firstLine(messageOf(error)), error);
  }
}

function firstLine(text: string): string {
  return text.split('\n', 1)[0] ?? text;
}
