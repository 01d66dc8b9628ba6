//! `cargo xtask demo`: a swarm from nothing to gone, with real commands and what they really print.
//!
//! Every step has a condition; a step whose condition does not hold fails the demo.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use swarm_lab::image::WebAnswer;
use swarm_lab::services::registry;
use swarm_lab::topology::{CLIENT, Topology};
use swarm_lab::{Output, wait_until};

use crate::lab::{ExecOptions, Lab, UpOptions, run_shell};
use crate::workspace::Workspace;

/// The published port.
const PORT: u16 = 8080;

/// How long the service may take to be whole again after a host is lost: ten seconds until the host
/// counts as down, and then what an emulated machine needs to start containers.
const HEAL_DEADLINE: Duration = Duration::from_secs(90);

/// For everything that takes a moment.
const SETTLE_DEADLINE: Duration = Duration::from_secs(30);

/// Shows what a swarm does, in the lab.
#[derive(Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// Leave the lab up, and open a shell on h1 at the end.
    #[arg(long)]
    keep: bool,
    /// Write what was shown, and how long each step took, to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    lab: UpOptions,
}

#[derive(Debug, serde::Serialize)]
struct Step {
    name: String,
    ok: bool,
    seconds: f64,
}

#[derive(Debug, Default, serde::Serialize)]
struct Shown {
    steps: Vec<Step>,
}

impl Shown {
    fn step<T>(&mut self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        println!("\n--- {name}");
        let started = Instant::now();
        let result = work();
        let seconds = (started.elapsed().as_secs_f64() * 10.0).round() / 10.0;
        self.steps.push(Step {
            name: name.to_owned(),
            ok: result.is_ok(),
            seconds,
        });
        result.with_context(|| format!("the step did not do what it says: {name}"))
    }

    fn summary(&self) {
        println!("\n{:<64} {:>9}", "shown", "seconds");
        for step in &self.steps {
            let mark = if step.ok { " " } else { "  FAILED" };
            println!("  {:<62} {:>9.1}{mark}", step.name, step.seconds);
        }
    }
}

/// Shows it.
///
/// # Errors
/// When any step did not do what it says.
pub(crate) fn run(workspace: &Workspace, args: &DemoArgs) -> Result<()> {
    let mut shown = Shown::default();
    ensure!(args.lab.hosts >= 3, "the demo needs three hosts");
    let name = "set up, build, boot a lab of hosts";
    let lab = shown.step(name, || Lab::borrow(workspace, &args.lab, args.keep));
    let result = lab.and_then(|lab| {
        println!("    on {}", lab.ground());
        let stage = Stage {
            lab: &lab,
            hosts: Topology::of(lab.hosts())?,
        };
        // A lab that was up before may have a swarm already.
        let fresh = lab.exec(None, &["lab-guest", "fresh"], ExecOptions::default());
        let result = fresh
            .and_then(Output::success)
            .and_then(|_| stage.play(&mut shown));
        if result.is_err() {
            println!("\nthe lab's logs are in {}", lab.log_dir().display());
        }
        if args.keep && result.is_ok() {
            shown.summary();
            println!("\nThe lab stays up: `cargo xtask lab shell h1`, and `cargo xtask lab down`.");
            run_shell(&lab, "h1")?;
        }
        result
    });
    if !args.keep || result.is_err() {
        shown.summary();
    }
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_vec_pretty(&shown)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    result
}

struct Stage<'a> {
    lab: &'a Lab,
    hosts: Topology,
}

