//! `cargo xtask ebpf`: builds the eBPF object, and tries it on an interface.
//!
//! The object is compiled for another target with `-Z build-std=core`, so the compiler must come
//! with its library's sources. Two toolchains can do it: a rustup nightly with `rust-src`, or
//! Debian's `rustc-web` with `rust-web-src`. Both need `bpf-linker`.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

#[path = "../../agent-ebpf/stamp.rs"]
mod stamp;

/// Arguments of `cargo xtask ebpf`.
#[derive(Debug, clap::Args)]
pub(crate) struct EbpfArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Build the object that the agent embeds
    Build {
        /// Even when it is up to date
        #[arg(long)]
        force: bool,
    },
    /// Load every program into this kernel and attach the uplink's to an interface (needs root)
    Load {
        /// Interface in the current network namespace
        #[arg(long)]
        iface: String,
    },
    /// Take back what `load` attached (needs root)
    Unload {
        /// Interface in the current network namespace
        #[arg(long)]
        iface: String,
    },
}

/// Runs `cargo xtask ebpf ...`.
pub(crate) fn run(args: EbpfArgs) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask is not inside the repository")?;
    match args.verb {
        Verb::Build { force } => {
            if force {
                remove_stamp(root)?;
            }
            build(root).map(drop)
        }
        Verb::Load { iface } => agent(root, &["load", "--iface", &iface]),
        Verb::Unload { iface } => agent(root, &["unload", "--iface", &iface]),
    }
}

/// Runs `cargo xtask bench ebpf`: the agent measures, for it alone knows the programs and their
/// maps.
pub(crate) fn bench(json: Option<&Path>) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask is not inside the repository")?;
    // The agent is started in the repository's directory.
    let json = json
        .map(|path| std::path::absolute(path).context("no current directory"))
        .transpose()?;
    let mut arguments = vec!["bench".to_owned()];
    if let Some(path) = &json {
        arguments.extend(["--json".to_owned(), path.display().to_string()]);
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    agent(root, &arguments)
}

/// Builds the object if its sources have changed since, and gives its path. `root` is the
/// repository's.
pub(crate) fn build(root: &Path) -> Result<PathBuf> {
    let directory = root.join("agent-ebpf");
    let object = directory.join(stamp::OBJECT);
    if stamp::is_fresh(&directory).context("cannot read the eBPF sources")? {
        println!("eBPF object is up to date: {}", object.display());
        return Ok(object);
    }
    let toolchain = Toolchain::find()?;
    println!(
        "building the eBPF object with {} ...",
        toolchain.description()
    );
    let started = Instant::now();
    // Taken before the build: a source edited meanwhile makes the object stale, not wrongly fresh.
    let digest = stamp::digest(&directory).context("cannot read the eBPF sources")?;
    compile(&directory, &toolchain)?;
    let built = directory
        .join("target")
        .join(target())
        .join("release/swarm");
    let fresh = object.with_extension("new");
    fs::copy(&built, &fresh).with_context(|| format!("cannot copy {}", built.display()))?;
    fs::rename(&fresh, &object).with_context(|| format!("cannot write {}", object.display()))?;
    let stamp = directory.join(stamp::STAMP);
    fs::write(&stamp, digest + "\n")
        .with_context(|| format!("cannot write {}", stamp.display()))?;
    println!(
        "built {} in {:.1} s",
        object.display(),
        started.elapsed().as_secs_f32()
    );
    Ok(object)
}

fn remove_stamp(root: &Path) -> Result<()> {
    let stamp = root.join("agent-ebpf").join(stamp::STAMP);
    if stamp.exists() {
        fs::remove_file(&stamp).with_context(|| format!("cannot remove {}", stamp.display()))?;
    }
    Ok(())
}

