//! Made-up packets of either IP version, with extension headers, in fragments, inside ICMP errors.

use std::net::IpAddr;

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMP: u8 = 1;
pub(super) const ICMP6: u8 = 58;

/// A fragment's place in its packet.
#[derive(Clone, Copy)]
pub(super) struct Fragment {
    pub(super) id: u32,
    /// In units of eight bytes.
    pub(super) offset: u16,
    pub(super) more: bool,
}

/// A packet, to be changed field by field.
#[derive(Clone)]
pub(super) struct Packet {
    pub(super) source_mac: [u8; 6],
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    /// IPv6 extension headers but for the fragment header: kind, and what comes after the kind of
    /// the next.
    pub(super) extensions: Vec<(u8, Vec<u8>)>,
    pub(super) fragment: Option<Fragment>,
    pub(super) protocol: u8,
    pub(super) body: Vec<u8>,
}

impl Packet {
    fn new(source: IpAddr, destination: IpAddr, protocol: u8, body: Vec<u8>) -> Self {
        Self {
            source_mac: [0x02, 0, 0, 0, 0, 0x01],
            source,
            destination,
            extensions: Vec::new(),
            fragment: None,
            protocol,
            body,
        }
    }

    pub(super) fn tcp(source: (IpAddr, u16), destination: (IpAddr, u16), flags: u8) -> Self {
        let mut body = ports(source.1, destination.1);
        body.extend([0; 8]);
        body.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        Self::new(source.0, destination.0, TCP, body)
    }

    pub(super) fn udp(source: (IpAddr, u16), destination: (IpAddr, u16)) -> Self {
        let mut body = ports(source.1, destination.1);
        body.extend([0, 8, 0, 0]);
        Self::new(source.0, destination.0, UDP, body)
    }

    /// An error from `source` to the sender of `about`.
    pub(super) fn error(source: IpAddr, kind: u8, about: &Self) -> Self {
        let protocol = if source.is_ipv4() { ICMP } else { ICMP6 };
        let mut body = vec![kind, 0, 0, 0, 0, 0, 0x05, 0x00];
        body.extend(about.ip());
        Self::new(source, about.source, protocol, body)
    }

    /// The same packet as a fragment.
    pub(super) fn fragment(&self, id: u32, offset: u16, more: bool) -> Self {
        let mut fragment = self.clone();
        if offset > 0 {
            // No ports there, but something.
            fragment.body = vec![0xff; 24];
        }
        fragment.fragment = Some(Fragment { id, offset, more });
        fragment
    }

    /// From the IP header on.
    fn ip(&self) -> Vec<u8> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut bytes = vec![0x45, 0];
                bytes.extend((20 + self.body.len() as u16).to_be_bytes());
                let (id, offset) = self.fragment.map_or((1, 0), |fragment| {
                    let more = if fragment.more { 0x2000 } else { 0 };
                    (fragment.id as u16, more | fragment.offset)
                });
                bytes.extend(id.to_be_bytes());
                bytes.extend(offset.to_be_bytes());
                bytes.extend([64, self.protocol, 0, 0]);
                bytes.extend(source.octets());
                bytes.extend(destination.octets());
                bytes.extend(&self.body);
                bytes
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let (first, chain) = self.chain();
                let mut bytes = vec![0x60, 0, 0, 0];
                bytes.extend((chain.len() as u16).to_be_bytes());
                bytes.extend([first, 64]);
                bytes.extend(source.octets());
                bytes.extend(destination.octets());
                bytes.extend(chain);
                bytes
            }
            _ => panic!("addresses of two IP versions"),
        }
    }

    /// Everything after an IPv6 header, and what it begins with.
    fn chain(&self) -> (u8, Vec<u8>) {
        let (mut next, mut bytes) = (self.protocol, self.body.clone());
        if let Some(fragment) = self.fragment {
            let mut header = vec![next, 0];
            header.extend((fragment.offset << 3 | u16::from(fragment.more)).to_be_bytes());
            header.extend(fragment.id.to_be_bytes());
            (next, bytes) = (44, [header, bytes].concat());
        }
        for (kind, content) in self.extensions.iter().rev() {
            let header = [vec![next], content.clone()].concat();
            assert_eq!(header.len() % 8, 0);
            (next, bytes) = (*kind, [header, bytes].concat());
        }
        (next, bytes)
    }

    /// From the Ethernet header on.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut frame = vec![0x02, 0, 0, 0, 0, 0x02];
        frame.extend(self.source_mac);
        let kind: u16 = if self.source.is_ipv4() {
            0x0800
        } else {
            0x86dd
        };
        frame.extend(kind.to_be_bytes());
        frame.extend(self.ip());
        frame
    }
}

fn ports(source: u16, destination: u16) -> Vec<u8> {
    [source.to_be_bytes(), destination.to_be_bytes()].concat()
}
