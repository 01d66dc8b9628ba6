//! The manager of a swarm, as a program.

use std::process::ExitCode;

fn main() -> ExitCode {
    swarm_control::main()
}
