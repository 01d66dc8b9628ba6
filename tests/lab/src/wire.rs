//! How a command travels into the lab and its output out of it: one connection per command.
//!
//! A frame is one byte of kind, four bytes of length (big endian) and that many bytes. The first
//! frame is [`Frame::Start`] from the outside; the last is [`Frame::Exit`] or [`Frame::Refused`]
//! from the inside. A connection that closes before that ends the command.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

/// Largest payload of a data frame; readers split what is longer.
pub const MAX_DATA_BYTES: usize = 64 * 1024;

/// Largest payload accepted at all: a request with a long argument list fits, a stray peer's
/// garbage does not.
const MAX_PAYLOAD_BYTES: usize = 1024 * 1024;

/// What to run inside the lab.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Request {
    /// The secret of this lab, from the file only its owner can read.
    pub token: String,
    /// Program and arguments; the program is looked up in [`crate::SEARCH_PATH`].
    pub argv: Vec<String>,
    /// The host whose namespaces to run in (`h1`, `client`); the lab's first namespaces when
    /// absent.
    pub host: Option<String>,
    /// Environment on top of the lab's own.
    pub env: Vec<(String, String)>,
    /// Working directory; `/root` when absent.
    pub directory: Option<String>,
    /// Run on a terminal of this size; on pipes when absent.
    pub terminal: Option<TerminalSize>,
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters per line.
    pub columns: u16,
}

/// Where a lab's server listens and what it wants to hear; `boot.json` in the shared directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// Required in every [`Request`].
    pub token: String,
    /// TCP port to listen on; a Unix socket in the shared directory when absent.
    pub port: Option<u16>,
}

/// Name of the file that carries [`Boot`], in the shared directory.
pub const BOOT_FILE: &str = "boot.json";

/// Name of the Unix socket of a lab without a virtual machine, in the shared directory.
pub const SOCKET_FILE: &str = "exec.sock";

/// One message on the connection.
#[derive(Debug)]
pub enum Frame {
    /// Outside to inside: run this.
    Start(Request),
    /// Outside to inside: bytes for the command's standard input.
    Stdin(Vec<u8>),
    /// Outside to inside: standard input ends here.
    StdinEnd,
    /// Outside to inside: signal number for the command's process group.
    Signal(i32),
    /// Outside to inside: the terminal has another size now.
    Resize(TerminalSize),
    /// Inside to outside: bytes of standard output (of both outputs, on a terminal).
    Stdout(Vec<u8>),
    /// Inside to outside: bytes of standard error.
    Stderr(Vec<u8>),
    /// Inside to outside: the command ended with this code (128 + signal when killed by one).
    Exit(i32),
    /// Inside to outside: the command was never started, and why.
    Refused(String),
}

impl Frame {
    /// Writes the frame in one go.
    ///
    /// # Errors
    /// Whatever the connection gives; a request that cannot be encoded.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let (kind, payload) = match self {
            Self::Start(request) => (1, serde_json::to_vec(request)?),
            Self::Stdin(bytes) => (2, bytes.clone()),
            Self::StdinEnd => (3, Vec::new()),
            Self::Signal(number) => (4, number.to_be_bytes().to_vec()),
            Self::Resize(size) => (5, serde_json::to_vec(size)?),
            Self::Stdout(bytes) => (6, bytes.clone()),
            Self::Stderr(bytes) => (7, bytes.clone()),
            Self::Exit(code) => (8, code.to_be_bytes().to_vec()),
            Self::Refused(reason) => (9, reason.clone().into_bytes()),
        };
        let length = u32::try_from(payload.len()).map_err(|_| invalid("frame too long"))?;
        let mut message = Vec::with_capacity(5 + payload.len());
        message.push(kind);
        message.extend_from_slice(&length.to_be_bytes());
        message.extend_from_slice(&payload);
        to.write_all(&message)
    }

    /// Reads one frame; `None` when the peer closed between frames.
    ///
    /// # Errors Whatever the connection gives; [`io::ErrorKind::InvalidData`] for anything that is
    /// not a frame.
    pub fn read(from: &mut impl Read) -> io::Result<Option<Self>> {
        let mut kind = [0; 1];
        if from.read(&mut kind)? == 0 {
            return Ok(None);
        }
        let mut length = [0; 4];
        from.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length) as usize;
        if length > MAX_PAYLOAD_BYTES {
            return Err(invalid("frame too long"));
        }
        let mut payload = vec![0; length];
        from.read_exact(&mut payload)?;
        Ok(Some(match kind[0] {
            1 => Self::Start(serde_json::from_slice(&payload)?),
            2 => Self::Stdin(payload),
            3 => Self::StdinEnd,
            4 => Self::Signal(number(&payload)?),
            5 => Self::Resize(serde_json::from_slice(&payload)?),
            6 => Self::Stdout(payload),
            7 => Self::Stderr(payload),
            8 => Self::Exit(number(&payload)?),
            9 => Self::Refused(String::from_utf8_lossy(&payload).into_owned()),
            _ => return Err(invalid("unknown kind of frame")),
        }))
    }
}

fn number(payload: &[u8]) -> io::Result<i32> {
    let bytes = payload
        .try_into()
        .map_err(|_| invalid("number of another length"))?;
    Ok(i32::from_be_bytes(bytes))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(frame: &Frame) -> Frame {
        let mut bytes = Vec::new();
        frame.write(&mut bytes).unwrap();
        Frame::read(&mut bytes.as_slice()).unwrap().unwrap()
    }

    #[test]
    fn every_frame_survives_the_wire() {
        let request = Request {
            token: "t".into(),
            argv: vec!["echo".into(), "ä b".into()],
            host: Some("h1".into()),
            env: vec![("A".into(), "1".into())],
            directory: Some("/tmp".into()),
            terminal: Some(TerminalSize {
                rows: 24,
                columns: 80,
            }),
        };
        let frames = [
            Frame::Start(request),
            Frame::Stdin(vec![0, 255, 10]),
            Frame::StdinEnd,
            Frame::Signal(2),
            Frame::Resize(TerminalSize {
                rows: 1,
                columns: 2,
            }),
            Frame::Stdout(Vec::new()),
            Frame::Stderr(vec![7; MAX_DATA_BYTES]),
            Frame::Exit(-1),
            Frame::Refused("no such host".into()),
        ];
        for frame in &frames {
            assert_eq!(format!("{frame:?}"), format!("{:?}", round_trip(frame)));
        }
    }

    #[test]
    fn end_between_frames_is_an_end_and_within_one_an_error() {
        assert!(Frame::read(&mut [].as_slice()).unwrap().is_none());
        let error = Frame::read(&mut [2, 0, 0, 0, 9, 1].as_slice()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn garbage_is_refused_before_it_is_allocated() {
        let error = Frame::read(&mut [2, 255, 255, 255, 255].as_slice()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let error = Frame::read(&mut [200, 0, 0, 0, 0].as_slice()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
