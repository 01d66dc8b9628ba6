//! `cargo xtask lab ...`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

use super::state::State;
use super::{ExecOptions, Lab, UpOptions};
use crate::progress::step;
use crate::workspace::Workspace;

/// What to do with the lab.
#[derive(Debug, Subcommand)]
pub(crate) enum LabCommand {
    /// Bring it up: build, boot, hosts, registry, agents. One that is up gets the new binaries.
    Up(UpOptions),
    /// Open a shell on a host (`h1` .., `client`), or in the lab's first namespace.
    Shell {
        /// Which host.
        host: Option<String>,
    },
    /// Run a command on a host (`h1` .., `client`; `lab` for its first namespace).
    Exec {
        /// Which host.
        host: String,
        /// The command, after `--`.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Show what is up.
    Status,
    /// Take it down.
    Down,
}

/// Runs `cargo xtask lab ...`; the exit code is that of the command in the lab, where there is one.
///
/// # Errors
/// When a step fails.
pub(crate) fn run(workspace: &Workspace, command: LabCommand) -> Result<ExitCode> {
    let code = match command {
        LabCommand::Up(options) => {
            let lab = Lab::up(workspace, &options)?;
            println!(
                "The lab is up on {}: h1 to h{} and a client.",
                lab.ground(),
                lab.hosts()
            );
            println!("  cargo xtask lab shell h1             a shell on a host");
            println!("  cargo xtask lab exec client -- CMD   a command on the client");
            println!("  cargo xtask lab down                 when done");
            println!("Logs are in {}.", lab.log_dir().display());
            0
        }
        LabCommand::Shell { host } => Lab::attach(workspace)?.shell(namespace(host.as_deref()))?,
        LabCommand::Exec { host, command } => {
            let argv: Vec<&str> = command.iter().map(String::as_str).collect();
            Lab::attach(workspace)?.attached(namespace(Some(&host)), &argv)?
        }
        LabCommand::Status => status(workspace)?,
        LabCommand::Down => {
            match State::load(workspace) {
                Some(state) => step("taking the lab down", None, || state.end(workspace))?,
                None => println!("no lab is up"),
            }
            0
        }
    };
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// Opens a shell on a host of a lab, on this terminal; how it ends is nobody's concern.
///
/// # Errors
/// When there is no terminal, or the lab goes away.
pub(crate) fn run_shell(lab: &Lab, host: &str) -> Result<()> {
    lab.shell(namespace(Some(host))).map(drop)
}

fn namespace(host: Option<&str>) -> Option<&str> {
    host.filter(|name| *name != "lab")
}

fn status(workspace: &Workspace) -> Result<i32> {
    let Ok(lab) = Lab::attach(workspace) else {
        println!("no lab is up");
        return Ok(1);
    };
    println!(
        "up on {}, logs in {}",
        lab.ground(),
        lab.log_dir().display()
    );
    let output = lab.exec(None, &["lab-guest", "status"], ExecOptions::default())?;
    print!("{}", output.success()?);
    Ok(0)
}
