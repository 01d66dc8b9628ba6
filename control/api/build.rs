//! Compiles the protocol files with `protox`, so that no `protoc` is needed.

use std::path::{Path, PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new("proto");
    let files = ["ca", "control", "dispatcher", "local", "raft", "store"]
        .map(|name| root.join(format!("swarm/v1/{name}.proto")));
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(files, [root])?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    // Their `Debug` is in `src/redacted.rs`.
    let secret = [
        "Cluster",
        "GetJoinTokenResponse",
        "GetLocalUnlockKeyResponse",
        "GetUnlockKeyResponse",
        "InitResponse",
        "IssueNodeCertificateRequest",
        "JoinRequest",
        "RootRotation",
        "RotateRootRequest",
        "UnlockRequest",
    ];
    tonic_prost_build::configure()
        // The largest of them: a node is told of tens of thousands of tasks elsewhere at once.
        .boxed("swarm.v1.Assignment.item.task")
        .boxed("swarm.v1.Assignment.item.network")
        .skip_debug(secret.map(|message| format!("swarm.v1.{message}")))
        .compile_fds(descriptors)?;
    Ok(())
}
