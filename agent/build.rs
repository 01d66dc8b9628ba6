//! Finds the eBPF object that the agent embeds, and refuses to build with a missing or stale one.

use std::io;
use std::path::{Path, PathBuf};

#[path = "../agent-ebpf/stamp.rs"]
mod stamp;

fn main() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../agent-ebpf");
    if let Err(error) = embed(&directory) {
        println!("cargo::error=cannot read {}: {error}", directory.display());
    }
}

fn embed(directory: &Path) -> io::Result<()> {
    let directory = directory.canonicalize()?;
    let inputs = stamp::inputs(&directory)?;
    // The directories too, for files added; they come before their files, once each.
    let mut watched: Vec<&Path> = inputs.iter().filter_map(|input| input.parent()).collect();
    watched.retain(|folder| *folder != directory);
    watched.dedup();
    watched.extend(inputs.iter().map(PathBuf::as_path));
    for path in watched {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    for output in [stamp::OBJECT, stamp::STAMP] {
        println!(
            "cargo::rerun-if-changed={}",
            directory.join(output).display()
        );
    }
    if !stamp::is_fresh(&directory)? {
        println!(
            "cargo::error=the eBPF object is missing or older than its sources: \
             run `cargo xtask ebpf build`"
        );
    }
    println!(
        "cargo::rustc-env=SWARM_EBPF_OBJECT={}",
        directory.join(stamp::OBJECT).display()
    );
    Ok(())
}
