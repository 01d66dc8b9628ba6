//! What the generic netlink controller says of a family.

use netlink_packet_core::{
    DecodeError, ErrorContext, NlasIterator, ParseableParametrized, parse_u16,
};
use netlink_packet_generic::GenlHeader;

/// `CTRL_ATTR_FAMILY_ID` of include/uapi/linux/genetlink.h.
const CTRL_ATTR_FAMILY_ID: u16 = 1;

/// Number of a family, read from a `CTRL_CMD_NEWFAMILY` message.
///
/// Everything else in the message is passed over: `netlink_packet_generic`'s own reader refuses
/// attributes it does not know, which would tie this crate to kernels older than itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FamilyId(pub u16);

impl ParseableParametrized<[u8], GenlHeader> for FamilyId {
    fn parse_with_param(bytes: &[u8], _header: GenlHeader) -> Result<Self, DecodeError> {
        for attr in NlasIterator::new(bytes) {
            let attr = attr?;
            if attr.kind() == CTRL_ATTR_FAMILY_ID {
                return parse_u16(attr.value()).context("FAMILY_ID").map(Self);
            }
        }
        Err("family without an id".into())
    }
}
