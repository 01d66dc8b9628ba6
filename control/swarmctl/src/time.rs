//! Durations as Docker writes and reads them.

use std::time::Duration;

/// How long ago, roughly, in Docker's words.
pub(crate) fn ago(since: Duration) -> String {
    let seconds = since.as_secs();
    let text = match seconds {
        0 => "less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "about a minute".to_owned(),
        120..3600 => format!("{} minutes", seconds / 60),
        3600..7200 => "about an hour".to_owned(),
        7200..172_800 => format!("{} hours", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    };
    format!("{text} ago")
}

/// Reads a duration such as `1m30s`, `500ms` or `0`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let invalid = || format!("{text:?} is not a duration: write for example 10s, 1m30s or 500ms");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest[..digits].parse().map_err(|_| invalid())?;
        rest = &rest[digits..];
        let units = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];
        let (unit, milliseconds) = units
            .into_iter()
            .find(|(unit, _)| rest.starts_with(unit))
            .ok_or_else(invalid)?;
        rest = &rest[unit.len()..];
        let part = number.checked_mul(milliseconds).ok_or_else(invalid)?;
        total = total
            .checked_add(Duration::from_millis(part))
            .ok_or_else(invalid)?;
    }
    if text.is_empty() {
        Err(invalid())
    } else {
        Ok(total)
    }
}

/// In milliseconds, as the wire has it.
pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read() {
        for (text, milliseconds) in [
            ("0", 0),
            ("10s", 10_000),
            ("1m30s", 90_000),
            ("500ms", 500),
            ("1h", 3_600_000),
            ("2160h0m0s", 7_776_000_000),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(milliseconds)),
                "{text}"
            );
        }
        for text in ["", "10", "s", "1x", "-1s", "1 s", "99999999999999999999s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ages_are_rough() {
        assert_eq!(ago(Duration::from_millis(300)), "less than a second ago");
        assert_eq!(ago(Duration::from_secs(59)), "59 seconds ago");
        assert_eq!(ago(Duration::from_secs(61)), "about a minute ago");
        assert_eq!(ago(Duration::from_secs(7300)), "2 hours ago");
    }
}
