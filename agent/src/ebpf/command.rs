//! `swarm-agent ebpf`: loading the programs by hand, for developers and for checking a kernel.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use aya::programs::ProgramInfo;
use nix::net::if_::if_nametoindex;

use super::{Mesh, Program, ServiceStats, SocketProgram, bench};

/// Arguments of `swarm-agent ebpf`.
#[derive(Debug, clap::Args)]
pub(crate) struct EbpfArgs {
    #[command(subcommand)]
    verb: Verb,
    /// Where to pin the maps: not where a running agent has its own
    #[arg(long, global = true, default_value = "/sys/fs/bpf/swarm-check")]
    pin_dir: PathBuf,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Load every program and attach mesh_uplink to an interface
    Load {
        /// Interface in the current network namespace
        #[arg(long)]
        iface: String,
    },
    /// Detach mesh_uplink from an interface and free the maps
    Unload {
        /// Interface in the current network namespace
        #[arg(long)]
        iface: String,
    },
    /// Load every program, print what the kernel says of it, and free it again
    Verify,
    /// Print what the programs that use the maps there have counted
    Counters,
    /// Measure what a packet costs in each tc program, in nanoseconds
    Bench {
        /// Write the figures to this file
        #[arg(long)]
        json: Option<PathBuf>,
        /// Samples of each program, of 100,000 packets each
        #[arg(long, default_value_t = 11)]
        samples: usize,
    },
}

/// Runs `swarm-agent ebpf ...`. A program that the kernel refuses is an error with the verifier's
/// log in it.
pub(crate) fn run(args: &EbpfArgs) -> Result<()> {
    match &args.verb {
        Verb::Load { iface } => load(&args.pin_dir, iface),
        Verb::Unload { iface } => unload(&args.pin_dir, iface),
        Verb::Verify => verify(&args.pin_dir),
        Verb::Counters => counters(&args.pin_dir),
        Verb::Bench { json, samples } => bench::run(&args.pin_dir, json.as_ref(), *samples),
    }
}

fn load(pin_dir: &Path, iface: &str) -> Result<()> {
    let ifindex = ifindex(iface)?;
    let mesh = Mesh::load(pin_dir)?;
    describe(&mesh)?;
    let attached = mesh.attach(Program::MeshUplink, ifindex)?;
    println!("{} on {iface}: {attached:?}", Program::MeshUplink);
    Ok(())
}

fn unload(pin_dir: &Path, iface: &str) -> Result<()> {
    let was = if Mesh::detach(Program::MeshUplink, ifindex(iface)?)? {
        ""
    } else {
        "was not "
    };
    println!("{} {was}on {iface}", Program::MeshUplink);
    Mesh::remove_pins(pin_dir)?;
    Ok(())
}

fn verify(pin_dir: &Path) -> Result<()> {
    describe(&Mesh::load(pin_dir)?)?;
    Mesh::remove_pins(pin_dir)?;
    Ok(())
}

fn counters(pin_dir: &Path) -> Result<()> {
    let mesh = Mesh::load(pin_dir)?;
    println!("flows remembered: {}", mesh.flow_count());
    for (counter, count) in mesh.counters()? {
        println!("{counter:?}: {count}");
    }
    for (service, stats) in mesh.service_stats()? {
        let ServiceStats { packets, bytes } = stats;
        println!("service {service}: {packets} packets, {bytes} bytes");
    }
    for ((counter, of), packets) in mesh.drops()? {
        println!("{counter:?} of {of}: {packets} packets dropped");
    }
    Ok(())
}

fn describe(mesh: &Mesh) -> Result<()> {
    for program in Program::ALL {
        describe_program(program.name(), &mesh.classifier(program)?.info()?);
    }
    for program in SocketProgram::ALL {
        describe_program(program.name(), &mesh.socket_program(program)?.info()?);
    }
    Ok(())
}

fn describe_program(name: &str, info: &ProgramInfo) {
    println!(
        "{name}: id {}, {} bytes, {} instructions verified",
        info.id(),
        info.size_translated().unwrap_or_default(),
        info.verified_instruction_count().unwrap_or_default(),
    );
}

fn ifindex(iface: &str) -> Result<u32> {
    if_nametoindex(iface).with_context(|| format!("no interface {iface} in this network namespace"))
}
