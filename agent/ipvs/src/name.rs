//! Names of schedulers and persistence engines.

use std::fmt;
use std::str::FromStr;

/// Bytes of a name without its NUL: `IP_VS_SCHEDNAME_MAXLEN` and `IP_VS_PENAME_MAXLEN` are 16.
const MAX_BYTES: usize = 15;

/// Name of a scheduler (`rr`, `mh`, ...) or a persistence engine (`sip`): 1 to 15 bytes of UTF-8
/// without a NUL.
///
/// Whether the kernel has a module of that name only shows when a service is added.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// The name, then zeros.
    bytes: [u8; MAX_BYTES],
}

/// A text that cannot be a [`Name`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("name {name:?} is not 1 to 15 bytes without a NUL")]
pub struct InvalidName {
    /// The text.
    pub name: String,
}

impl Name {
    /// Round robin.
    pub const RR: Self = Self::of(b"rr");
    /// Weighted round robin.
    pub const WRR: Self = Self::of(b"wrr");
    /// Least connections.
    pub const LC: Self = Self::of(b"lc");
    /// Weighted least connections, `ipvsadm`'s default.
    pub const WLC: Self = Self::of(b"wlc");
    /// Source hashing.
    pub const SH: Self = Self::of(b"sh");
    /// Maglev hashing. Nodes agree on its table only when destinations are added in one order.
    pub const MH: Self = Self::of(b"mh");

    /// The name with this text, or [`InvalidName`].
    pub fn new(text: &str) -> Result<Self, InvalidName> {
        let valid = (1..=MAX_BYTES).contains(&text.len()) && !text.contains('\0');
        if !valid {
            return Err(InvalidName {
                name: text.to_owned(),
            });
        }
        Ok(Self::of(text.as_bytes()))
    }

    /// Copies a text known to be valid.
    const fn of(text: &[u8]) -> Self {
        let mut bytes = [0; MAX_BYTES];
        let mut at = 0;
        while at < text.len() {
            bytes[at] = text[at];
            at += 1;
        }
        Self { bytes }
    }

    /// The text of the name.
    pub fn as_str(&self) -> &str {
        let length = self
            .bytes
            .iter()
            .position(|&byte| byte == 0)
            .unwrap_or(MAX_BYTES);
        std::str::from_utf8(&self.bytes[..length]).expect("made from a str in every constructor")
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Name({:?})", self.as_str())
    }
}

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        Self::new(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_one_to_fifteen_bytes() {
        assert_eq!(Name::new("rr").unwrap(), Name::RR);
        assert_eq!(
            Name::new("fifteen_bytes_x").unwrap().as_str(),
            "fifteen_bytes_x"
        );
        for bad in ["", "sixteen_bytes_xx", "r\0r"] {
            assert!(Name::new(bad).is_err(), "{bad:?}");
        }
    }
}
