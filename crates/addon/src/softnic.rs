//! The embedded NIC.

use std::time::Duration;

use napi::bindgen_prelude::Buffer;
use napi_derive::napi;
use retrovf_softnic::{CommandFilter, Config, Fault, NotifyEntries, SoftNic as Nic, Uplink};

use crate::failure::{Failure, Result, Throw};
use crate::function::{bdf, PciFunction};

#[napi(object)]
pub struct UplinkOptions {
    pub kind: String,
    pub path: Option<String>,
    pub name: Option<String>,
}

#[napi(object)]
pub struct SoftNicOptions {
    pub bdf: Option<String>,
    pub vfs: Option<u32>,
    pub total_vfs: Option<u32>,
    pub queue_pairs: Option<u32>,
    pub queue_size: Option<u32>,
    pub msix_vectors: Option<u32>,
    pub mac: Option<String>,
    pub uplink: Option<UplinkOptions>,
    pub admin_opcodes: Option<u32>,
    pub notify: Option<String>,
}

#[napi(object)]
pub struct SoftNicFault {
    pub kind: String,
    pub opcode: Option<u32>,
    pub member: Option<u32>,
    pub count: Option<u32>,
    pub status: Option<u32>,
    pub qualifier: Option<u32>,
    pub delay_ms: Option<u32>,
    pub entries: Option<Buffer>,
    pub bdf: Option<String>,
}

#[napi(object)]
pub struct SoftNicStats {
    pub bdf: String,
    pub tx_frames: f64,
    pub rx_frames: f64,
    pub rx_dropped: f64,
    pub kicks: f64,
}

type Checked<T> = std::result::Result<T, Failure>;

fn word(value: u32, what: &str) -> Checked<u16> {
    u16::try_from(value).map_err(|_| Failure::invalid(format!("{what} {value} exceeds 65535")))
}

fn mac(text: &str) -> Checked<[u8; 6]> {
    let syntax = || Failure::invalid(format!("{text:?} is not a MAC address"));
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts
            .next()
            .filter(|part| part.len() == 2)
            .ok_or_else(syntax)?;
        *byte = u8::from_str_radix(part, 16).map_err(|_| syntax())?;
    }
    parts.next().map_or(Ok(mac), |_| Err(syntax()))
}

fn config(options: SoftNicOptions) -> Checked<Config> {
    let defaults = Config::default();
    let number = |value: Option<u32>, default, what| value.map_or(Ok(default), |n| word(n, what));
    let queue_pairs = number(options.queue_pairs, defaults.queue_pairs, "Queue pairs")?;
    // One vector a queue, the control queue included, and one for configuration changes.
    let vectors = queue_pairs.saturating_mul(2).saturating_add(2);
    let vfs = number(options.vfs, defaults.vfs, "VFs")?;
    Ok(Config {
        bdf: options.bdf.as_deref().map_or(Ok(defaults.bdf), bdf)?,
        vfs,
        total_vfs: number(options.total_vfs, defaults.total_vfs.max(vfs), "Total VFs")?,
        queue_pairs,
        queue_size: number(options.queue_size, defaults.queue_size, "Queue size")?,
        msix_vectors: number(options.msix_vectors, vectors, "MSI-X vectors")?,
        mac: options.mac.as_deref().map_or(Ok(defaults.mac), mac)?,
        uplink: options.uplink.map_or(Ok(defaults.uplink), uplink)?,
        admin_opcodes: options
            .admin_opcodes
            .map_or(defaults.admin_opcodes, u64::from),
        notify: match options.notify.as_deref() {
            None | Some("member") => NotifyEntries::Member,
            Some("owner") => NotifyEntries::Owner,
            Some("none") => NotifyEntries::None,
            Some(other) => {
                return Err(Failure::invalid(format!(
                    "Notify entries {other:?} are not known"
                )))
            }
        },
    })
}

fn uplink(options: UplinkOptions) -> Checked<Uplink> {
    match (options.kind.as_str(), options.path, options.name) {
        ("none", ..) => Ok(Uplink::None),
        ("gateway", ..) => Ok(Uplink::Gateway),
        ("unix", Some(path), _) => Ok(Uplink::Unix(path.into())),
        ("tap", _, Some(name)) => Ok(Uplink::Tap(name)),
        (kind, ..) => Err(Failure::invalid(format!(
            "Uplink {kind:?} is incomplete or unknown"
        ))),
    }
}

