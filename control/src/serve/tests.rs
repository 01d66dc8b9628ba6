//! The services over real connections: TLS on 127.0.0.1 and the local socket.

mod control;
mod harness;
mod matrix;
mod membership;
mod network;
mod networks;
mod peers;
mod sessions;
mod watch;

pub(super) use matrix::methods;