fn compile(directory: &Path, toolchain: &Toolchain) -> Result<()> {
    let output = directory.join("target");
    fs::create_dir_all(&output).with_context(|| format!("cannot create {}", output.display()))?;
    let log_path = output.join("build.log");
    let log =
        File::create(&log_path).with_context(|| format!("cannot create {}", log_path.display()))?;
    let status = toolchain
        .cargo()
        .current_dir(directory)
        .args(["build", "--release", "--locked", "-Z", "build-std=core"])
        .args(["--target", target(), "--target-dir", "target"])
        .env("CARGO_ENCODED_RUSTFLAGS", rust_flags()?)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .status()
        .context("cannot start cargo")?;
    if status.success() {
        return Ok(());
    }
    let text = fs::read_to_string(&log_path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n");
    bail!(
        "the eBPF build failed; the whole log is in {}\n{tail}",
        log_path.display()
    );
}

/// Lines of a failed build's log that are shown: enough for the first error of a small crate.
const LOG_TAIL_LINES: usize = 40;

/// The BPF target of this machine's byte order.
fn target() -> &'static str {
    if cfg!(target_endian = "big") {
        "bpfeb-unknown-none"
    } else {
        "bpfel-unknown-none"
    }
}

/// Compiler flags, separated as cargo wants them: the architecture whose kernel structures to use,
/// and debug information turned into BTF.
fn rust_flags() -> Result<String> {
    // The names that aya-ebpf's bindings know.
    let arch = match env::consts::ARCH {
        arch @ ("aarch64" | "arm" | "loongarch64" | "mips" | "powerpc64" | "riscv64" | "s390x"
        | "x86_64") => arch,
        other => bail!("no eBPF bindings for the architecture {other}"),
    };
    let flags = [
        &format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Cdebuginfo=2",
        "-Clink-arg=--btf",
    ];
    Ok(flags.join("\x1f"))
}

/// A compiler with its library's sources.
enum Toolchain {
    /// Driven through rustup.
    Nightly,
    /// A compiler outside rustup, which must be told that unstable flags are welcome.
    System { rustc: PathBuf, llvm_major: u32 },
}

impl Toolchain {
    /// Where Debian's `rustc-web` puts the compiler.
    const SYSTEM_RUSTC: &str = "/usr/bin/rustc";

    /// Whichever is complete. When none is, the error says what to install.
    fn find() -> Result<Self> {
        let toolchain = if nightly_has_sources() {
            Some(Self::Nightly)
        } else {
            Self::system()
        };
        let linker = on_path("bpf-linker");
        match (toolchain, linker) {
            (Some(toolchain), true) => Ok(toolchain),
            (Some(toolchain), false) => {
                bail!("bpf-linker is missing.\n{}", toolchain.linker_hint())
            }
            (None, _) => bail!("no toolchain for eBPF.\n{}", INSTALL_HINT),
        }
    }

    fn system() -> Option<Self> {
        let rustc = PathBuf::from(Self::SYSTEM_RUSTC);
        let sysroot = output(Command::new(&rustc).args(["--print", "sysroot"]))?;
        let version = output(Command::new(&rustc).arg("-vV"))?;
        let llvm_major = llvm_major(&version)?;
        has_sources(&sysroot).then_some(Self::System { rustc, llvm_major })
    }

    fn description(&self) -> String {
        match self {
            Self::Nightly => "rustup's nightly".to_owned(),
            Self::System { rustc, llvm_major } => {
                format!("{} (LLVM {llvm_major})", rustc.display())
            }
        }
    }

    fn linker_hint(&self) -> String {
        match self {
            Self::Nightly => "Install it with `cargo +nightly install bpf-linker`.".to_owned(),
            Self::System { llvm_major, .. } => linker_hint(*llvm_major),
        }
    }

    /// Cargo with the compiler chosen, and without what the calling cargo has put into the
    /// environment for another one.
    fn cargo(&self) -> Command {
        let mut command = match self {
            Self::Nightly => {
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "cargo"]);
                command.env_remove("RUSTC");
                command
            }
            Self::System { rustc, .. } => {
                let mut command = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
                command.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
                command
            }
        };
        for name in [
            "CARGO_BUILD_TARGET",
            "CARGO_TARGET_DIR",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTC_WRAPPER",
            "RUSTFLAGS",
        ] {
            command.env_remove(name);
        }
        // Less optimised code does not pass the verifier.
        for (name, _) in env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"CARGO_PROFILE_") {
                command.env_remove(name);
            }
        }
        command.env("PATH", search_path());
        command
    }
}

