use std::os::fd::OwnedFd;

use retrovf_pci::{IrqAction, IrqIndex, IrqInfo, IrqRequest, Vectors};

use crate::wire::{
    u32_at, IRQ_ACTION_MASK, IRQ_ACTION_TRIGGER, IRQ_ACTION_UNMASK, IRQ_DATA_BOOL,
    IRQ_DATA_EVENTFD, IRQ_DATA_NONE, SET_IRQS_SIZE,
};

const DATA: u32 = IRQ_DATA_NONE | IRQ_DATA_BOOL | IRQ_DATA_EVENTFD;
const ACTION: u32 = IRQ_ACTION_MASK | IRQ_ACTION_UNMASK | IRQ_ACTION_TRIGGER;

/// Reads a SET_IRQS payload. `None` is a request that makes no sense (EINVAL); nothing is allocated
/// before the range was checked against what the device has.
///
/// The header's `argsz` is not looked at: QEMU always says 20 there, whatever data follows.
pub(crate) fn parse(
    payload: &[u8],
    mut fds: Vec<OwnedFd>,
    info: impl Fn(IrqIndex) -> IrqInfo,
) -> Option<IrqRequest> {
    let flags = u32_at(payload, 4)?;
    let index = IrqIndex(u32_at(payload, 8)?);
    let start = u32_at(payload, 12)?;
    let count = u32_at(payload, 16)?;
    let data = payload.get(SET_IRQS_SIZE..)?;
    let (kind, action) = (flags & DATA, flags & ACTION);
    if flags & !(DATA | ACTION) != 0 || !kind.is_power_of_two() || !action.is_power_of_two() {
        return None;
    }
    if index.0 >= IrqIndex::COUNT || (kind != IRQ_DATA_EVENTFD && !fds.is_empty()) {
        return None;
    }
    let request = |action| {
        Some(IrqRequest {
            index,
            start,
            action,
        })
    };
    if count == 0 {
        // The way to disable all vectors, whether or not there are any.
        let disable = kind == IRQ_DATA_NONE && action == IRQ_ACTION_TRIGGER;
        return disable.then_some(IrqAction::Disable).and_then(request);
    }
    let has = info(index).count;
    if start >= has || count > has - start {
        return None;
    }
    let length = usize::try_from(count).ok()?;
    if kind == IRQ_DATA_EVENTFD {
        // An array of descriptors is sent in runs: all there, or none at all, which detaches.
        let attach = fds.len() == length;
        if !attach && !fds.is_empty() {
            return None;
        }
        return match action {
            IRQ_ACTION_TRIGGER if attach => {
                request(IrqAction::Install(fds.into_iter().map(Some).collect()))
            }
            IRQ_ACTION_TRIGGER => request(IrqAction::Install((0..length).map(|_| None).collect())),
            // KVM's resample descriptor of INTx.
            IRQ_ACTION_UNMASK if length == 1 => request(IrqAction::UnmaskOn(fds.pop())),
            _ => None,
        };
    }
    let vectors = if kind == IRQ_DATA_BOOL {
        Vectors::Flags(data.get(..length)?.iter().map(|&flag| flag != 0).collect())
    } else {
        Vectors::Count(count)
    };
    request(match action {
        IRQ_ACTION_MASK => IrqAction::Mask(vectors),
        IRQ_ACTION_UNMASK => IrqAction::Unmask(vectors),
        _ => IrqAction::Fire(vectors),
    })
}
