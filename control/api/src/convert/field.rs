//! Reading and writing single fields.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;
use std::time::Duration;

use swarm_model::{InvalidId, Timestamp};

use super::ConvertError;

/// Longest part of a wrong text that is repeated in an error; longer than any right one.
const MAX_QUOTED_CHARS: usize = 64;

/// An id that must be there.
pub(super) fn id<T>(field: &'static str, text: String) -> Result<T, ConvertError>
where
    T: TryFrom<String, Error = InvalidId>,
{
    if text.is_empty() {
        return Err(ConvertError::Missing { field });
    }
    T::try_from(text).map_err(|source| ConvertError::Id { field, source })
}

/// An id that may be absent.
pub(super) fn optional_id<T>(field: &'static str, text: String) -> Result<Option<T>, ConvertError>
where
    T: TryFrom<String, Error = InvalidId>,
{
    if text.is_empty() {
        Ok(None)
    } else {
        id(field, text).map(Some)
    }
}

/// Text in the form of `T`, which `expected` names, that must be there.
pub(super) fn parsed<T: FromStr>(
    field: &'static str,
    expected: &'static str,
    text: &str,
) -> Result<T, ConvertError> {
    if text.is_empty() {
        return Err(ConvertError::Missing { field });
    }
    text.parse().map_err(|_| ConvertError::Address {
        field,
        text: text.chars().take(MAX_QUOTED_CHARS).collect(),
        expected,
    })
}

/// Text in the form of `T`, which `expected` names, that may be absent.
pub(super) fn optional_parsed<T: FromStr>(
    field: &'static str,
    expected: &'static str,
    text: &str,
) -> Result<Option<T>, ConvertError> {
    (!text.is_empty())
        .then(|| parsed(field, expected, text))
        .transpose()
}

/// An IP address that may be absent.
pub(super) fn optional_ip(field: &'static str, text: &str) -> Result<Option<IpAddr>, ConvertError> {
    optional_parsed(field, "an IP address", text)
}

/// An IPv4 address that may be absent.
pub(super) fn optional_ipv4(
    field: &'static str,
    text: &str,
) -> Result<Option<Ipv4Addr>, ConvertError> {
    optional_parsed(field, "an IPv4 address", text)
}

/// What may be absent, as text.
pub(super) fn optional_text(value: Option<impl ToString>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}

/// A port number.
pub(super) fn port(field: &'static str, value: u32) -> Result<u16, ConvertError> {
    u16::try_from(value).map_err(|_| ConvertError::Range {
        field,
        value: value.into(),
        min: 0,
        max: u16::MAX.into(),
    })
}

/// A duration in whole milliseconds; one of more than 500 million years becomes just that.
pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds since the epoch.
pub(super) fn epoch_ms(timestamp: Timestamp) -> u64 {
    let Timestamp(milliseconds) = timestamp;
    milliseconds
}

pub(super) fn labels_to_wire(labels: &BTreeMap<String, String>) -> HashMap<String, String> {
    labels.clone().into_iter().collect()
}

/// The model form of a sub-message; the model's default when it is absent.
pub(super) fn or_default<W, M>(message: Option<W>) -> Result<M, ConvertError>
where
    M: TryFrom<W, Error = ConvertError> + Default,
{
    message.map_or_else(|| Ok(M::default()), M::try_from)
}

/// The model form of every message, up to the first that has none.
pub(super) fn each<W, M>(messages: Vec<W>) -> Result<Vec<M>, ConvertError>
where
    M: TryFrom<W, Error = ConvertError>,
{
    messages.into_iter().map(M::try_from).collect()
}