const INSTALL_HINT: &str = "\
Either, with rustup:
    rustup toolchain install nightly --profile minimal --component rust-src
    cargo +nightly install bpf-linker
or, on Debian as root:
    apt-get install rustc-web rust-web-src
and then run this again: it names the bpf-linker that fits.";

fn linker_hint(llvm_major: u32) -> String {
    format!(
        "Install the one for LLVM {llvm_major}, on Debian as root:
    apt-get install llvm-{llvm_major}-dev
    LLVM_PREFIX=/usr/lib/llvm-{llvm_major} RUSTFLAGS=\"-L /usr/lib/llvm-{llvm_major}/lib\" \\
        cargo install bpf-linker --version 0.13.0 --no-default-features --features \
         llvm-{llvm_major}"
    )
}

fn nightly_has_sources() -> bool {
    // Asked first, because `rustup run` of an absent toolchain may try to install it.
    let installed = output(Command::new("rustup").args(["toolchain", "list"]))
        .is_some_and(|list| list.lines().any(|line| line.starts_with("nightly-")));
    installed
        && output(Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]))
            .is_some_and(|sysroot| has_sources(&sysroot))
}

fn has_sources(sysroot: &str) -> bool {
    Path::new(sysroot.trim())
        .join("lib/rustlib/src/rust/library/core/Cargo.toml")
        .exists()
}

/// The major number in the line `LLVM version: 22.1.8` of `rustc -vV`.
fn llvm_major(version: &str) -> Option<u32> {
    let line = version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    line.split('.').next()?.trim().parse().ok()
}

/// Standard output of a command that ran and succeeded.
fn output(command: &mut Command) -> Option<String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn on_path(program: &str) -> bool {
    env::split_paths(&search_path()).any(|directory| directory.join(program).is_file())
}

/// `PATH` with cargo's own directory, where `cargo install` puts bpf-linker.
fn search_path() -> std::ffi::OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cargo")));
    let directories = env::split_paths(&path).chain(home.map(|home| home.join("bin")));
    env::join_paths(directories).unwrap_or(path)
}

/// The agent knows how to load its own object; building it here keeps xtask free of aya.
fn agent(root: &Path, arguments: &[&str]) -> Result<()> {
    build(root)?;
    let status = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()))
        .current_dir(root)
        .args(["run", "--quiet", "--package", "swarm-agent", "--", "ebpf"])
        .args(arguments)
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("`swarm-agent ebpf {}` failed", arguments.join(" "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llvm_version_is_read_from_the_compilers_own_words() {
        let version = "rustc 1.96.0\nhost: x86_64-unknown-linux-gnu\nLLVM version: 22.1.8\n";
        assert_eq!(llvm_major(version), Some(22));
        assert_eq!(llvm_major("rustc 1.96.0\n"), None);
    }

    #[test]
    fn linker_hint_names_the_compilers_llvm() {
        let hint = linker_hint(22);
        assert!(hint.contains("apt-get install llvm-22-dev"), "{hint}");
        assert!(hint.contains("--features llvm-22"), "{hint}");
    }

    #[test]
    fn stamp_follows_every_source_and_only_sources() {
        let root = env::temp_dir().join(format!("xtask-ebpf-stamp-{}", std::process::id()));
        let write = |name: &str, text: &str| {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("Cargo.lock", "1");
        write("src/main.rs", "2");
        assert!(!stamp::is_fresh(&root).unwrap(), "no object yet");
        write(stamp::OBJECT, "object");
        assert!(!stamp::is_fresh(&root).unwrap(), "no stamp yet");
        write(stamp::STAMP, &stamp::digest(&root).unwrap());
        assert!(stamp::is_fresh(&root).unwrap());
        write("target/other", "3");
        write(".hidden", "4");
        assert!(
            stamp::is_fresh(&root).unwrap(),
            "output and hidden files do not count"
        );
        write("common/src/lib.rs", "5");
        assert!(!stamp::is_fresh(&root).unwrap(), "a file was added");
        write(stamp::STAMP, &stamp::digest(&root).unwrap());
        write("src/main.rs", "2 ");
        assert!(!stamp::is_fresh(&root).unwrap(), "a file was changed");
        fs::remove_dir_all(&root).unwrap();
    }
}
