//! libvfio-user, where a built copy lies on the machine, with a device that is only a notify word.
#![expect(unsafe_code, reason = "calls a C library")]

use std::ffi::{c_char, c_int, c_void, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use libloading::{Library, Symbol};

use crate::round_trip::WORD;
use crate::Result;

/// Names the shared library.
const VARIABLE: &str = "LIBVFIO_USER";

pub(crate) fn library() -> Option<PathBuf> {
    std::env::var_os(VARIABLE).map(PathBuf::from)
}

/// What the report says of a library that is not there.
pub(crate) fn skipped() -> Vec<String> {
    match library() {
        Some(_) => Vec::new(),
        None => vec![format!("libvfio-user: {VARIABLE} names no libvfio-user.so")],
    }
}

// Values and signatures of include/libvfio-user.h.
const TRANS_SOCK: c_int = 0;
const DEV_TYPE_PCI: c_int = 0;
const PCI_TYPE_CONVENTIONAL: c_int = 0;
const FLAG_RW: c_int = 3;
const BAR0: c_int = 0;
const CONFIG: c_int = 7;

type Context = *mut c_void;
type Access = extern "C" fn(Context, *mut c_char, usize, i64, bool) -> isize;
type Create = unsafe extern "C" fn(c_int, *const c_char, c_int, *mut c_void, c_int) -> Context;
type Simple = unsafe extern "C" fn(Context) -> c_int;
type Destroy = unsafe extern "C" fn(Context);
type Pci = unsafe extern "C" fn(Context, c_int, c_int, c_int) -> c_int;
type Setup = unsafe extern "C" fn(
    Context,
    c_int,
    usize,
    Option<Access>,
    c_int,
    *mut c_void,
    u32,
    c_int,
    u64,
) -> c_int;

extern "C" fn bar0(_: Context, bytes: *mut c_char, count: usize, at: i64, write: bool) -> isize {
    if write && count == 2 && at == 16 {
        // SAFETY: the library passes `count` bytes, and they need no alignment here.
        let queue = unsafe { bytes.cast::<u16>().read_unaligned() };
        WORD.store(queue, Ordering::Release);
    }
    count as isize
}

extern "C" fn config(_: Context, bytes: *mut c_char, count: usize, _: i64, write: bool) -> isize {
    if !write {
        // SAFETY: the library passes `count` bytes to fill.
        unsafe { bytes.write_bytes(0, count) };
    }
    count as isize
}

/// Makes the device and listens; the function that comes back serves one client to its end. `None`
/// without the library.
pub(crate) fn server(path: &Path) -> Result<Option<impl FnOnce() + Send + 'static>> {
    let Some(file) = library() else {
        return Ok(None);
    };
    // SAFETY: the operator names the library; its initialisers do nothing but set up itself.
    let library = unsafe { Library::new(&file) }?;
    let name = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the signatures are those of its header; each call gets what that asks for, and the
    // context stays on one thread at a time.
    let context = unsafe {
        let create: Symbol<'_, Create> = library.get(b"vfu_create_ctx")?;
        let pci: Symbol<'_, Pci> = library.get(b"vfu_pci_init")?;
        let setup: Symbol<'_, Setup> = library.get(b"vfu_setup_region")?;
        let realize: Symbol<'_, Simple> = library.get(b"vfu_realize_ctx")?;
        let null = std::ptr::null_mut();
        let context = create(TRANS_SOCK, name.as_ptr(), 0, null, DEV_TYPE_PCI);
        if context.is_null() {
            return Err("vfu_create_ctx failed".into());
        }
        let failed = pci(context, PCI_TYPE_CONVENTIONAL, 0, 0) < 0
            || setup(context, BAR0, 32, Some(bar0), FLAG_RW, null, 0, -1, 0) < 0
            || setup(context, CONFIG, 256, Some(config), FLAG_RW, null, 0, -1, 0) < 0
            || realize(context) < 0;
        if failed {
            return Err(format!("{} refuses the device", file.display()).into());
        }
        SendContext(context)
    };
    Ok(Some(move || serve(&library, context)))
}

struct SendContext(Context);

// SAFETY: a context belongs to no thread; it is moved to the one that serves, and used there only.
unsafe impl Send for SendContext {}

fn serve(library: &Library, SendContext(context): SendContext) {
    // SAFETY: as in `server`; `context` is destroyed once, after the last use.
    unsafe {
        let attach = library.get::<Simple>(b"vfu_attach_ctx");
        let run = library.get::<Simple>(b"vfu_run_ctx");
        let destroy = library.get::<Destroy>(b"vfu_destroy_ctx");
        if let (Ok(attach), Ok(run), Ok(destroy)) = (attach, run, destroy) {
            if attach(context) == 0 {
                // Blocks until the client leaves.
                run(context);
            }
            destroy(context);
        }
    }
}
