// Whether this package runs here at all.

import { check, type Check } from './check.js';

export interface Runtime {
  readonly platform: string;
  readonly arch: string;
  /** Version of Node.js, without "v". */
  readonly node: string;
}

export function checkPlatform({ platform, arch, node }: Runtime): Check[] {
  const runs = platform === 'linux' && arch === 'x64';
  const where = `This is ${platform} on ${arch}`;
  return [
    runs
      ? check('platform', 'ok', 'This is Linux on x86-64.')
      : check('platform', 'fail', `${where}; only Linux on x86-64 is supported.`),
    nodeFits(node)
      ? check('node', 'ok', `Node.js ${node} is supported.`)
      : check('node', 'fail', `Node.js ${node} is not supported: 20.19, 22.13, 24 or later is.`, [
          'npm install --global n && n lts',
        ]),
  ];
}

/** As "engines" in package.json. */
function nodeFits(version: string): boolean {
  const [major = 0, minor = 0] = version.split('.').map(Number);
  return major >= 24 || (major === 22 && minor >= 13) || (major === 20 && minor >= 19);
}
