//! `swarmctl mesh check`.

use std::process::ExitCode;

use serde_json::json;
use swarm_api::v1;

use crate::connect::{Sockets, answer, request};
use crate::table::Format;

/// Compares what the networks of this host are to be with its kernel, and prints each difference on
/// a line. Changes nothing; what differs is put right by the agent within seconds, or is printed
/// with the reason why not. Exits with 1 when there is anything to print.
#[derive(Debug, clap::Args)]
pub(crate) struct Check {
    /// How to print the differences
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Check {
    pub(super) async fn run(self, sockets: &Sockets) -> anyhow::Result<ExitCode> {
        let message = request(v1::CheckMeshRequest {});
        let found = answer(sockets.agent().await?.check_mesh(message).await)?;
        print!("{}", render(&found, self.format));
        Ok(match is_clean(&found) {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        })
    }
}

fn is_clean(found: &v1::CheckMeshResponse) -> bool {
    found.differences.is_empty() && found.problems.is_empty()
}

/// A line each; problems of the host behind a `!`, as under `service ps`.
fn render(found: &v1::CheckMeshResponse, format: Format) -> String {
    let lines = found.differences.iter().map(|difference| match format {
        Format::Table => format!("{}: {}\n", difference.place, difference.text),
        Format::Json => {
            let line = json!({ "Place": difference.place, "Difference": difference.text });
            format!("{line}\n")
        }
    });
    let problems = found.problems.iter().map(|problem| match format {
        Format::Table => format!("! {problem}\n"),
        Format::Json => format!("{}\n", json!({ "Problem": problem })),
    });
    let left_out = (found.left_out > 0).then(|| match format {
        Format::Table => format!("... and {} more differences\n", found.left_out),
        Format::Json => format!("{}\n", json!({ "LeftOut": found.left_out })),
    });
    lines.chain(left_out).chain(problems).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> v1::CheckMeshResponse {
        v1::CheckMeshResponse {
            differences: vec![v1::MeshDifference {
                place: "ingress".to_owned(),
                text: "br0 is down".to_owned(),
            }],
            left_out: 3,
            problems: vec!["no \"IPVS\"".to_owned()],
        }
    }

    #[test]
    fn differences_are_told_line_by_line() {
        assert_eq!(
            render(&found(), Format::Table),
            "ingress: br0 is down\n... and 3 more differences\n! no \"IPVS\"\n"
        );
        let json = render(&found(), Format::Json);
        let lines: Vec<serde_json::Value> = json
            .lines()
            .map(|line| serde_json::from_str(line).expect("a line is JSON"))
            .collect();
        assert_eq!(lines[0]["Difference"], "br0 is down");
        assert_eq!(lines[1]["LeftOut"], 3);
        assert_eq!(lines[2]["Problem"], "no \"IPVS\"");
    }

    #[test]
    fn a_problem_is_not_clean_either() {
        assert!(is_clean(&v1::CheckMeshResponse::default()));
        assert!(!is_clean(&found()));
        let problem = v1::CheckMeshResponse {
            differences: Vec::new(),
            left_out: 0,
            ..found()
        };
        assert!(!is_clean(&problem));
    }
}
