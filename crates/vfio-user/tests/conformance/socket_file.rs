//! The socket's file, and the server's end.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use retrovf_vfio_user::{ClientError, Error, Server, ServerOptions};

use crate::fixture::{device, socket_path, Recorder, Rig, Setup};

fn start(path: &std::path::Path) -> Result<Server, Error> {
    struct Nobody;
    impl retrovf_vfio_user::ControlPlane for Nobody {
        fn access(&self, _: retrovf_vfio_user::ControlAccess) {}
    }
    let device = device(&Recorder::new(), &Setup::default(), Arc::new(Nobody));
    Server::start(device, ServerOptions::new(path), Arc::new(|_| {}))
}

#[test]
fn the_file_is_for_owner_and_group_and_goes_with_the_server() {
    let rig = Rig::new(Setup::default());
    let mode = std::fs::metadata(&rig.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    rig.server.close().unwrap();
    assert!(!rig.path.exists());
    rig.server.close().unwrap();
}

#[test]
fn a_socket_that_a_dead_server_left_is_replaced() {
    let path = socket_path();
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let server = start(&path).unwrap();
    assert_eq!(server.path(), path);
    drop(server);
    assert!(!path.exists());
}

#[test]
fn a_socket_in_use_is_left_alone() {
    let rig = Rig::new(Setup::default());
    let error = start(&rig.path).unwrap_err();
    assert_eq!(error.code(), "ERR_SOCKET_IN_USE");
    rig.guest();
    // Neither is one whose server has no time to accept.
    let path = socket_path();
    let busy = UnixListener::bind(&path).unwrap();
    assert_eq!(start(&path).unwrap_err().code(), "ERR_SOCKET_IN_USE");
    drop(busy);
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_file_of_another_kind_is_left_alone() {
    let path = socket_path();
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(start(&path), Err(Error::NotASocket { .. })));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    std::fs::remove_file(&path).unwrap();
    let link = std::env::temp_dir().join("x".repeat(120));
    assert!(matches!(start(&link), Err(Error::PathTooLong { .. })));
    let nowhere = std::env::temp_dir().join("no-such-folder").join("socket");
    assert_eq!(start(&nowhere).unwrap_err().code(), "ERR_IO");
    // Not even root may put a file there.
    let forbidden = std::path::Path::new("/sys/retrovf.sock").to_path_buf();
    assert_eq!(start(&forbidden).unwrap_err().code(), "ERR_NOT_PERMITTED");
}

#[test]
fn a_file_that_somebody_put_in_its_place_survives_the_server() {
    let rig = Rig::new(Setup::default());
    std::fs::remove_file(&rig.path).unwrap();
    let other = UnixListener::bind(&rig.path).unwrap();
    rig.server.close().unwrap();
    assert!(rig.path.exists());
    drop(other);
    std::fs::remove_file(&rig.path).unwrap();
}

#[test]
fn one_server_serves_a_device_and_another_may_after_it() {
    let rig = Rig::new(Setup::default());
    let start = || {
        let options = ServerOptions::new(socket_path());
        Server::start(rig.device.clone(), options, Arc::new(|_| {}))
    };
    assert!(matches!(start(), Err(Error::AlreadyServed)));
    rig.server.close().unwrap();
    start().unwrap();
}

#[test]
fn close_ends_the_session_within_a_bounded_time_even_behind_an_access() {
    let rig = Rig::new(Setup {
        manual: true,
        access_timeout: Duration::from_secs(30),
        ..Setup::default()
    });
    let mut client = rig.guest();
    client.region_write_posted(0, 18, &[1]).unwrap();
    let access = rig.access();
    let start = Instant::now();
    rig.server.close().unwrap();
    assert!(start.elapsed() < Duration::from_secs(2));
    assert!(matches!(client.receive_raw(), Err(ClientError::Closed)));
    assert!(!rig.device.respond(access.id, None));
    assert!(rig.has_event("client-disconnected"));
}
