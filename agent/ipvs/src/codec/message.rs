//! Whole messages and the attributes of their first level.

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, ErrorContext, NLA_F_NESTED, Nla, NlaBuffer, NlasIterator,
    Parseable, ParseableParametrized, parse_u32,
};
use netlink_packet_generic::{GenlFamily, GenlHeader};

use super::{DestinationAttr, InfoAttr, ServiceAttr, parse_attrs, uapi};

/// A command of the family, an `IPVS_CMD_*` number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Command(pub u8);

impl Command {
    /// Add a service; also how the kernel describes one.
    pub const NEW_SERVICE: Self = Self(uapi::IPVS_CMD_NEW_SERVICE);
    /// Update a service.
    pub const SET_SERVICE: Self = Self(uapi::IPVS_CMD_SET_SERVICE);
    /// Delete a service and its destinations.
    pub const DEL_SERVICE: Self = Self(uapi::IPVS_CMD_DEL_SERVICE);
    /// Describe one service, or dump all.
    pub const GET_SERVICE: Self = Self(uapi::IPVS_CMD_GET_SERVICE);
    /// Add a destination; also how the kernel describes one.
    pub const NEW_DEST: Self = Self(uapi::IPVS_CMD_NEW_DEST);
    /// Update a destination.
    pub const SET_DEST: Self = Self(uapi::IPVS_CMD_SET_DEST);
    /// Delete a destination.
    pub const DEL_DEST: Self = Self(uapi::IPVS_CMD_DEL_DEST);
    /// Dump the destinations of a service.
    pub const GET_DEST: Self = Self(uapi::IPVS_CMD_GET_DEST);
    /// Set the connection timeouts; also how the kernel answers [`Self::GET_CONFIG`].
    pub const SET_CONFIG: Self = Self(uapi::IPVS_CMD_SET_CONFIG);
    /// Read the connection timeouts.
    pub const GET_CONFIG: Self = Self(uapi::IPVS_CMD_GET_CONFIG);
    /// How the kernel answers [`Self::GET_INFO`].
    pub const SET_INFO: Self = Self(uapi::IPVS_CMD_SET_INFO);
    /// Describe IPVS itself.
    pub const GET_INFO: Self = Self(uapi::IPVS_CMD_GET_INFO);
    /// Delete all services of the network namespace.
    pub const FLUSH: Self = Self(uapi::IPVS_CMD_FLUSH);
}

/// An attribute of the first level.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attr {
    /// `IPVS_CMD_ATTR_SERVICE`.
    Service(Vec<ServiceAttr>),
    /// `IPVS_CMD_ATTR_DEST`.
    Destination(Vec<DestinationAttr>),
    /// `IPVS_CMD_ATTR_TIMEOUT_TCP`: seconds.
    TimeoutTcpS(u32),
    /// `IPVS_CMD_ATTR_TIMEOUT_TCP_FIN`: seconds.
    TimeoutTcpFinS(u32),
    /// `IPVS_CMD_ATTR_TIMEOUT_UDP`: seconds.
    TimeoutUdpS(u32),
    /// `IPVS_INFO_ATTR_*`, which only [`Command::SET_INFO`] carries.
    Info(InfoAttr),
    /// Anything else, as it came.
    Other(DefaultNla),
}

impl Nla for Attr {
    fn value_len(&self) -> usize {
        match self {
            Self::Service(attrs) => attrs.as_slice().buffer_len(),
            Self::Destination(attrs) => attrs.as_slice().buffer_len(),
            Self::TimeoutTcpS(_) | Self::TimeoutTcpFinS(_) | Self::TimeoutUdpS(_) => 4,
            Self::Info(attr) => attr.value_len(),
            Self::Other(attr) => attr.value_len(),
        }
    }

