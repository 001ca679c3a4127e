//! How a session waits for its client: in the receive itself.

#[path = "conformance/fixture.rs"]
#[expect(dead_code, reason = "the conformance tests use the rest")]
mod fixture;

use std::fs;
use std::path::{Path, PathBuf};

use fixture::{eventually, Rig, Setup};
use retrovf_pci::DmaAccess;

/// `recvmsg` on x86-64.
const RECVMSG: &str = "47";

/// What the kernel tells of the session's thread: the number of the system call that it is in.
fn system_call(thread: &Path) -> String {
    let line = fs::read_to_string(thread.join("syscall")).unwrap();
    line.split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned()
}

fn session() -> PathBuf {
    let threads = fs::read_dir("/proc/self/task").unwrap();
    let name = |path: &PathBuf| fs::read_to_string(path.join("comm")).unwrap_or_default();
    let mut sessions = threads
        .map(|entry| entry.unwrap().path())
        .filter(|path| name(path).trim() == "vfio-user");
    let session = sessions.next().expect("a session");
    assert_eq!(sessions.next(), None);
    session
}

/// A poll before each receive is a third of what a kick costs the server.
#[test]
fn a_session_waits_in_its_receive_also_when_memory_came_without_a_file() {
    let rig = Rig::new(Setup::default());
    let mut client = rig.guest();
    let session = session();
    let receives = || system_call(&session) == RECVMSG;
    eventually("a receive", receives);
    // A ROM, as QEMU has several.
    client
        .dma_map(0xc_0000, 0x1000, DmaAccess::READ_WRITE, None)
        .unwrap();
    eventually("a receive", receives);
    client.region_write(0, 16, &[1, 0]).unwrap();
    eventually("a receive after a kick", receives);
    assert_eq!(rig.kicks(), [1]);
}
