//! What a call from JavaScript costs at least: functions as an addon in C has them, without anything
//! that napi-rs adds.
#![expect(unsafe_code, reason = "calls Node-API as C does")]

use std::ptr;
use std::sync::atomic::{AtomicU16, Ordering};

use napi::bindgen_prelude::{Env, FromNapiValue, JsObjectValue, Object, Unknown};
use napi_derive::napi;
use napi_sys as sys;

static WORD: AtomicU16 = AtomicU16::new(0);

unsafe extern "C" fn empty(_: sys::napi_env, _: sys::napi_callback_info) -> sys::napi_value {
    ptr::null_mut()
}

unsafe extern "C" fn store(env: sys::napi_env, info: sys::napi_callback_info) -> sys::napi_value {
    let mut count = 1;
    let mut argument = ptr::null_mut();
    let mut queue = 0;
    // SAFETY: `env` and `info` are Node's own, and the pointers are to locals of the right types.
    unsafe {
        let (this, data) = (ptr::null_mut(), ptr::null_mut());
        sys::napi_get_cb_info(env, info, &mut count, &mut argument, this, data);
        sys::napi_get_value_uint32(env, argument, &mut queue);
    }
    WORD.store(queue as u16, Ordering::Release);
    ptr::null_mut()
}

/// `empty()` does nothing; `store(queue)` stores 16 bits.
#[napi]
pub fn c_functions(env: &Env) -> napi::Result<Object<'_>> {
    let mut functions = Object::new(env)?;
    let calls: [(&str, sys::napi_callback); 2] = [("empty", Some(empty)), ("store", Some(store))];
    for (name, call) in calls {
        let mut value = ptr::null_mut();
        // SAFETY: the name is given with its length, and the function is a static one.
        let status = unsafe {
            sys::napi_create_function(
                env.raw(),
                name.as_ptr().cast(),
                name.len() as isize,
                call,
                ptr::null_mut(),
                &mut value,
            )
        };
        if status != sys::Status::napi_ok {
            return Err(napi::Error::from_reason("a function cannot be made"));
        }
        // SAFETY: Node has just made the value for this environment.
        let function = unsafe { Unknown::from_napi_value(env.raw(), value) }?;
        functions.set_named_property(name, function)?;
    }
    Ok(functions)
}
