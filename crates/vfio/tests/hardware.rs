//! What VFIO does with a real PF and its VF, both on vfio-pci. Needs a machine with an IOMMU and root:
//! the lab runs it, with the addresses in the environment (PF, and VFS, of which the first is taken):
//! `hardware --ignored --test-threads=1`. VIA=group or cdev chooses the way in.

use std::fs;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{channel, Receiver};
use std::sync::Arc;

use retrovf_pci::{
    Bdf, DmaAccess, DmaBacking, DmaMapping, Error as PciError, Function, IrqAction, IrqIndex,
    IrqRequest, QueueIndex, Region, RemoteMemory, SharedMemory, Vectors,
};
use retrovf_spec::pci;
use retrovf_vfio::{open, Error, Event, OpenOptions, Token, VfioFunction, Via};
use rustix::event::{eventfd, EventfdFlags};

const TOKEN: &str = "00112233-4455-6677-8899-aabbccddeeff";
const OTHER: &str = "ffeeddcc-bbaa-9988-7766-554433221100";
const LIMIT: &str = "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit";

fn address(variable: &str) -> Bdf {
    let value = std::env::var(variable).unwrap();
    value.split_whitespace().next().unwrap().parse().unwrap()
}

fn way() -> Via {
    match std::env::var("VIA").as_deref() {
        Ok("group") => Via::Group,
        Ok("cdev") => Via::Cdev,
        _ => Via::Auto,
    }
}

fn options(token: Option<&str>) -> OpenOptions {
    OpenOptions {
        via: way(),
        token: token.map(|text| text.parse::<Token>().unwrap()),
        ..OpenOptions::default()
    }
}

fn open_vf(token: Option<&str>) -> Result<Arc<VfioFunction>, Error> {
    open(address("VFS"), &options(token), |_| {})
}

/// The PF, held while its VF is used: the VF is worth nothing without.
struct Pair {
    vf: Arc<VfioFunction>,
    _pf: Arc<VfioFunction>,
}

fn pair() -> Pair {
    let pf = open(address("PF"), &options(Some(TOKEN)), |_| {}).unwrap();
    let vf = open_vf(Some(TOKEN)).unwrap();
    Pair { vf, _pf: pf }
}

fn counter() -> OwnedFd {
    eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap()
}

fn count(fd: &OwnedFd) -> u64 {
    let mut bytes = [0; 8];
    match rustix::io::read(fd, &mut bytes) {
        Ok(_) => u64::from_ne_bytes(bytes),
        Err(_) => 0,
    }
}

fn request(function: &dyn Function, start: u32, action: IrqAction) -> Result<(), PciError> {
    function.set_irqs(IrqRequest {
        index: IrqIndex::MSIX,
        start,
        action,
    })
}

fn mapping(size: u64, access: DmaAccess) -> DmaMapping {
    let memory = Arc::new(SharedMemory::anonymous(size as usize).unwrap());
    DmaMapping {
        size,
        access,
        backing: DmaBacking::Shared { memory, offset: 0 },
    }
}

fn page() -> DmaMapping {
    mapping(4096, DmaAccess::READ_WRITE)
}

fn command(function: &dyn Function) -> u16 {
    let mut bytes = [0; 2];
    function.config_read(pci::COMMAND, &mut bytes).unwrap();
    u16::from_le_bytes(bytes)
}

#[test]
#[ignore = "needs a PF and a VF on vfio-pci"]
fn a_vf_opens_with_the_token_of_its_pf_only_and_only_once() {
    let pf = open(address("PF"), &options(Some(TOKEN)), |_| {}).unwrap();
    for token in [None, Some(OTHER)] {
        let error = open_vf(token).unwrap_err();
        assert!(matches!(error, Error::Token { given, .. } if given == token.is_some()));
    }
    let vf = open_vf(Some(TOKEN)).unwrap();
    assert_eq!(open_vf(Some(TOKEN)).unwrap_err().code(), "ERR_DEVICE_BUSY");
    drop(vf);
    // A stranger at the PF changes nothing.
    let stranger = open(address("PF"), &options(Some(OTHER)), |_| {}).unwrap_err();
    assert_eq!(stranger.code(), "ERR_DEVICE_BUSY");
    drop(open_vf(Some(TOKEN)).unwrap());
    drop(pf);
    // Once more with another token: nobody has a VF open.
    let _pf = open(address("PF"), &options(Some(OTHER)), |_| {}).unwrap();
    open_vf(Some(OTHER)).unwrap();
}

