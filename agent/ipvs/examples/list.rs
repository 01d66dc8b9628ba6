//! Prints the IPVS table of the current network namespace in the way of `ipvsadm -Ln`.
//!
//! ```text
//! # cargo run -p swarm-ipvs --example list
//! IP Virtual Server version 1.2.1 (size=4096)
//! Prot LocalAddress:Port Scheduler Flags
//!   -> RemoteAddress:Port           Forward Weight ActiveConn InActConn
//! TCP  10.0.0.1:80 rr
//!   -> 10.255.0.7:8080              Masq    1      0          0
//! ```

use std::net::SocketAddr;
use std::process::ExitCode;

use swarm_ipvs::{
    Family, Forward, Ipvs, IpvsError, Netmask, ServiceConfig, ServiceFlags, ServiceKey,
};

fn main() -> ExitCode {
    match list() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn list() -> Result<(), IpvsError> {
    let mut ipvs = Ipvs::open()?;
    let info = ipvs.info()?;
    println!(
        "IP Virtual Server version {} (size={})",
        info.version, info.connection_table_size
    );
    println!("Prot LocalAddress:Port Scheduler Flags");
    println!("  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn");
    for entry in ipvs.services()? {
        let service = entry.service;
        println!("{} {}", title(&service.key), behaviour(&service.config));
        let mut entries = ipvs.destinations(&service.key)?;
        entries.sort_by_key(|entry| entry.destination.key);
        for entry in entries {
            let config = entry.destination.config;
            println!(
                "  -> {:<28} {:<7} {:<6} {:<10} {:<10}",
                entry.destination.key.to_string(),
                method(config.forward),
                config.weight,
                entry.active_connections,
                entry.inactive_connections,
            );
        }
    }
    Ok(())
}

fn title(key: &ServiceKey) -> String {
    match *key {
        ServiceKey::Address {
            protocol,
            address,
            port,
        } => {
            let protocol = protocol.to_string().to_uppercase();
            format!("{protocol:<4} {}", SocketAddr::new(address, port))
        }
        ServiceKey::Fwmark {
            family: Family::V4,
            mark,
        } => format!("FWM  {mark}"),
        ServiceKey::Fwmark {
            family: Family::V6,
            mark,
        } => format!("FWM  {mark} IPv6"),
    }
}

fn behaviour(config: &ServiceConfig) -> String {
    let mut text = config.scheduler.to_string();
    if config.flags.contains(ServiceFlags::PERSISTENT) {
        text += &format!(" persistent {}", config.timeout_s);
        if config.netmask != Netmask::full(config.netmask.family()) {
            text += &match config.netmask {
                Netmask::V4(mask) => format!(" mask {mask}"),
                Netmask::V6(length) => format!(" mask {length}"),
            };
        }
    }
    if let Some(engine) = config.persistence_engine {
        text += &format!(" pe {engine}");
    }
    if config.flags.contains(ServiceFlags::ONE_PACKET) {
        text += " ops";
    }
    text
}

fn method(forward: Forward) -> &'static str {
    match forward {
        Forward::Masquerade => "Masq",
        Forward::Local => "Local",
        Forward::Tunnel(_) => "Tunnel",
        Forward::Route => "Route",
        Forward::Bypass => "Bypass",
    }
}
