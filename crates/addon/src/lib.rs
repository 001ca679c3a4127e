//! The napi bindings: handles, promises and callbacks. It converts and never decides; the types as
//! TypeScript sees them, with their documentation, are in `lib/native.ts`.
//!
//! Nothing here blocks the event loop: methods that run on it do one register access or less, and
//! whatever may wait (a function reset, closing a server, the guest) is a promise served by a thread
//! of the pool.

mod device;
mod doorbell;
mod failure;
mod function;
mod guest;
mod histogram;
mod job;
mod logger;
mod notify_word;
mod server;
mod softnic;
mod virtio;

pub use function::PciFunction;
