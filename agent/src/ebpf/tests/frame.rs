//! Made-up packets.

use std::net::Ipv4Addr;

pub(super) const FIN: u8 = 0x01;
pub(super) const SYN: u8 = 0x02;
pub(super) const RST: u8 = 0x04;
pub(super) const ACK: u8 = 0x10;

/// A client, the node it asks, and the task that answers.
pub(super) const CLIENT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
pub(super) const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
pub(super) const TASK: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 9);

const TCP: u8 = 6;
const UDP: u8 = 17;

/// An Ethernet frame with IPv4 and TCP or UDP in it, to be changed field by field.
#[derive(Clone)]
pub(crate) struct Frame {
    pub(super) destination_mac: [u8; 6],
    pub(super) source_mac: [u8; 6],
    pub(super) ether_type: u16,
    pub(super) source: Ipv4Addr,
    pub(super) destination: Ipv4Addr,
    pub(super) protocol: u8,
    pub(super) source_port: u16,
    pub(super) destination_port: u16,
    pub(super) tcp_flags: u8,
    /// In 32-bit words.
    pub(super) header_words: u8,
    /// Offset in units of eight bytes.
    pub(super) fragment_offset: u16,
    pub(super) payload: Vec<u8>,
}

impl Frame {
    fn new(protocol: u8, source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16)) -> Self {
        Self {
            destination_mac: [0x02, 0, 0, 0, 0, 0x02],
            source_mac: [0x02, 0, 0, 0, 0, 0x01],
            ether_type: 0x0800,
            source: source.0,
            destination: destination.0,
            protocol,
            source_port: source.1,
            destination_port: destination.1,
            tcp_flags: ACK,
            header_words: 5,
            fragment_offset: 0,
            payload: Vec::new(),
        }
    }

    pub(crate) fn tcp(source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16)) -> Self {
        Self::new(TCP, source, destination)
    }

    pub(super) fn udp(source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16)) -> Self {
        Self::new(UDP, source, destination)
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let transport = self.transport();
        let header_len = usize::from(self.header_words) * 4;
        let mut frame = [self.destination_mac, self.source_mac].concat();
        frame.extend(self.ether_type.to_be_bytes());
        let start = frame.len();
        frame.extend([0x40 | self.header_words, 0]);
        frame.extend(((header_len + transport.len()) as u16).to_be_bytes());
        frame.extend([0, 1]);
        frame.extend(self.fragment_offset.to_be_bytes());
        frame.extend([64, self.protocol, 0, 0]);
        frame.extend(self.source.octets());
        frame.extend(self.destination.octets());
        // Options: no operation.
        frame.resize(start + header_len.max(20), 1);
        let sum = !sum(&frame[start..]);
        frame[start + 10..start + 12].copy_from_slice(&sum.to_be_bytes());
        frame.extend(transport);
        frame
    }

    fn transport(&self) -> Vec<u8> {
        let mut bytes = self.source_port.to_be_bytes().to_vec();
        bytes.extend(self.destination_port.to_be_bytes());
        if self.protocol == TCP {
            bytes.extend([0; 8]);
            bytes.extend([0x50, self.tcp_flags, 0xff, 0xff, 0, 0, 0, 0]);
        } else {
            bytes.extend((8 + self.payload.len() as u16).to_be_bytes());
            // No checksum, which UDP over IPv4 permits.
            bytes.extend([0, 0]);
        }
        bytes.extend(&self.payload);
        bytes
    }
}

/// RFC 1071: the sum of the words, 0xffff where a right checksum is among them.
pub(super) fn sum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