    fn kind(&self) -> u16 {
        match self {
            Self::Service(_) => uapi::IPVS_CMD_ATTR_SERVICE | NLA_F_NESTED,
            Self::Destination(_) => uapi::IPVS_CMD_ATTR_DEST | NLA_F_NESTED,
            Self::TimeoutTcpS(_) => uapi::IPVS_CMD_ATTR_TIMEOUT_TCP,
            Self::TimeoutTcpFinS(_) => uapi::IPVS_CMD_ATTR_TIMEOUT_TCP_FIN,
            Self::TimeoutUdpS(_) => uapi::IPVS_CMD_ATTR_TIMEOUT_UDP,
            Self::Info(attr) => attr.kind(),
            Self::Other(attr) => attr.kind(),
        }
    }

    fn emit_value(&self, buffer: &mut [u8]) {
        match self {
            Self::Service(attrs) => attrs.as_slice().emit(buffer),
            Self::Destination(attrs) => attrs.as_slice().emit(buffer),
            Self::TimeoutTcpS(value) | Self::TimeoutTcpFinS(value) | Self::TimeoutUdpS(value) => {
                buffer.copy_from_slice(&value.to_ne_bytes());
            }
            Self::Info(attr) => attr.emit_value(buffer),
            Self::Other(attr) => attr.emit_value(buffer),
        }
    }
}

impl Attr {
    fn parse(attr: &NlaBuffer<&[u8]>, command: Command) -> Result<Self, DecodeError> {
        if command == Command::SET_INFO {
            return InfoAttr::parse(attr).map(Self::Info);
        }
        match attr.kind() {
            uapi::IPVS_CMD_ATTR_SERVICE => parse_attrs(attr.value())
                .context("service attributes")
                .map(Self::Service),
            uapi::IPVS_CMD_ATTR_DEST => parse_attrs(attr.value())
                .context("destination attributes")
                .map(Self::Destination),
            uapi::IPVS_CMD_ATTR_TIMEOUT_TCP => parse_u32(attr.value())
                .context("TIMEOUT_TCP")
                .map(Self::TimeoutTcpS),
            uapi::IPVS_CMD_ATTR_TIMEOUT_TCP_FIN => parse_u32(attr.value())
                .context("TIMEOUT_TCP_FIN")
                .map(Self::TimeoutTcpFinS),
            uapi::IPVS_CMD_ATTR_TIMEOUT_UDP => parse_u32(attr.value())
                .context("TIMEOUT_UDP")
                .map(Self::TimeoutUdpS),
            _ => DefaultNla::parse(attr).map(Self::Other),
        }
    }
}

/// A message of the family: what follows the generic netlink header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpvsMessage {
    /// What is asked or told.
    pub command: Command,
    /// About what.
    pub attrs: Vec<Attr>,
}

impl IpvsMessage {
    /// The service attributes, if there are any.
    pub fn service(&self) -> Option<&[ServiceAttr]> {
        self.attrs.iter().find_map(|attr| match attr {
            Attr::Service(attrs) => Some(attrs.as_slice()),
            _ => None,
        })
    }

    /// The destination attributes, if there are any.
    pub fn destination(&self) -> Option<&[DestinationAttr]> {
        self.attrs.iter().find_map(|attr| match attr {
            Attr::Destination(attrs) => Some(attrs.as_slice()),
            _ => None,
        })
    }
}

impl GenlFamily for IpvsMessage {
    fn family_name() -> &'static str {
        uapi::IPVS_GENL_NAME
    }

    fn command(&self) -> u8 {
        self.command.0
    }

    fn version(&self) -> u8 {
        uapi::IPVS_GENL_VERSION
    }
}

impl Emitable for IpvsMessage {
    fn buffer_len(&self) -> usize {
        self.attrs.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.attrs.as_slice().emit(buffer);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for IpvsMessage {
    fn parse_with_param(bytes: &[u8], header: GenlHeader) -> Result<Self, DecodeError> {
        let command = Command(header.cmd);
        let attrs = NlasIterator::new(bytes)
            .map(|attr| Attr::parse(&attr?, command))
            .collect::<Result<_, _>>()?;
        Ok(Self { command, attrs })
    }
}
