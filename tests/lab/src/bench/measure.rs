//! One cell of the table: the client's command and what its output says.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::{Row, Sample, Target};
use crate::{Host, RUN_DIR};

/// Connections of a client at once: enough to keep one server process busy.
const CONNECTIONS: &str = "8";

/// What a cell may take beyond its measurement; a client that hangs fails it.
const GRACE: Duration = Duration::from_secs(30);

/// Has wrk end with its results as JSON: exact, where its own text has rounded them. The functions
/// called per request are left alone, so that it costs nothing during the run.
const WRK_SCRIPT: &str = r#"
done = function(summary, latency)
    local errors = summary.errors
    local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
    io.write(string.format(
        '{"requests":%d,"duration_us":%d,"failed":%d,"p50_us":%d,"p99_us":%d}\n',
        summary.requests, summary.duration, failed,
        latency:percentile(50), latency:percentile(99)))
end
"#;

#[derive(Debug, PartialEq, Deserialize)]
struct Requests {
    requests: u64,
    duration_us: u64,
    failed: u64,
    p50_us: u64,
    p99_us: u64,
}

fn wrk_script() -> String {
    format!("{RUN_DIR}/bench-wrk.lua")
}

/// Puts in place what the client's commands need.
///
/// # Errors
/// When it cannot be written.
pub(super) fn prepare() -> Result<()> {
    let path = wrk_script();
    fs::write(Path::new(&path), WRK_SCRIPT).with_context(|| format!("cannot write {path}"))
}

/// Measures one cell once, for that many seconds. The sample's round is for the caller to set.
///
/// # Errors
/// When the client fails or says nothing that makes sense.
pub(super) fn cell(client: &Host, target: &Target, row: Row, seconds: u32) -> Result<Sample> {
    let measured = match row {
        Row::TcpStream => stream(client, target, seconds),
        Row::Keepalive => requests(client, target, seconds, &[]),
        Row::NewConnections => {
            requests(client, target, seconds, &["--header", "Connection: close"])
        }
    };
    measured.with_context(|| format!("{row} through {}", target.system))
}

fn stream(client: &Host, target: &Target, seconds: u32) -> Result<Sample> {
    let (address, port) = (target.address.to_string(), target.stream_port.to_string());
    let duration = seconds.to_string();
    let argv = [
        "iperf3", "--client", &address, "--port", &port, "--time", &duration, "--json",
    ];
    let text = client.exec_within(deadline(seconds), &argv)?.success()?;
    Ok(Sample {
        system: target.system,
        row: Row::TcpStream,
        round: 0,
        value: received_bits_per_s(&text)?,
        p50_us: None,
        p99_us: None,
        failed: 0,
    })
}

fn requests(client: &Host, target: &Target, seconds: u32, more: &[&str]) -> Result<Sample> {
    let (url, script) = (target.url(), wrk_script());
    let duration = format!("{seconds}s");
    let mut argv = vec![
        "wrk",
        "--threads",
        "1",
        "--connections",
        CONNECTIONS,
        "--duration",
        &duration,
        "--script",
        &script,
    ];
    argv.extend(more);
    argv.push(&url);
    let text = client.exec_within(deadline(seconds), &argv)?.success()?;
    let found = parse_requests(&text)?;
    Ok(Sample {
        system: target.system,
        row: if more.is_empty() {
            Row::Keepalive
        } else {
            Row::NewConnections
        },
        round: 0,
        value: found.requests as f64 * 1e6 / found.duration_us as f64,
        p50_us: Some(found.p50_us),
        p99_us: Some(found.p99_us),
        failed: found.failed,
    })
}

fn deadline(seconds: u32) -> Duration {
    Duration::from_secs(seconds.into()) + GRACE
}

/// What arrived at the server, by its own count.
fn received_bits_per_s(json: &str) -> Result<f64> {
    let report: serde_json::Value = serde_json::from_str(json).context("iperf3's report")?;
    if let Some(error) = report["error"].as_str() {
        bail!("iperf3: {error}");
    }
    report["end"]["sum_received"]["bits_per_second"]
        .as_f64()
        .context("no rate in iperf3's report")
}

fn parse_requests(text: &str) -> Result<Requests> {
    let line = text.lines().rev().find(|line| line.starts_with('{'));
    let line = line.with_context(|| format!("no results from wrk:\n{text}"))?;
    let found: Requests = serde_json::from_str(line).context("wrk's results")?;
    if found.requests == 0 || found.duration_us == 0 {
        bail!("not one request was answered:\n{text}");
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_the_last_line_of_the_clients_output() {
        let line = r#"{"requests":700,"duration_us":100000,"failed":1,"p50_us":5,"p99_us":9}"#;
        let text = format!("Running 1s test\n  8 connections\n{line}\n");
        assert_eq!(
            parse_requests(&text).unwrap(),
            Requests {
                requests: 700,
                duration_us: 100_000,
                failed: 1,
                p50_us: 5,
                p99_us: 9
            }
        );
        assert!(parse_requests("unable to connect").is_err());
        assert!(parse_requests(&line.replace("700", "0")).is_err());
    }

    #[test]
    fn a_stream_counts_what_arrived() {
        let text = r#"{"end": {"sum_sent": {"bits_per_second": 9.0},
            "sum_received": {"bits_per_second": 1.5e9}}}"#;
        assert_eq!(received_bits_per_s(text).unwrap(), 1.5e9);
        let error = received_bits_per_s(r#"{"error": "unable to connect"}"#).unwrap_err();
        assert!(error.to_string().contains("unable to connect"));
    }
}