#[test]
#[ignore = "needs a PF and a VF on vfio-pci"]
fn the_node_of_the_function_is_not_there_without_iommufd() {
    let options = OpenOptions {
        via: Via::Cdev,
        ..options(Some(TOKEN))
    };
    if std::path::Path::new("/dev/iommu").exists() {
        open(address("PF"), &options, |_| {}).unwrap();
        return;
    }
    let error = open(address("PF"), &options, |_| {}).unwrap_err();
    assert_eq!(error.code(), "ERR_VFIO_UNAVAILABLE");
}

#[test]
#[ignore = "needs a PF and a VF on vfio-pci"]
fn a_vf_shows_its_ids_regions_and_interrupts() {
    let pair = pair();
    let mut ids = [0; 4];
    pair.vf.config_read(pci::VENDOR_ID, &mut ids).unwrap();
    assert_eq!(ids, [0xf4, 0x1a, 0x41, 0x10]);
    assert_eq!(pair.vf.config_size(), 4096);
    assert_eq!(pair.vf.region(Region(0)).unwrap().size, 0);
    let bar = pair.vf.region(Region(4)).unwrap();
    assert!(bar.size >= 0x4000 && bar.readable && bar.writable);
    let mut byte = [0];
    let outside = pair.vf.region_read(Region(4), bar.size, &mut byte);
    assert!(matches!(outside, Err(PciError::OutOfRange { .. })));
    assert!(pair.vf.region_read(Region(0), 0, &mut byte).is_err());
    assert!(pair.vf.config_read(4096, &mut byte).is_err());
    assert_eq!(pair.vf.irq(IrqIndex::INTX).count, 0);
    assert!(pair.vf.irq(IrqIndex::MSIX).count >= 3);
    assert_eq!(pair.vf.irq(IrqIndex::REQ).count, 0);
}

#[test]
#[ignore = "needs a PF and a VF on vfio-pci"]
fn vectors_are_installed_fired_added_to_detached_and_disabled() {
    let pair = pair();
    let vf = &*pair.vf;
    let fds: Vec<OwnedFd> = (0..3).map(|_| counter()).collect();
    let copy = |n: usize| Some(fds[n].try_clone().unwrap());
    let counts = || fds.iter().map(count).collect::<Vec<_>>();
    let fire = |n| request(vf, 0, IrqAction::Fire(Vectors::Count(n)));
    assert!(fire(1).is_err());
    request(vf, 1, IrqAction::Install(vec![copy(1)])).unwrap();
    request(vf, 0, IrqAction::Install(vec![copy(0)])).unwrap();
    fire(2).unwrap();
    assert_eq!(counts(), [1, 1, 0]);
    // More than were enabled at first, whether or not the kernel can add to them.
    request(vf, 2, IrqAction::Install(vec![copy(2)])).unwrap();
    fire(3).unwrap();
    assert_eq!(counts(), [1, 1, 1]);
    let flags = Vectors::Flags(vec![true, false, true]);
    request(vf, 0, IrqAction::Fire(flags)).unwrap();
    assert_eq!(counts(), [1, 0, 1]);
    request(vf, 1, IrqAction::Install(vec![None])).unwrap();
    fire(3).unwrap();
    assert_eq!(counts(), [1, 0, 1]);
    let mask = IrqAction::Mask(Vectors::Count(1));
    assert!(matches!(request(vf, 0, mask), Err(PciError::Irq { .. })));
    let file = fs::File::open("/dev/null").unwrap();
    assert!(request(vf, 0, IrqAction::Install(vec![Some(file.into())])).is_err());
    request(vf, 0, IrqAction::Disable).unwrap();
    request(vf, 0, IrqAction::Disable).unwrap();
    assert!(fire(1).is_err());
    request(vf, 0, IrqAction::Install(vec![copy(0), None, copy(2)])).unwrap();
    fire(3).unwrap();
    assert_eq!(counts(), [1, 0, 1]);
}

