//! `cargo xtask setup`: finds what is missing and installs it, or says what to install.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::process::{find_program, logged, output_of};
use crate::progress::step;
use crate::workspace::Workspace;

/// The bpf-linker that the eBPF programs are known to build with.
const BPF_LINKER_VERSION: &str = "0.13.0";

/// LLVM releases that this bpf-linker can be built against.
const BPF_LINKER_LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// What a job needs installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scope {
    /// To compile the product and its eBPF programs.
    build: bool,
    /// To run the tests that need no lab.
    test: bool,
    /// To run the lab.
    lab: bool,
}

impl Scope {
    /// Everything.
    pub(crate) const ALL: Self = Self {
        build: true,
        test: true,
        lab: true,
    };

    /// To compile.
    pub(crate) const BUILD: Self = Self {
        build: true,
        test: false,
        lab: false,
    };

    /// To compile and test without the lab.
    pub(crate) const TEST: Self = Self {
        build: true,
        test: true,
        lab: false,
    };

    /// To run the lab, and the product in it if asked for.
    pub(crate) const fn lab(with_product: bool) -> Self {
        Self {
            build: with_product,
            test: false,
            lab: true,
        }
    }
}

/// One thing that has to be there, and where it comes from on Debian and Ubuntu.
struct Need {
    what: &'static str,
    is_there: fn() -> bool,
    packages: &'static [&'static str],
}

const BUILD_NEEDS: [Need; 3] = [
    Need {
        what: "a C compiler and the C library's headers",
        is_there: || find_program("cc").is_some() && Path::new("/usr/include/stdio.h").exists(),
        packages: &["gcc", "libc6-dev"],
    },
    Need {
        what: "a C++ compiler",
        is_there: || find_program("c++").is_some(),
        packages: &["g++"],
    },
    Need {
        what: "protoc and its standard types",
        is_there: || {
            find_program("protoc").is_some()
                && Path::new("/usr/include/google/protobuf/empty.proto").exists()
        },
        packages: &["protobuf-compiler", "libprotobuf-dev"],
    },
];

const TEST_NEEDS: [Need; 1] = [Need {
    what: "cfssl, an authority outside of the swarm",
    is_there: || find_program("cfssl").is_some(),
    packages: &["golang-cfssl"],
}];

const LAB_NEEDS: [Need; 5] = [
    Need {
        what: "mmdebstrap",
        is_there: || find_program("mmdebstrap").is_some(),
        packages: &["mmdebstrap"],
    },
    Need {
        what: "Debian's archive key",
        is_there: || Path::new("/usr/share/keyrings/debian-archive-keyring.gpg").exists(),
        packages: &["debian-archive-keyring"],
    },
    Need {
        what: "ip",
        is_there: || find_program("ip").is_some(),
        packages: &["iproute2"],
    },
    Need {
        what: "nft",
        is_there: || find_program("nft").is_some(),
        packages: &["nftables"],
    },
    Need {
        what: "bpftool",
        is_there: || find_program("bpftool").is_some(),
        packages: &["bpftool"],
    },
];

/// Runs `cargo xtask setup`.
///
/// # Errors
/// As [`ensure()`].
pub(crate) fn run() -> Result<()> {
    ensure(Scope::ALL)?;
    println!("everything is there");
    Ok(())
}

/// Makes sure that everything `scope` needs is installed. Looks at a few files when it is.
///
/// # Errors
/// When something is missing that cannot be installed from here: the message says what to run.
pub(crate) fn ensure(scope: Scope) -> Result<()> {
    ensure!(
        !scope.lab || env::consts::ARCH == "x86_64",
        "the lab needs an x86-64 machine; this one is {}",
        env::consts::ARCH
    );
    let mut needs: Vec<&Need> = Vec::new();
    needs.extend(BUILD_NEEDS.iter().filter(|_| scope.build));
    needs.extend(TEST_NEEDS.iter().filter(|_| scope.test));
    needs.extend(LAB_NEEDS.iter().filter(|_| scope.lab));
    needs.retain(|need| !(need.is_there)());
    let mut packages: Vec<&str> = Vec::new();
    for need in &needs {
        eprintln!("missing: {}", need.what);
        packages.extend(need.packages);
    }
    if scope.lab && !nix::unistd::geteuid().is_root() && find_program("newuidmap").is_none() {
        eprintln!("missing: newuidmap, for a lab without root");
        packages.push("uidmap");
    }
    install(&packages)?;
    if scope.build {
        ensure_ebpf_toolchain()?;
    }
    Ok(())
}

