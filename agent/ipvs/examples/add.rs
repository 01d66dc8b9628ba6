//! Adds a TCP service with masqueraded destinations to the current network namespace, all in one
//! batch, and reports each step.
//!
//! ```text
//! # cargo run -p swarm-ipvs --example add -- 10.0.0.1:80 rr 10.255.0.7:8080 10.255.0.9:8080
//! add service tcp 10.0.0.1:80: done
//! add destination 10.255.0.7:8080 to service tcp 10.0.0.1:80: done
//! add destination 10.255.0.9:8080 to service tcp 10.0.0.1:80: done
//! ```

use std::error::Error;
use std::net::SocketAddr;
use std::process::ExitCode;

use swarm_ipvs::{Destination, DestinationKey, Ipvs, Name, Op, Protocol, Service, ServiceKey};

fn main() -> ExitCode {
    add().unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::FAILURE
    })
}

fn add() -> Result<ExitCode, Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(at), Some(scheduler)) = (args.next(), args.next()) else {
        return Err("usage: add ADDRESS:PORT SCHEDULER [DESTINATION:PORT]...".into());
    };
    let at: SocketAddr = at.parse()?;
    let service = ServiceKey::Address {
        protocol: Protocol::TCP,
        address: at.ip(),
        port: at.port(),
    };
    let mut ops = vec![Op::AddService(Service::new(
        service,
        Name::new(&scheduler)?,
    ))];
    for destination in args {
        let to: SocketAddr = destination.parse()?;
        let key = DestinationKey {
            address: to.ip(),
            port: to.port(),
        };
        ops.push(Op::AddDestination(service, Destination::new(key)));
    }
    let mut exit = ExitCode::SUCCESS;
    for (op, outcome) in ops.iter().zip(Ipvs::open()?.apply(&ops)) {
        match outcome {
            Ok(()) => println!("{op}: done"),
            Err(error) => {
                eprintln!("{error}");
                exit = ExitCode::FAILURE;
            }
        }
    }
    Ok(exit)
}
