//! Subnets.

use std::net::Ipv6Addr;

use ipnet::Ipv6Net;
use rand::RngExt as _;

/// A unique local IPv6 prefix of 64 bits (RFC 4193): `fd`, then 56 random bits where the RFC has a
/// global id of 40 and a subnet id of 16.
pub(super) fn unique_local(rng: &mut impl rand::Rng) -> Ipv6Net {
    let random = u128::from(rng.random::<u64>() >> 8);
    let prefix = 0xfd << 120 | random << 64;
    Ipv6Net::new_assert(Ipv6Addr::from(prefix), 64)
}
