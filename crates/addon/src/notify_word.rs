//! A device's notify word as JavaScript memory: a store of V8 rings the device.
#![expect(unsafe_code, reason = "lends a mapping to the engine")]

use std::sync::Arc;

use napi::bindgen_prelude::{ArrayBuffer, Env};
use napi_derive::napi;
use retrovf_pci::MappedWord;

/// Two bytes over the word. The buffer keeps the mapping until it is collected, so what is left of
/// it after the device was closed is harmless; `detach_buffer` ends it earlier.
pub fn view(env: &Env, word: Arc<MappedWord>) -> napi::Result<Option<ArrayBuffer<'_>>> {
    let start = word.as_ptr().cast::<u8>();
    // SAFETY: the two bytes stay mapped until the finalizer drops `word`. They are never used as
    // Rust memory: the slice that napi keeps inside the value is only compared here, not read.
    let buffer = unsafe { ArrayBuffer::from_external(env, start, 2, word, |_, word| drop(word)) }?;
    // An engine that allows no memory but its own hands out a copy, which would ring nothing.
    let shared = std::ptr::eq(buffer.as_ptr(), start);
    Ok(shared.then_some(buffer))
}

/// Empties a buffer that `notifyWord` gave: its views have no elements any more, and stores to them
/// go nowhere.
#[napi]
pub fn detach_buffer(buffer: ArrayBuffer<'_>) -> napi::Result<()> {
    buffer.detach()
}
