//! Runs seeds, as many at a time as there are processors; prints and counts those that fail.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use clap::Parser;
use swarm_sim::{Failure, Sabotage, Summary, run};

/// Failing seeds after which no more are tried: the first few say what is wrong.
const FAILURES_MAX: usize = 5;

/// Whole clusters on virtual time, from seeds.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many seeds to run.
    #[arg(long, default_value_t = 2000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Print everything that happens.
    #[arg(long)]
    trace: bool,
    /// Threads; as many as there are processors when absent.
    #[arg(long)]
    jobs: Option<usize>,
}

#[derive(Default)]
struct Totals {
    runs: u64,
    events: u64,
    elections: u64,
    restarts: u64,
    acknowledged: u64,
    failed: Vec<(u64, Failure)>,
}

impl Totals {
    fn add(&mut self, seed: u64, result: Result<Summary, Failure>) {
        self.runs += 1;
        match result {
            Ok(summary) => {
                self.events += summary.events;
                self.elections += summary.elections;
                self.restarts += summary.restarts;
                self.acknowledged += summary.acknowledged;
            }
            Err(failure) => {
                println!("seed {seed} FAILED: {}", failure.violation);
                println!("  again: cargo xtask sim --from {seed} --seeds 1 --trace");
                self.failed.push((seed, failure));
            }
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Panics are caught, and told with their seed.
    std::panic::set_hook(Box::new(|_| {}));
    let started = Instant::now();
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let totals = Mutex::new(Totals::default());
    let jobs = arguments.jobs.filter(|_| !arguments.trace);
    let available = || thread::available_parallelism().map_or(1, usize::from);
    let jobs = if arguments.trace {
        1
    } else {
        jobs.unwrap_or_else(available)
    };
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= arguments.seeds || stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let seed = arguments.from.wrapping_add(number);
                    let result = run(seed, Sabotage::None, arguments.trace);
                    if arguments.trace
                        && let Ok(summary) = &result
                    {
                        println!("{summary:#?}");
                    }
                    let Ok(mut totals) = totals.lock() else {
                        return;
                    };
                    totals.add(seed, result);
                    if totals.failed.len() >= FAILURES_MAX {
                        stop.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let totals = totals.into_inner().unwrap_or_default();
    if let Some((seed, failure)) = totals.failed.first()
        && !arguments.trace
    {
        println!("the end of seed {seed}:");
        for line in &failure.trace {
            println!("  {line}");
        }
    }
    println!(
        "{} seeds from {}: {} failed; {} events, {} elections, {} restarts, {} acknowledged calls; {:.1} s",
        totals.runs,
        arguments.from,
        totals.failed.len(),
        totals.events,
        totals.elections,
        totals.restarts,
        totals.acknowledged,
        started.elapsed().as_secs_f64(),
    );
    if totals.failed.is_empty() && totals.runs == arguments.seeds {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
