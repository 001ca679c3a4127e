//! Memory that is free but not given back.
#![expect(unsafe_code, reason = "calls the allocator of C")]

use napi_derive::napi;

/// Gives the pages back to the kernel that the allocator holds for nobody.
#[napi]
pub fn trim() {
    // SAFETY: any thread may call it at any time.
    unsafe { libc::malloc_trim(0) };
}
