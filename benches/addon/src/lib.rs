//! The addon with more exports: peers of its calls, functions whose notify address is a word of
//! memory, as the BAR of a VF is, or a ledger that counts, and a client that kicks. Loaded in the
//! addon's place, by NAPI_RS_NATIVE_LIBRARY_PATH.

mod ledger;
mod peers;
mod round_trip;
mod storm;
mod trim;
mod word;

// All of the addon is in this library, as its exports register themselves.
pub use retrovf_addon::*;
