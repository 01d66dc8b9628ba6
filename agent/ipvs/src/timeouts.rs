//! How long a connection is remembered without a packet.

use std::fmt;

use netlink_packet_core::DecodeError;

use crate::codec::Attr;

/// `IPVS_CMD_SET_CONFIG`: of the whole network namespace. They count from a connection's next
/// packet on; its present timer stays (net/netfilter/ipvs/ip_vs_proto_tcp.c, `set_tcp_state`).
///
/// The kernel takes 0 for "as it is" and refuses what does not fit its clock (2^31 ticks: 24 days
/// at 1000 Hz).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Timeouts {
    /// Established TCP connections, in seconds. 900 by default.
    pub tcp_s: u32,
    /// TCP connections after a FIN, in seconds. 120 by default.
    pub tcp_fin_s: u32,
    /// UDP flows, in seconds. 300 by default.
    pub udp_s: u32,
}

impl Timeouts {
    /// The attributes of an `IPVS_CMD_SET_CONFIG` message.
    #[must_use]
    pub fn attrs(&self) -> Vec<Attr> {
        let Self {
            tcp_s,
            tcp_fin_s,
            udp_s,
        } = *self;
        vec![
            Attr::TimeoutTcpS(tcp_s),
            Attr::TimeoutTcpFinS(tcp_fin_s),
            Attr::TimeoutUdpS(udp_s),
        ]
    }

    /// Reads such attributes. One that is not there is 0: the kernel leaves out those of a protocol
    /// that it was built without.
    ///
    /// # Errors
    /// When there is none of them at all.
    pub fn from_attrs(attrs: &[Attr]) -> Result<Self, DecodeError> {
        let mut timeouts = Self {
            tcp_s: 0,
            tcp_fin_s: 0,
            udp_s: 0,
        };
        let mut found = false;
        for attr in attrs {
            let field = match attr {
                Attr::TimeoutTcpS(value) => (&mut timeouts.tcp_s, value),
                Attr::TimeoutTcpFinS(value) => (&mut timeouts.tcp_fin_s, value),
                Attr::TimeoutUdpS(value) => (&mut timeouts.udp_s, value),
                _ => continue,
            };
            *field.0 = *field.1;
            found = true;
        }
        if found {
            Ok(timeouts)
        } else {
            Err("configuration without a timeout".into())
        }
    }
}

impl fmt::Display for Timeouts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "tcp {} s, after a FIN {} s, udp {} s",
            self.tcp_s, self.tcp_fin_s, self.udp_s
        )
    }
}
