//! As much of HTTP/1.1 as the clients need: one request at a time, answers with a length.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// Longest head of an answer; the test image's are 200 bytes.
const HEAD_BYTES_MAX: usize = 4096;

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    /// Whether an answer has come on it.
    is_used: bool,
}

/// What came of a request.
#[derive(Debug)]
pub(super) enum Asked {
    /// A whole answer. `closes`: the connection has served its time.
    Answered {
        /// Whether the server will close the connection.
        closes: bool,
    },
    /// Nothing, on a connection that had been used before: the request may be sent again.
    Unanswered(anyhow::Error),
    /// Something is wrong.
    Failed(anyhow::Error),
}

/// The first line and the fields of an answer that matter.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    length: u64,
    closes: bool,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// When it is refused, or not answered within `limit`.
    pub(super) fn open(at: SocketAddr, limit: Duration) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&at, limit).context("connecting")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        Ok(Self {
            stream,
            is_used: false,
        })
    }

    /// Whether the server has closed it meanwhile.
    pub(super) fn is_closed(&self) -> bool {
        let ahead = || -> std::io::Result<usize> {
            self.stream.set_nonblocking(true)?;
            let read = self.stream.peek(&mut [0]);
            self.stream.set_nonblocking(false)?;
            read
        };
        !matches!(ahead(), Err(error) if error.kind() == ErrorKind::WouldBlock)
    }

    /// Asks and reads the whole answer: of status `status`, and `length` bytes where that is given.
    pub(super) fn ask(&mut self, request: &str, status: u16, length: Option<u64>) -> Asked {
        let mut received = Vec::with_capacity(1024);
        match self.exchange(request, &mut received, status, length) {
            Ok(closes) => {
                self.is_used = true;
                Asked::Answered { closes }
            }
            Err(error) if self.is_used && received.is_empty() && is_cut(&error) => {
                Asked::Unanswered(error)
            }
            Err(error) => Asked::Failed(error),
        }
    }

    fn exchange(
        &mut self,
        request: &str,
        received: &mut Vec<u8>,
        status: u16,
        length: Option<u64>,
    ) -> Result<bool> {
        self.stream
            .write_all(request.as_bytes())
            .context("asking")?;
        let mut buffer = [0; 16 * 1024];
        let end = loop {
            let count = self.stream.read(&mut buffer).context("reading")?;
            if count == 0 {
                let cut = std::io::Error::from(ErrorKind::UnexpectedEof);
                return Err(cut).context("closed before an answer");
            }
            received.extend_from_slice(&buffer[..count]);
            if let Some(end) = received.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            ensure!(received.len() < HEAD_BYTES_MAX, "no end of the head");
        };
        let head = parse(&received[..end])?;
        ensure!(head.status == status, "status {}", head.status);
        if let Some(length) = length {
            ensure!(head.length == length, "{} bytes announced", head.length);
        }
        let mut left = head
            .length
            .checked_sub((received.len() - end) as u64)
            .context("more than announced")?;
        while left > 0 {
            let count = self.stream.read(&mut buffer).context("reading")?;
            ensure!(count > 0, "closed {left} bytes before the end");
            left = left
                .checked_sub(count as u64)
                .context("more than announced")?;
        }
        Ok(head.closes)
    }
}

/// Whether the connection ended, as opposed to silence or nonsense.
fn is_cut(error: &anyhow::Error) -> bool {
    let kind = error
        .downcast_ref::<std::io::Error>()
        .map(std::io::Error::kind);
    matches!(
        kind,
        Some(ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
    )
}

fn parse(head: &[u8]) -> Result<Head> {
    let text = std::str::from_utf8(head).context("a head that is no text")?;
    let mut lines = text.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let status = first.split(' ').nth(1).and_then(|word| word.parse().ok());
    let Some(status) = status else {
        bail!("no status in {first:?}");
    };
    let field = |name: &str| {
        let found = text.split("\r\n").filter_map(|line| line.split_once(':'));
        let mut found = found.filter(|(key, _)| key.eq_ignore_ascii_case(name));
        found.next().map(|(_, value)| value.trim())
    };
    let length = field("content-length").context("an answer without a length")?;
    Ok(Head {
        status,
        length: length.parse().context("content-length")?,
        closes: field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")),
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    const ANSWER: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    const LIMIT: Duration = Duration::from_secs(5);

    /// A server that answers the connections it gets with these pieces, one after each request.
    fn server(connections: Vec<Vec<&'static str>>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for pieces in connections {
                let (mut stream, _) = listener.accept().unwrap();
                for piece in pieces {
                    let mut buffer = [0; 1024];
                    assert!(stream.read(&mut buffer).unwrap() > 0);
                    stream.write_all(piece.as_bytes()).unwrap();
                }
            }
        });
        address
    }

    fn ask(connection: &mut Connection) -> Asked {
        connection.ask("GET / HTTP/1.1\r\n\r\n", 200, None)
    }

    #[test]
    fn heads_are_read() {
        let head =
            b"HTTP/1.1 206 Partial Content\r\nCONNECTION: close\r\nContent-Length: 9\r\n\r\n";
        let expected = Head {
            status: 206,
            length: 9,
            closes: true,
        };
        assert_eq!(parse(head).unwrap(), expected);
        assert!(parse(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
        assert!(parse(b"nonsense\r\n\r\n").is_err());
    }

    #[test]
    fn a_connection_that_ends_after_its_first_answer_allows_a_second_try() {
        let mut connection = Connection::open(server(vec![vec![ANSWER]]), LIMIT).unwrap();
        assert!(matches!(
            ask(&mut connection),
            Asked::Answered { closes: false }
        ));
        assert!(matches!(ask(&mut connection), Asked::Unanswered(_)));
        assert!(connection.is_closed());
    }

    #[test]
    fn the_first_request_of_a_connection_has_one_try_and_half_an_answer_is_none() {
        let at = server(vec![
            vec![""],
            vec![ANSWER, "HTTP/1.1 2"],
            vec!["HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok"],
        ]);
        let mut connection = Connection::open(at, LIMIT).unwrap();
        assert!(matches!(ask(&mut connection), Asked::Failed(_)));
        let mut connection = Connection::open(at, LIMIT).unwrap();
        assert!(matches!(ask(&mut connection), Asked::Answered { .. }));
        assert!(!connection.is_closed());
        assert!(matches!(ask(&mut connection), Asked::Failed(_)));
        let mut connection = Connection::open(at, LIMIT).unwrap();
        assert!(matches!(ask(&mut connection), Asked::Failed(_)));
    }

    #[test]
    fn another_status_or_length_is_a_failure() {
        let at = server(vec![vec![ANSWER], vec![ANSWER]]);
        let mut connection = Connection::open(at, LIMIT).unwrap();
        assert!(matches!(
            connection.ask("GET /\r\n", 206, None),
            Asked::Failed(_)
        ));
        let mut connection = Connection::open(at, LIMIT).unwrap();
        assert!(matches!(
            connection.ask("GET /\r\n", 200, Some(3)),
            Asked::Failed(_)
        ));
    }
}