impl Stage<'_> {
    fn play(&self, shown: &mut Shown) -> Result<()> {
        let token = shown.step("swarm init on h1", || self.init())?;
        shown.step("swarm join on the other hosts", || self.join(&token))?;
        shown.step("node ls: every host is there", || {
            self.eventually("every host ready", SETTLE_DEADLINE, || {
                let text = self.quiet("h1", &["swarmctl", "node", "ls", "--format", "json"])?;
                let ready = text
                    .lines()
                    .filter(|line| line.contains(r#""Status":"Ready""#))
                    .count();
                ensure!(
                    ready == usize::from(self.lab.hosts()),
                    "{ready} hosts are ready"
                );
                Ok(())
            })?;
            self.say("h1", &["swarmctl", "node", "ls"]).map(drop)
        })?;
        let image = format!("{}/web:latest", registry());
        let publish = format!("{PORT}:80");
        shown.step("service create: image pulled, 2 tasks run", || {
            let create = [
                "swarmctl",
                "service",
                "create",
                "--name",
                "frontend",
                "--replicas",
                "2",
                "-p",
                &publish,
                &image,
            ];
            self.say("h1", &create)?;
            self.say("h1", &["swarmctl", "service", "ls"])?;
            self.say("h1", &["swarmctl", "service", "ps", "frontend"])
                .map(drop)
        })?;
        shown.step(
            "every host answers, both tasks, the client's own address",
            || self.every_host_answers(2),
        )?;
        shown.step("service scale frontend=6", || {
            self.say("h1", &["swarmctl", "service", "scale", "frontend=6"])?;
            self.say("h1", &["swarmctl", "service", "ps", "frontend"])?;
            self.every_host_answers(6)
        })?;
        let lost = self.lost_host();
        shown.step("a host is cut off, the service is whole again", || {
            self.lose(&lost)
        })?;
        shown.step("service rm: the port refuses on every host", || {
            self.set_link(&lost, true)?;
            self.eventually("the lost host is back", SETTLE_DEADLINE, || {
                let text = self.quiet("h1", &["swarmctl", "node", "ls"])?;
                ensure!(
                    !text.contains("Down") && !text.contains("Suspect"),
                    "{text}"
                );
                Ok(())
            })?;
            self.say("h1", &["swarmctl", "service", "rm", "frontend"])?;
            self.every_host_refuses()
        })
    }

    fn agents(&self) -> Vec<String> {
        self.hosts.agents().map(|node| node.name.clone()).collect()
    }

    fn lost_host(&self) -> String {
        format!("h{}", self.lab.hosts())
    }

    fn address(&self, host: &str) -> Result<String> {
        Ok(self.hosts.host(host)?.address.to_string())
    }

    fn exec(&self, host: &str, argv: &[&str]) -> Result<Output> {
        self.lab.exec(Some(host), argv, ExecOptions::default())
    }

    fn quiet(&self, host: &str, argv: &[&str]) -> Result<String> {
        self.exec(host, argv)?.success()
    }

    /// Runs a command and shows it with what it printed.
    fn say(&self, host: &str, argv: &[&str]) -> Result<String> {
        println!("{host}# {}", argv.join(" "));
        let output = self.exec(host, argv)?;
        for line in output.stdout.lines().chain(output.stderr.lines()) {
            println!("{line}");
        }
        output.success()
    }

    fn eventually<T>(
        &self,
        what: &str,
        deadline: Duration,
        attempt: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        wait_until(deadline, what, attempt)
    }

    fn init(&self) -> Result<String> {
        self.say("h1", &["swarmctl", "swarm", "init"])?;
        let token = self.quiet("h1", &["swarmctl", "swarm", "join-token", "-q", "worker"])?;
        Ok(token.trim().to_owned())
    }

    fn join(&self, token: &str) -> Result<()> {
        let manager = format!("{}:2377", self.address("h1")?);
        for host in self.agents().iter().skip(1) {
            self.say(
                host,
                &["swarmctl", "swarm", "join", "--token", token, &manager],
            )?;
        }
        Ok(())
    }

    fn ask(&self, host: &str) -> Result<WebAnswer> {
        let url = format!("http://{}:{PORT}/", self.address(host)?);
        self.quiet(CLIENT, &["curl", "-sSf", "--max-time", "5", &url])?
            .parse()
    }

    /// Asks through every host until every task has answered there, and the client's address is
    /// its own each time.
    fn every_host_answers(&self, tasks: usize) -> Result<()> {
        for host in self.agents() {
            let url = format!("http://{}:{PORT}/", self.address(&host)?);
            self.say(CLIENT, &["curl", "-sSf", "--max-time", "5", &url])?;
            self.answers_of(&host, tasks)?;
        }
        Ok(())
    }

    fn answers_of(&self, host: &str, tasks: usize) -> Result<()> {
        let client = self.address(CLIENT)?;
        let mut seen = BTreeSet::new();
        self.eventually("every task answers", SETTLE_DEADLINE, || {
            let answer = self.ask(host)?;
            ensure!(
                answer.client.ip().to_string() == client,
                "the task saw {} instead of the client",
                answer.client
            );
            seen.insert(answer.task);
            ensure!(
                seen.len() >= tasks,
                "{} of {tasks} tasks answered",
                seen.len()
            );
            Ok(())
        })?;
        println!(
            "    {} tasks answered through {host}, each saw the client as {client}",
            seen.len()
        );
        Ok(())
    }

    fn set_link(&self, host: &str, is_up: bool) -> Result<()> {
        let state = if is_up { "up" } else { "down" };
        println!("{host}# (its cable: {state})");
        let cable = format!("u-{host}");
        self.lab
            .exec(
                None,
                &["ip", "link", "set", &cable, state],
                ExecOptions::default(),
            )?
            .success()
            .map(drop)
    }

    fn lose(&self, lost: &str) -> Result<()> {
        self.set_link(lost, false)?;
        let started = Instant::now();
        self.eventually(
            "all tasks run on the hosts that are left",
            HEAL_DEADLINE,
            || {
                let ps = ["swarmctl", "service", "ps", "frontend", "--format", "json"];
                let text = self.quiet("h1", &ps)?;
                let running = text
                    .lines()
                    .filter(|line| line.contains(r#""CurrentState":"Running"#))
                    .filter(|line| line.contains(r#""DesiredState":"Running""#))
                    .filter(|line| !line.contains(&format!(r#""Node":"{lost}""#)))
                    .count();
                ensure!(running == 6, "{running} of 6 tasks run");
                Ok(())
            },
        )?;
        println!(
            "    whole again after {:.1} s",
            started.elapsed().as_secs_f64()
        );
        self.say("h1", &["swarmctl", "node", "ls"])?;
        self.say("h1", &["swarmctl", "service", "ps", "frontend"])?;
        for host in self.agents().iter().filter(|host| *host != lost) {
            self.answers_of(host, 6)?;
        }
        Ok(())
    }

    fn every_host_refuses(&self) -> Result<()> {
        for host in self.agents() {
            let url = format!("http://{}:{PORT}/", self.address(&host)?);
            let started = Instant::now();
            self.eventually("the port refuses", Duration::from_secs(5), || {
                let output = self.exec(CLIENT, &["curl", "-sS", "--max-time", "5", &url])?;
                // curl's code for a refused connection; a dropped one would be 28.
                match output.code {
                    7 => Ok(()),
                    code => bail!("curl ended with code {code}: {}", output.stderr.trim()),
                }
            })?;
            println!(
                "    {host} refuses after {:.1} s",
                started.elapsed().as_secs_f64()
            );
        }
        Ok(())
    }
}
