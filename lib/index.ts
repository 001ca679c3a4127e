// The public API of RetroVF: legacy virtio guests on modern SR-IOV virtio functions.
//
// A host gives functions, the prober says which of them can be transitional devices, an owner device
// (the PF) reaches the legacy registers of its members (the VFs), a transitional device is what a guest
// sees of one, and serve() hands it to a VMM over vfio-user.

// Hosts
export { parseBdf, type Bdf } from './host/bdf.js';
export type { Host } from './host/host.js';
export { VfioHost, type VfioOptions } from './host/vfio.js';
export { SoftNicHost } from './host/softnic.js';
export { Sysfs, type Bar, type Finding, type FunctionInfo } from './host/sysfs.js';
export {
  probe,
  type FunctionReport,
  type Passthrough,
  type PassthroughReason,
  type ProbeOptions,
  type ProbeReport,
  type Verdict,
} from './host/prober.js';

// Preparing a host
export { thisMachine, type Machine } from './host/machine.js';
export type { Ended, RunProgram } from './host/program.js';
export { SysfsWriter, WriteRefused, type WriteOptions } from './host/sysfs-writer.js';
export { examineHost, type ExamineOptions, type HostExamination } from './host/doctor/examine.js';
export type { Check, CheckId, CheckState } from './host/doctor/check.js';
export type { Runtime } from './host/doctor/platform.js';
export {
  setUp,
  tearDown,
  type BoundFunction,
  type HostChange,
  type HostChangeOptions,
  type SetUpOptions,
} from './host/setup.js';
export type { AppliedStep, StepOutcome } from './host/apply.js';

// Devices
export {
  OwnerDevice,
  type OwnerCapabilities,
  type OwnerEvents,
  type OwnerOptions,
  type OwnerState,
} from './owner-device.js';
export {
  TransitionalDevice,
  type TransitionalOptions,
  type TransitionalStats,
} from './transitional-device.js';
export {
  openDevice,
  PassthroughDevice,
  type Device,
  type PassthroughCause,
  type PassthroughStats,
} from './passthrough-device.js';
export type { DeviceEvents, RegionInfo } from './guest-device.js';
export type { AccessCounters } from './bar0-accesses.js';
export type { NotifyPlan } from './notify.js';
export type { Presentation } from './pci/overlay.js';

// Admin commands, for OwnerDevice.execute()
export type { CommandTrace } from './admin-lanes.js';
export {
  legacyRead,
  legacyWrite,
  opcode,
  opcodeName,
  type AdminCommand,
} from './virtio/admin-commands.js';

// Serving
export { startDoorbell, type DoorbellOptions } from './service/doorbell.js';
export {
  metrics,
  parseMetricsAddress,
  serveMetrics,
  type MetricsAddress,
  type MetricsSource,
} from './service/metrics.js';
export {
  serve,
  type Served,
  type ServedEvents,
  type ServeOptions,
  type SessionState,
} from './service/serve.js';
export {
  serveAll,
  type Service,
  type ServiceEntry,
  type ServiceFailure,
  type ServiceOptions,
} from './service/service.js';

// A guest of our own, for demonstrations and tests
export { connectGuest, type ConnectOptions } from './guest.js';

// Failures and the log
export { errorCodes, RetroVfError, type ErrorCode, type LossReason } from './errors.js';
export { closeLogging, configureLogging, type LogLevel } from './log.js';

export type {
  AdminQueueStats,
  GuestAccess,
  GuestDriverState,
  GuestIdentity,
  GuestLease,
  GuestMeasurement,
  LegacyGuest,
  NativeHistogram,
  NativeOverlayRow,
  PciFunction,
  ServedDeviceCounters,
  ServerEvent,
  SoftNicFault,
  SoftNicOptions,
  SoftNicStats,
  Uplink,
} from './native.js';
