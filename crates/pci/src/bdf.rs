use std::fmt;
use std::str::FromStr;

/// A PCI address: domain, bus, device, function.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bdf {
    domain: u16,
    bus: u8,
    devfn: u8,
}

impl Bdf {
    /// Takes `device` modulo 32 and `function` modulo 8.
    pub const fn new(domain: u16, bus: u8, device: u8, function: u8) -> Self {
        Self {
            domain,
            bus,
            devfn: (device & 0x1f) << 3 | (function & 7),
        }
    }

    /// The address `n` functions further, as SR-IOV counts VFs (offset and stride over routing ids).
    pub const fn plus(self, n: u16) -> Self {
        let routing = ((self.bus as u16) << 8 | self.devfn as u16).wrapping_add(n);
        Self {
            domain: self.domain,
            bus: (routing >> 8) as u8,
            devfn: routing as u8,
        }
    }
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:04x}:{:02x}:{:02x}.{}",
            self.domain,
            self.bus,
            self.devfn >> 3,
            self.devfn & 7
        )
    }
}

impl fmt::Debug for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a PCI address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a PCI address of the form DDDD:BB:DD.F")]
pub struct BdfSyntax(String);

impl FromStr for Bdf {
    type Err = BdfSyntax;

    /// Accepts `DDDD:BB:DD.F` and, for domain 0, `BB:DD.F`.
    fn from_str(text: &str) -> std::result::Result<Self, BdfSyntax> {
        parse(text).ok_or_else(|| BdfSyntax(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Bdf> {
    let hex = |part: &str, digits: usize| {
        (part.len() == digits && part.bytes().all(|b| b.is_ascii_hexdigit()))
            .then(|| u16::from_str_radix(part, 16).ok())
            .flatten()
    };
    let (address, function) = text.rsplit_once('.')?;
    let (rest, device) = address.rsplit_once(':')?;
    let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0000", rest));
    let device = u8::try_from(hex(device, 2)?).ok().filter(|&d| d < 32)?;
    let function = u8::try_from(hex(function, 1)?).ok().filter(|&f| f < 8)?;
    Some(Bdf::new(
        hex(domain, 4)?,
        u8::try_from(hex(bus, 2)?).ok()?,
        device,
        function,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_a_round_trip() {
        for text in ["0000:03:00.2", "ffff:ff:1f.7"] {
            assert_eq!(text.parse::<Bdf>().unwrap().to_string(), text);
        }
        assert_eq!(
            "03:00.1".parse::<Bdf>().unwrap().to_string(),
            "0000:03:00.1"
        );
    }

    #[test]
    fn malformed_addresses_are_refused() {
        for text in [
            "",
            "3:0.1",
            "0000:03:20.0",
            "0000:03:00.8",
            "+000:03:00.1",
            "0000:03:00",
        ] {
            assert!(text.parse::<Bdf>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn routing_ids_carry_into_the_bus_number() {
        let pf = Bdf::new(0, 3, 0, 0);
        assert_eq!(pf.plus(9).to_string(), "0000:03:01.1");
        assert_eq!(pf.plus(256).to_string(), "0000:04:00.0");
    }
}