fn fault(options: SoftNicFault) -> Checked<Fault> {
    let filter = CommandFilter {
        opcode: options
            .opcode
            .map(|opcode| word(opcode, "Opcode"))
            .transpose()?,
        member: options.member.map(u64::from),
        count: options.count.unwrap_or(1),
    };
    let missing = |what| Failure::invalid(format!("Fault {:?} needs {what}", options.kind));
    let target = || bdf(options.bdf.as_deref().ok_or_else(|| missing("a bdf"))?);
    Ok(match options.kind.as_str() {
        "command-status" => Fault::CommandStatus {
            filter,
            status: word(options.status.ok_or_else(|| missing("a status"))?, "Status")?,
            qualifier: word(options.qualifier.unwrap_or(0), "Qualifier")?,
        },
        "no-completion" => Fault::NoCompletion { filter },
        "slow-completion" => Fault::SlowCompletion {
            filter,
            delay: Duration::from_millis(
                options.delay_ms.ok_or_else(|| missing("delayMs"))?.into(),
            ),
        },
        "notify-info" => {
            let entries = options
                .entries
                .as_deref()
                .and_then(|bytes| bytes.try_into().ok());
            Fault::NotifyInfo {
                filter,
                entries: entries.ok_or_else(|| missing("64 entry bytes"))?,
            }
        }
        "device-reset" => Fault::DeviceReset { bdf: target()? },
        "function-gone" => Fault::FunctionGone { bdf: target()? },
        kind => return Err(Failure::invalid(format!("Fault {kind:?} is not known"))),
    })
}

#[napi]
pub struct SoftNic {
    nic: Option<Nic>,
}

impl SoftNic {
    fn get(&self) -> Checked<&Nic> {
        self.nic
            .as_ref()
            .ok_or_else(|| Failure::closed("The SoftNIC"))
    }
}

#[napi]
impl SoftNic {
    #[napi(constructor)]
    pub fn new(options: Option<SoftNicOptions>) -> Result<Self> {
        let config = options
            .map_or_else(|| Ok(Config::default()), config)
            .or_throw()?;
        Ok(Self {
            nic: Some(Nic::new(config).or_throw()?),
        })
    }

    #[napi(getter)]
    pub fn owner(&self) -> Result<String> {
        Ok(self.get().or_throw()?.owner().to_string())
    }

    #[napi]
    pub fn members(&self) -> Result<Vec<String>> {
        Ok(self
            .get()
            .or_throw()?
            .members()
            .iter()
            .map(ToString::to_string)
            .collect())
    }

    #[napi]
    pub fn set_num_vfs(&self, count: u32) -> Result<()> {
        let count = word(count, "VFs").or_throw()?;
        self.get().or_throw()?.set_num_vfs(count).or_throw()
    }

    #[napi]
    pub fn open(&self, address: String) -> Result<PciFunction> {
        let address = bdf(&address).or_throw()?;
        Ok(PciFunction::new(
            self.get().or_throw()?.open(address).or_throw()?,
        ))
    }

    #[napi]
    pub fn inject(&self, options: SoftNicFault) -> Result<()> {
        let fault = fault(options).or_throw()?;
        self.get().or_throw()?.inject(fault).or_throw()
    }

    #[napi]
    pub fn clear_faults(&self) -> Result<()> {
        self.get().or_throw()?.clear_faults();
        Ok(())
    }

    #[napi]
    pub fn stats(&self) -> Result<Vec<SoftNicStats>> {
        let stats = self.get().or_throw()?.stats();
        Ok(stats
            .into_iter()
            .map(|function| SoftNicStats {
                bdf: function.bdf.to_string(),
                tx_frames: function.tx_frames as f64,
                rx_frames: function.rx_frames as f64,
                rx_dropped: function.rx_dropped as f64,
                kicks: function.kicks as f64,
            })
            .collect())
    }

    #[napi]
    pub fn close(&mut self) {
        if let Some(nic) = self.nic.take() {
            nic.close();
        }
    }
}
