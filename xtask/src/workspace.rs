//! Where things are, and how cargo is called.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// The checkout this xtask belongs to.
#[derive(Debug, Clone)]
pub(crate) struct Workspace {
    root: PathBuf,
}

impl Workspace {
    /// The checkout it is run in; outside of any, the one it was built from. In this order because
    /// two checkouts may share a target directory, and with it the xtask built last.
    ///
    /// # Errors
    /// When neither is there.
    pub(crate) fn find() -> Result<Self> {
        let built_in = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .map(Path::to_owned);
        let current = std::env::current_dir()?;
        let candidates = current.ancestors().map(Path::to_owned).chain(built_in);
        let root = candidates
            .filter(|root| root.join("xtask/Cargo.toml").is_file())
            .find_map(|root| root.canonicalize().ok())
            .context("no checkout here: run `cargo xtask` inside one")?;
        Ok(Self { root })
    }

    /// Top of the checkout.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Everything the lab needs between two calls: root file system, logs, state. Not below
    /// `target`, so that `cargo clean` does not pull it from under a running lab.
    pub(crate) fn lab_dir(&self) -> PathBuf {
        self.root.join(".lab")
    }

    /// Log file of a step.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.lab_dir().join("log").join(format!("{name}.log"))
    }

    /// Where cargo puts what it builds.
    pub(crate) fn target_dir(&self) -> PathBuf {
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(
            || self.root.join("target"),
            |directory| self.root.join(directory),
        )
    }

    /// A cargo command at the top of the checkout.
    pub(crate) fn cargo(&self, arguments: &[&str]) -> Command {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.args(arguments).current_dir(&self.root);
        command
    }
}