#[test]
#[ignore = "needs a PF and a VF on vfio-pci"]
fn an_unmap_may_cover_several_mappings_holes_or_nothing_but_not_cut_one() {
    let pair = pair();
    let vf = &*pair.vf;
    vf.dma_map(0x10_0000, mapping(0x10_0000, DmaAccess::READ_WRITE))
        .unwrap();
    let read_only = DmaAccess {
        read: true,
        write: false,
    };
    vf.dma_map(0x40_0000, mapping(0x1000, read_only)).unwrap();
    let overlap = vf.dma_map(0x1f_f000, page());
    assert!(matches!(overlap, Err(PciError::DmaOverlap { .. })));
    assert!(vf.dma_unmap(0x10_0000, 0x1000).is_err());
    assert_eq!(vf.dma_unmap(0x80_0000, 0x1000).unwrap(), 0);
    assert_eq!(vf.dma_unmap(0, 0x1_0000_0000).unwrap(), 0x10_1000);
    vf.dma_map(0x10_0000, page()).unwrap();
    vf.dma_unmap_all().unwrap();
    vf.dma_map(0x10_0000, page()).unwrap();
}

#[test]
#[ignore = "needs a PF and a VF on vfio-pci"]
fn what_the_iommu_cannot_serve_is_refused_with_its_reason() {
    let pair = pair();
    let vf = &*pair.vf;
    // Where the processors take interrupts.
    let code = |result: Result<(), PciError>| result.unwrap_err().code();
    assert_eq!(code(vf.dma_map(0xfee0_0000, page())), "ERR_DMA_MAP");
    struct Nowhere;
    impl RemoteMemory for Nowhere {
        fn read(
            &self,
            iova: u64,
            out: &mut [u8],
            _: &std::sync::atomic::AtomicBool,
        ) -> Result<(), PciError> {
            let len = out.len() as u64;
            Err(PciError::DmaFault { iova, len })
        }
        fn write(
            &self,
            iova: u64,
            data: &[u8],
            _: &std::sync::atomic::AtomicBool,
        ) -> Result<(), PciError> {
            let len = data.len() as u64;
            Err(PciError::DmaFault { iova, len })
        }
        fn wake(&self) {}
    }
    let remote = DmaMapping {
        backing: DmaBacking::Remote(Arc::new(Nowhere)),
        ..page()
    };
    assert_eq!(code(vf.dma_map(0x1000, remote)), "ERR_DMA_NOT_SHARED");
    // A peer that shrinks its file under a mapping, before and while the device has it.
    let fd = rustix::fs::memfd_create(c"peer", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, 8192).unwrap();
    let memory = SharedMemory::from_fd(fd.try_clone().unwrap(), 0, 8192, true).unwrap();
    let memory = Arc::new(memory);
    let part = |offset| DmaMapping {
        backing: DmaBacking::Shared {
            memory: Arc::clone(&memory),
            offset,
        },
        ..page()
    };
    vf.dma_map(0x1000, part(0)).unwrap();
    rustix::fs::ftruncate(&fd, 0).unwrap();
    assert_eq!(code(vf.dma_map(0x2000, part(4096))), "ERR_IO");
    assert_eq!(vf.dma_unmap(0x1000, 0x1000).unwrap(), 0x1000);
}

#[test]
#[ignore = "needs a PF and a VF on vfio-pci"]
fn the_kernel_s_limit_on_mappings_is_reported() {
    let before = fs::read_to_string(LIMIT).unwrap();
    fs::write(LIMIT, "2").unwrap();
    // The limit of the container: iommufd has none.
    let by_group = |bdf| {
        let options = OpenOptions {
            via: Via::Group,
            ..options(Some(TOKEN))
        };
        open(bdf, &options, |_| {}).unwrap()
    };
    let _pf = by_group(address("PF"));
    let vf = by_group(address("VFS"));
    fs::write(LIMIT, before).unwrap();
    let map = |n: u64| vf.dma_map(n * 0x1000, page());
    map(1).unwrap();
    map(2).unwrap();
    let error = map(3).unwrap_err();
    assert!(matches!(error, PciError::DmaLimit { limit: 2 }), "{error}");
    assert_eq!(error.code(), "ERR_DMA_LIMIT");
}

#[test]
#[ignore = "needs a PF and a VF on vfio-pci"]
fn a_reset_ends_bus_mastering_and_keeps_mappings_and_vectors() {
    let pair = pair();
    let vf = &*pair.vf;
    let fd = counter();
    let install = IrqAction::Install(vec![Some(fd.try_clone().unwrap())]);
    request(vf, 0, install).unwrap();
    vf.dma_map(0x1000, page()).unwrap();
    let master = command(vf) | pci::COMMAND_MASTER;
    vf.config_write(pci::COMMAND, &master.to_le_bytes())
        .unwrap();
    assert_ne!(command(vf) & pci::COMMAND_MASTER, 0);
    vf.reset().unwrap();
    assert_eq!(command(vf) & pci::COMMAND_MASTER, 0);
    request(vf, 0, IrqAction::Fire(Vectors::Count(1))).unwrap();
    assert_eq!(count(&fd), 1);
    assert_eq!(vf.dma_unmap(0x1000, 0x1000).unwrap(), 0x1000);
}

