//! Compiles the protocol files with `protox`, so that no `protoc` is needed.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new("proto");
    let files = ["ca", "control", "dispatcher", "local", "store"]
        .map(|name| root.join(format!("swarm/v1/{name}.proto")));
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(files, [root])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
