//! Names of signals, as images and people write them.

use std::str::FromStr as _;

/// First real-time signal the C library leaves to programs (`SIGRTMIN`, glibc and musl differ from
/// the kernel's 32 for their own use; Docker counts from glibc's).
const SIGRTMIN: u32 = 34;
/// Last real-time signal (`SIGRTMAX`, `asm/signal.h`).
const SIGRTMAX: u32 = 64;
/// `SIGTERM`, what stops a process when nobody says otherwise.
pub(super) const SIGTERM: u32 = 15;
/// `SIGKILL`.
pub(super) const SIGKILL: u32 = 9;

/// Number of a signal given as `SIGQUIT`, `quit`, `3`, `SIGRTMIN+3` or `SIGRTMAX-1`.
pub(super) fn parse_signal(text: &str) -> Option<u32> {
    if let Ok(number) = text.parse::<u32>() {
        return (1..=SIGRTMAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = if let Some(offset) = name.strip_prefix("RTMIN") {
        Some(SIGRTMIN.checked_add(parse_offset(offset, '+')?)?)
    } else if let Some(offset) = name.strip_prefix("RTMAX") {
        Some(SIGRTMAX.checked_sub(parse_offset(offset, '-')?)?)
    } else {
        None
    };
    match real_time {
        Some(number) => (SIGRTMIN..=SIGRTMAX).contains(&number).then_some(number),
        None => {
            let signal = nix::sys::signal::Signal::from_str(&format!("SIG{name}")).ok()?;
            u32::try_from(signal as i32).ok()
        }
    }
}

fn parse_offset(text: &str, sign: char) -> Option<u32> {
    if text.is_empty() {
        Some(0)
    } else {
        text.strip_prefix(sign)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_many_names() {
        let table = [
            ("SIGQUIT", Some(3)),
            ("quit", Some(3)),
            ("sigterm", Some(SIGTERM)),
            ("KILL", Some(SIGKILL)),
            ("28", Some(28)),
            ("SIGRTMIN", Some(34)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("0", None),
            ("65", None),
            ("-3", None),
            ("", None),
            ("SIG", None),
            ("SIGNONE", None),
            ("SIGRTMIN-1", None),
            ("SIGRTMIN+31", None),
            ("SIGRTMAX-99", None),
            ("SIGRTMIN+4294967295", None),
        ];
        for (text, expected) in table {
            assert_eq!(parse_signal(text), expected, "{text:?}");
        }
    }
}
