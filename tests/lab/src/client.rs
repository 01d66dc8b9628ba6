//! The outside of a lab: start a command in it, follow it to its end.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::wire::{Frame, Request};

/// How long the way in may take to open; a virtual machine that is up answers in milliseconds.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// Where a lab takes commands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Endpoint {
    /// A port on 127.0.0.1 that leads into the virtual machine.
    Port(u16),
    /// A Unix socket, of a lab on this machine's own kernel.
    Socket(PathBuf),
}

impl Endpoint {
    fn connect(&self) -> Result<File> {
        let descriptor: OwnedFd = match self {
            Self::Port(port) => {
                let address = SocketAddr::from((Ipv4Addr::LOCALHOST, *port));
                let stream = TcpStream::connect_timeout(&address, CONNECT_DEADLINE)?;
                stream.set_nodelay(true)?;
                stream.into()
            }
            Self::Socket(path) => {
                // Through the directory's descriptor: a socket path may not be longer than 107
                // bytes, a workspace's may.
                let name = path.file_name().context("socket without a name")?;
                let directory = File::open(path.parent().context("socket without a directory")?)?;
                let short = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
                UnixStream::connect(short.join(name))?.into()
            }
        };
        Ok(File::from(descriptor))
    }
}

/// A command under way in the lab. Dropping it ends the command.
#[derive(Debug)]
pub struct Session {
    connection: File,
}

/// Sends to a command under way, from another thread than the one that follows its output.
#[derive(Debug)]
pub struct Sender {
    connection: File,
}

impl Session {
    /// Connects and starts the command.
    ///
    /// # Errors
    /// When nothing listens there, or the lab goes away at once.
    pub fn start(endpoint: &Endpoint, request: Request) -> Result<Self> {
        let mut connection = endpoint.connect().context("cannot reach the lab")?;
        Frame::Start(request)
            .write(&mut connection)
            .context("cannot reach the lab")?;
        Ok(Self { connection })
    }

    /// A second handle, for input and signals.
    ///
    /// # Errors
    /// When this process has no descriptor left.
    pub fn sender(&self) -> Result<Sender> {
        Ok(Sender {
            connection: self.connection.try_clone()?,
        })
    }

    /// Follows the command to its end and returns its exit code. `on_output` gets every piece of
    /// output as it comes; `true` marks standard error.
    ///
    /// # Errors
    /// When the lab refuses the command, or goes away before the command ended.
    pub fn follow(mut self, mut on_output: impl FnMut(bool, &[u8])) -> Result<i32> {
        loop {
            match Frame::read(&mut self.connection).context("lost the connection to the lab")? {
                Some(Frame::Stdout(bytes)) => on_output(false, &bytes),
                Some(Frame::Stderr(bytes)) => on_output(true, &bytes),
                Some(Frame::Exit(code)) => return Ok(code),
                Some(Frame::Refused(reason)) => bail!("{reason}"),
                Some(_) => bail!("the lab sent what only the outside may send"),
                None => bail!("the lab closed the connection before the command ended"),
            }
        }
    }
}

impl Sender {
    /// Sends one frame; only the outside's kinds make sense.
    ///
    /// # Errors
    /// When the lab or the command is gone.
    pub fn send(&mut self, frame: &Frame) -> Result<()> {
        Ok(frame.write(&mut self.connection)?)
    }
}