/// A compiler that comes with its library's sources, and bpf-linker.
fn ensure_ebpf_toolchain() -> Result<()> {
    let has_compiler = has_nightly_sources() || has_system_sources();
    if has_compiler && has_bpf_linker() {
        return Ok(());
    }
    if !has_compiler {
        eprintln!("missing: a Rust toolchain with library sources, for eBPF");
        ensure!(
            !has_apt() || has_candidate("rust-web-src"),
            "this release of Debian or Ubuntu has no rust-web-src; with rustup:\n  \
             rustup toolchain install nightly --profile minimal --component rust-src\n  \
             cargo +nightly install bpf-linker"
        );
        install(&["rustc-web", "rust-web-src"])?;
    }
    if !has_bpf_linker() {
        eprintln!("missing: bpf-linker");
        ensure!(
            has_system_sources(),
            "bpf-linker is missing: cargo +nightly install bpf-linker"
        );
        install_bpf_linker()?;
    }
    Ok(())
}

/// Builds bpf-linker against the LLVM that Debian's compiler uses.
fn install_bpf_linker() -> Result<()> {
    let version = output_of("/usr/bin/rustc", &["-vV"]).context("cannot run /usr/bin/rustc")?;
    let llvm = llvm_major(&version).context("/usr/bin/rustc does not name its LLVM")?;
    ensure!(
        BPF_LINKER_LLVM.contains(&llvm),
        "/usr/bin/rustc uses LLVM {llvm}; bpf-linker {BPF_LINKER_VERSION} needs {} to {}",
        BPF_LINKER_LLVM.start(),
        BPF_LINKER_LLVM.end()
    );
    let prefix = format!("/usr/lib/llvm-{llvm}");
    if !Path::new(&prefix).join("lib/libLLVM.so").exists() {
        install(&[&format!("llvm-{llvm}-dev")])?;
    }
    let workspace = Workspace::find()?;
    let log = workspace.log("bpf-linker");
    let feature = format!("llvm-{llvm}");
    let mut command = workspace.cargo(&["install", "bpf-linker", "--version", BPF_LINKER_VERSION]);
    command
        .args(["--no-default-features", "--features", &feature])
        .env("LLVM_PREFIX", &prefix)
        .env("RUSTFLAGS", format!("-L {prefix}/lib"))
        .env_remove("CARGO_TARGET_DIR");
    step(
        "building bpf-linker (about a minute, once)",
        Some(&log),
        || logged(&mut command, &log),
    )
}

/// The major number in the line `LLVM version: 22.1.8` of `rustc -vV`.
fn llvm_major(version: &str) -> Option<u32> {
    let line = version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    line.split('.').next()?.parse().ok()
}

const SOURCES: &str = "lib/rustlib/src/rust/library/core/Cargo.toml";

fn has_system_sources() -> bool {
    Path::new("/usr").join(SOURCES).exists() && Path::new("/usr/bin/rustc").exists()
}

fn has_nightly_sources() -> bool {
    let home = env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".rustup")));
    let toolchains = home.and_then(|home| fs::read_dir(home.join("toolchains")).ok());
    toolchains.into_iter().flatten().flatten().any(|entry| {
        entry.file_name().to_string_lossy().starts_with("nightly-")
            && entry.path().join(SOURCES).exists()
    })
}

fn has_bpf_linker() -> bool {
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cargo")));
    find_program("bpf-linker").is_some()
        || cargo_home.is_some_and(|home| home.join("bin/bpf-linker").is_file())
}

fn has_apt() -> bool {
    find_program("apt-get").is_some()
}

fn has_candidate(package: &str) -> bool {
    let policy = output_of("apt-cache", &["policy", package]).unwrap_or_default();
    policy.lines().any(|line| {
        line.trim()
            .strip_prefix("Candidate:")
            .is_some_and(|version| version.trim() != "(none)")
    })
}

/// Installs packages, as root on a machine with apt.
fn install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    if !has_apt() {
        bail!(
            "this machine has no apt-get: install what was named above by its own means (Debian \
             calls it: {})",
            packages.join(" ")
        );
    }
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "not root, so please run:\n  sudo apt-get update && sudo apt-get install \
             --no-install-recommends {}",
            packages.join(" ")
        );
    }
    let workspace = Workspace::find()?;
    let log = workspace.log("apt-update");
    step("apt-get update", Some(&log), || {
        logged(apt_get().arg("update"), &log)
    })?;
    let log = workspace.log("apt-install");
    let title = format!("apt-get install {}", packages.join(" "));
    step(&title, Some(&log), || {
        let mut command = apt_get();
        command
            .args(["install", "--yes", "--no-install-recommends"])
            .args(packages);
        logged(&mut command, &log)
    })
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llvm_is_read_from_the_compilers_own_words() {
        assert_eq!(llvm_major("rustc 1.96.0\nLLVM version: 22.1.8\n"), Some(22));
        assert_eq!(llvm_major("rustc 1.96.0\n"), None);
    }

    #[test]
    fn every_need_names_a_package() {
        for need in BUILD_NEEDS.iter().chain(&LAB_NEEDS) {
            assert!(!need.packages.is_empty(), "{}", need.what);
        }
    }
}
