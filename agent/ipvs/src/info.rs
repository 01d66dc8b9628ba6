//! What the kernel says of its IPVS as a whole.

use std::fmt;

use netlink_packet_core::DecodeError;

use crate::codec::{Attr, InfoAttr};

/// Version of the kernel's IPVS, `IP_VS_VERSION_CODE` taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// First number.
    pub major: u8,
    /// Second number.
    pub minor: u8,
    /// Third number.
    pub patch: u8,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// Answer to `IPVS_CMD_GET_INFO`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Info {
    /// Version of the kernel's IPVS.
    pub version: Version,
    /// Buckets of the connection hash table.
    pub connection_table_size: u32,
}

impl Info {
    /// Reads the attributes of an `IPVS_CMD_SET_INFO` message; both must be there.
    pub fn from_attrs(attrs: &[Attr]) -> Result<Self, DecodeError> {
        let mut version = None;
        let mut connection_table_size = None;
        for attr in attrs {
            match attr {
                Attr::Info(InfoAttr::Version(code)) => {
                    let [_, major, minor, patch] = code.to_be_bytes();
                    version = Some(Version {
                        major,
                        minor,
                        patch,
                    });
                }
                Attr::Info(InfoAttr::ConnectionTableSize(size)) => {
                    connection_table_size = Some(*size);
                }
                _ => {}
            }
        }
        Ok(Self {
            version: version.ok_or("info without a version")?,
            connection_table_size: connection_table_size.ok_or("info without a table size")?,
        })
    }
}
