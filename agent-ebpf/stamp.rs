//! Whether the built object is still that of these sources. Included by `agent/build.rs`, which
//! refuses a stale object, and by `xtask`, which builds it and writes the stamp.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// The object, relative to `agent-ebpf`. Independent of `CARGO_TARGET_DIR`, because another
/// workspace's build script must find it.
pub(crate) const OBJECT: &str = "target/swarm.bpf.o";

/// The digest of the inputs that [`OBJECT`] was built from, relative to `agent-ebpf`.
pub(crate) const STAMP: &str = "target/swarm.bpf.sha256";

/// Everything under `directory` (`agent-ebpf`) that the object depends on, sorted: all files except
/// hidden ones and the build's own output.
pub(crate) fn inputs(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    collect(directory, &directory.join("target"), &mut files)?;
    files.sort();
    Ok(files)
}

fn collect(directory: &Path, output: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        if path == output || entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if entry.file_type()?.is_dir() {
            collect(&path, output, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

/// SHA-256 in hex over the names and contents of [`inputs`].
pub(crate) fn digest(directory: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    for path in inputs(directory)? {
        let name = path.strip_prefix(directory).unwrap_or(&path);
        let content = fs::read(&path)?;
        // Lengths keep a name and its content, and one file and the next, apart.
        for part in [name.as_os_str().as_encoded_bytes(), &content] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    }
    Ok(hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// Whether the object is there and was built from the inputs as they are now.
pub(crate) fn is_fresh(directory: &Path) -> io::Result<bool> {
    if !directory.join(OBJECT).exists() {
        return Ok(false);
    }
    match fs::read_to_string(directory.join(STAMP)) {
        Ok(stamp) => Ok(stamp.trim() == digest(directory)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
