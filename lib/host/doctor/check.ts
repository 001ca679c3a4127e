// What an examination of a host consists of.

import { access, constants } from 'node:fs/promises';
import type { Bdf } from '../bdf.js';

/** `unknown`: it could not be found out, or not without changing something. */
export type CheckState = 'ok' | 'warn' | 'fail' | 'unknown';

/** Stable names of the checks. */
export type CheckId =
  | 'platform'
  | 'node'
  | 'iommu'
  | 'interrupt-remapping'
  | 'vfio-pci'
  | 'vfio-sriov'
  | 'vfio-container'
  | 'iommufd'
  | 'memlock'
  | 'hugepages'
  | 'qemu'
  | 'functions'
  | 'virtio'
  | 'pf-sriov'
  | 'pf-driver'
  | 'pf-vfs'
  | 'pf-admin-queue'
  | 'vf-driver'
  | 'vf-legacy'
  | 'iommu-group'
  | 'vfio-node';

export interface Check {
  readonly id: CheckId;
  /** The function concerned; null: the host. */
  readonly bdf: Bdf | null;
  readonly state: CheckState;
  /** What was found, in one sentence. */
  readonly detail: string;
  /** Commands that mend it, to be run as root one after the other. */
  readonly mend: readonly string[];
}

export function check(
  id: CheckId,
  state: CheckState,
  detail: string,
  mend: readonly string[] = [],
  bdf: Bdf | null = null,
): Check {
  return { id, bdf, state, detail, mend };
}

export interface Access {
  readonly exists: boolean;
  /** By this process, for reading and writing. */
  readonly permitted: boolean;
}

export async function accessTo(path: string): Promise<Access> {
  const may = (mode: number) =>
    access(path, mode).then(
      () => true,
      () => false,
    );
  const exists = await may(constants.F_OK);
  return { exists, permitted: exists && (await may(constants.R_OK | constants.W_OK)) };
}
