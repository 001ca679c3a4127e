// Exit codes, by what failed. Codes of errors that are not listed exit with 1.

import type { ErrorCode } from '../index.js';
import { Interruption } from './signals.js';
import { UsageError } from './usage-error.js';

export const exitCode = {
  done: 0,
  failed: 1,
  usage: 2,
  noSuchDevice: 3,
  precondition: 4,
  notPermitted: 5,
  busy: 6,
  unreachable: 7,
  device: 8,
} as const;

type SystemCode =
  | 'EACCES'
  | 'EPERM'
  | 'EADDRINUSE'
  | 'EBUSY'
  | 'ENOENT'
  | 'ENOTDIR'
  | 'ECONNREFUSED';

const byCode: { readonly [code in ErrorCode | SystemCode]?: number } = {
  ERR_BDF_SYNTAX: exitCode.usage,
  ERR_ARGUMENT: exitCode.usage,
  ERR_INVALID_ARG: exitCode.usage,
  ERR_SOFTNIC_CONFIG: exitCode.usage,
  ERR_TOO_MANY_VFS: exitCode.usage,
  ERR_NO_SUCH_DEVICE: exitCode.noSuchDevice,
  ERR_NO_SUCH_FUNCTION: exitCode.noSuchDevice,
  ERR_NOT_A_PF: exitCode.precondition,
  ERR_IOMMU_ABSENT: exitCode.precondition,
  ERR_IOMMU_GROUP_NOT_VIABLE: exitCode.precondition,
  ERR_NOT_TRANSITIONAL: exitCode.precondition,
  ERR_VFIO_GROUP_NOT_VIABLE: exitCode.precondition,
  ERR_VFIO_NOT_BOUND: exitCode.precondition,
  ERR_VFIO_NO_IOMMU: exitCode.precondition,
  ERR_VFIO_UNAVAILABLE: exitCode.precondition,
  ERR_VFIO_UNSAFE_INTERRUPTS: exitCode.precondition,
  ERR_VFIO_PERMISSION: exitCode.notPermitted,
  ERR_VFIO_TOKEN: exitCode.notPermitted,
  ERR_DMA_LIMIT: exitCode.precondition,
  ERR_DMA_LOCKED: exitCode.precondition,
  ERR_DMA_NOT_SHARED: exitCode.precondition,
  ERR_NATIVE_LOAD: exitCode.precondition,
  ERR_OWNER_NO_ADMIN_VQ: exitCode.precondition,
  ERR_OWNER_FEATURES: exitCode.precondition,
  ERR_VIRTIO_CAPABILITIES: exitCode.precondition,
  ERR_ADMIN_UNSUPPORTED: exitCode.precondition,
  ERR_SOCKET_PATH: exitCode.precondition,
  ERR_UNSUPPORTED: exitCode.precondition,
  ENOENT: exitCode.precondition,
  ENOTDIR: exitCode.precondition,
  ERR_NOT_PERMITTED: exitCode.notPermitted,
  EACCES: exitCode.notPermitted,
  EPERM: exitCode.notPermitted,
  ERR_BUSY: exitCode.busy,
  ERR_DEVICE_BUSY: exitCode.busy,
  ERR_HOST_TIMEOUT: exitCode.busy,
  ERR_DISK_IN_USE: exitCode.busy,
  ERR_NETDEV_IN_USE: exitCode.busy,
  ERR_SOCKET_IN_USE: exitCode.busy,
  EADDRINUSE: exitCode.busy,
  EBUSY: exitCode.busy,
  ERR_VFIO_USER_CONNECT: exitCode.unreachable,
  ERR_VFIO_USER_TIMEOUT: exitCode.unreachable,
  ECONNREFUSED: exitCode.unreachable,
  ERR_DEVICE_GONE: exitCode.device,
  ERR_OWNER_LOST: exitCode.device,
  ERR_OWNER_RESET_TIMEOUT: exitCode.device,
  ERR_ADMIN_TIMEOUT: exitCode.device,
  ERR_ADMIN_STATUS: exitCode.device,
  ERR_ADMIN_SHORT_RESULT: exitCode.device,
  ERR_ADMIN_DEVICE: exitCode.device,
  ERR_ADMIN_QUEUE: exitCode.device,
};

const deepestCause = 8;

/** The first code in the chain of causes that says which kind of failure it is. */
export function exitCodeOf(error: unknown): number {
  if (error instanceof UsageError) return exitCode.usage;
  if (error instanceof Interruption) return error.exitCode;
  let each = error;
  for (let depth = 0; each instanceof Error && depth < deepestCause; depth += 1) {
    const known = byCode[(each as { code?: unknown }).code as ErrorCode];
    if (known !== undefined) return known;
    each = each.cause;
  }
  return exitCode.failed;
}
