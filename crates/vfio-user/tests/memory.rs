//! What a client costs that does nothing: many devices are served by one process.

#[path = "conformance/fixture.rs"]
#[expect(dead_code, reason = "the conformance tests use the rest")]
mod fixture;

use std::sync::Arc;

use fixture::{socket_path, Recorder};
use retrovf_pci::{Doorbell, NotifyTarget};
use retrovf_vfio_user::{
    Client, ClientOptions, ControlAccess, ControlPlane, DeviceConfig, ServedDevice, Server,
    ServerOptions,
};

struct Nobody;

impl ControlPlane for Nobody {
    fn access(&self, access: ControlAccess) {
        panic!("{access:?} of an idle client");
    }
}

/// A served device and its client, with three doorbells.
fn session(member: &Arc<Recorder>) -> (Server, Client, Vec<impl Drop>) {
    let config = DeviceConfig {
        member: Arc::clone(member) as _,
        overlay: Vec::new(),
        config_size: 4096,
        msix_capability: None,
        bar0_size: Some(32),
        notify: Some(NotifyTarget::device(Arc::clone(member) as Arc<dyn Doorbell>)),
        queues: 3,
    };
    let device = ServedDevice::new(config, Arc::new(Nobody)).unwrap();
    let options = ServerOptions::new(socket_path());
    let path = options.path.clone();
    let server = Server::start(device, options, Arc::new(|_| {})).unwrap();
    let mut client = Client::connect(&path, ClientOptions::default()).unwrap();
    let fds = client.region_io_fds(0).unwrap();
    assert_eq!(fds.len(), 3);
    let fds = fds.into_iter().map(|(_, fd)| fd).collect();
    (server, client, fds)
}

/// A line of /proc/self/status, in KiB.
fn status(name: &str) -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.unwrap().trim_end_matches("kB").trim();
    number.parse().unwrap()
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn an_idle_session_takes_little_memory_small_stacks_and_no_spare_descriptors() {
    const SESSIONS: usize = 64;
    let member = Recorder::new();
    // What the first one costs is the process's.
    let first = session(&member);
    let before = [status("RssAnon:"), status("VmData:"), descriptors()];
    let more: Vec<_> = (0..SESSIONS).map(|_| session(&member)).collect();
    let after = [status("RssAnon:"), status("VmData:"), descriptors()];
    let [memory, mapped, descriptors] = [0, 1, 2].map(|i| (after[i] - before[i]) / SESSIONS);
    // Two stacks, and two buffers of 4 KiB, as the client is here too; an eager read-ahead of 64 KiB
    // would show.
    assert!(memory < 90, "{memory} KiB a session");
    // Stacks of the usual 2 MiB would have a page table each.
    assert!(mapped < 1024, "{mapped} KiB mapped for a session");
    // The server's sockets, its two eventfds to wake threads and the doorbells; the client's socket
    // and its doorbells.
    assert_eq!(descriptors, 2 + 2 + 3 + 1 + 3);
    drop((first, more));
}