/// Where the lab's VF has its notify word.
const NOTIFY: u64 = 0x4000;

#[test]
#[ignore = "needs a PF and a VF on vfio-pci"]
fn the_kernel_takes_each_queue_of_a_notify_address_once() {
    let pair = pair();
    let target = pair.vf.notify_target(Region(4), NOTIFY).unwrap();
    let fd = Arc::new(counter());
    let armed = target.arm(QueueIndex(0), &fd).unwrap().unwrap();
    assert!(target.arm(QueueIndex(0), &fd).unwrap().is_err());
    let other = Arc::new(counter());
    target.arm(QueueIndex(1), &other).unwrap().unwrap();
    drop(armed);
    target.arm(QueueIndex(0), &fd).unwrap().unwrap();
    assert!(pair.vf.notify_target(Region(4), NOTIFY + 1).is_err());
    let size = pair.vf.region(Region(4)).unwrap().size;
    assert!(pair.vf.notify_target(Region(4), size - 1).is_err());
}

#[test]
#[ignore = "needs a PF and a VF on vfio-pci"]
fn a_notification_survives_whatever_a_guest_does_to_power_memory_and_reset() {
    let pair = pair();
    let vf = &*pair.vf;
    let target = vf.notify_target(Region(4), NOTIFY).unwrap();
    target.ring(QueueIndex(0));
    let mut config = [0; pci::CONFIG_SIZE];
    vf.config_read(0, &mut config).unwrap();
    let find = |id| {
        let mut at = usize::from(config[pci::CAPABILITY_LIST]);
        while at != 0 && config[at] != id {
            at = usize::from(config[at + 1]);
        }
        (at != 0).then_some(at)
    };
    let power = find(pci::CAP_POWER);
    println!("power management capability: {power:?}");
    if let Some(at) = power {
        let control = at + pci::POWER_CONTROL;
        for (offset, data) in [(control, &[3, 0][..]), (at, &[0, 0, 0, 0, 3, 0, 0, 0])] {
            vf.config_write(offset, data).unwrap();
            target.ring(QueueIndex(0));
            let mut state = [0; 2];
            vf.config_read(control, &mut state).unwrap();
            assert_eq!(u16::from_le_bytes(state) & pci::POWER_CONTROL_STATE, 0);
        }
    }
    vf.config_write(pci::COMMAND, &[0, 0]).unwrap();
    target.ring(QueueIndex(0));
    // The function level reset bit of the PCI Express capability, while another thread rings.
    let express = find(pci::CAP_EXPRESS).unwrap();
    std::thread::scope(|scope| {
        let ringing = scope.spawn(|| (0..20_000).for_each(|_| target.ring(QueueIndex(0))));
        vf.config_write(express + 8, &(1u16 << 15).to_le_bytes())
            .unwrap();
        vf.reset().unwrap();
        ringing.join().unwrap();
    });
    target.ring(QueueIndex(0));
}

#[test]
#[ignore = "needs a PF and a VF on vfio-pci"]
fn the_host_that_unbinds_a_function_is_heard_and_waits_until_it_is_closed() {
    let pf = open(address("PF"), &options(Some(TOKEN)), |_| {}).unwrap();
    let (send, events): (_, Receiver<Event>) = channel();
    let bdf = address("VFS");
    let vf = open(bdf, &options(Some(TOKEN)), move |event| {
        send.send(event).unwrap()
    })
    .unwrap();
    let driver = "/sys/bus/pci/drivers/vfio-pci";
    let unbind = std::thread::spawn(move || {
        fs::write(format!("{driver}/unbind"), bdf.to_string()).unwrap();
    });
    let patience = std::time::Duration::from_secs(10);
    assert_eq!(events.recv_timeout(patience), Ok(Event::UnplugRequested));
    assert!(!unbind.is_finished());
    drop(vf);
    unbind.join().unwrap();
    assert_eq!(
        open_vf(Some(TOKEN)).unwrap_err().code(),
        "ERR_VFIO_NOT_BOUND"
    );
    fs::write(format!("{driver}/bind"), bdf.to_string()).unwrap();
    open_vf(Some(TOKEN)).unwrap();
    drop(pf);
}
