//! What was measured, and what it says: medians, ratios, bars.
//!
//! Pure: the inside of the lab fills a [`Report`], `cargo xtask bench mesh` shows it.

use std::fmt::{self, Write};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// What is compared.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum System {
    /// VXLAN forwarding without balancing: the floor.
    Plain,
    /// Docker Swarm's routing mesh.
    Docker,
    /// This project's.
    Ours,
}

/// What is measured: a row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Row {
    /// One TCP connection as fast as it goes, from the client to the task, in bits per second.
    TcpStream,
    /// Requests per second on connections that stay.
    Keepalive,
    /// Requests per second on a connection each.
    NewConnections,
}

/// One measurement of one cell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Of which system.
    pub system: System,
    /// Of what.
    pub row: Row,
    /// In which round, from 0.
    pub round: u32,
    /// In the unit of the row.
    pub value: f64,
    /// Half of the requests were answered within this, in microseconds. On a connection each, this
    /// is from the request on: the handshake comes before.
    pub p50_us: Option<u64>,
    /// 99 of 100 were.
    pub p99_us: Option<u64>,
    /// Requests that were not answered properly.
    pub failed: u64,
}

/// What it was measured on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// Release of the lab's kernel.
    pub kernel: String,
    /// Processors of the lab.
    pub cpus: u32,
    /// Docker's own words about its version.
    pub docker: String,
}

/// Everything one run has measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What it was measured on.
    pub environment: Environment,
    /// How many times each cell was measured.
    pub rounds: u32,
    /// For how long each time, in seconds.
    pub cell_s: u32,
    /// Which systems.
    pub systems: Vec<System>,
    /// What else is to be known, a line each.
    pub notes: Vec<String>,
    /// Every measurement, in the order they were made.
    pub samples: Vec<Sample>,
}

/// What ours has to reach.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bar {
    row: Row,
    against: System,
    /// Least ratio (the median of the rounds' ratios); for the peer it has to be exceeded.
    ratio: f64,
}

/// A bar and what was reached.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Verdict {
    /// The bar.
    pub bar: Bar,
    /// Median of the rounds' ratios.
    pub ratio: f64,
    /// Whether that is enough.
    pub is_met: bool,
}

/// The project's goals for the mesh.
const BARS: [Bar; 5] = [
    Bar {
        row: Row::Keepalive,
        against: System::Plain,
        ratio: 0.90,
    },
    Bar {
        row: Row::NewConnections,
        against: System::Plain,
        ratio: 0.85,
    },
    Bar {
        row: Row::TcpStream,
        against: System::Docker,
        ratio: 1.0,
    },
    Bar {
        row: Row::Keepalive,
        against: System::Docker,
        ratio: 1.0,
    },
    Bar {
        row: Row::NewConnections,
        against: System::Docker,
        ratio: 1.0,
    },
];

impl System {
    /// All of them, the floor first.
    pub const ALL: [Self; 3] = [Self::Plain, Self::Docker, Self::Ours];
}

impl fmt::Display for System {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Plain => "plain",
            Self::Docker => "docker",
            Self::Ours => "ours",
        })
    }
}

impl Row {
    /// All of them, in the table's order.
    pub const ALL: [Self; 3] = [Self::TcpStream, Self::Keepalive, Self::NewConnections];

    /// A value of this row for people, without its unit.
    #[must_use]
    pub fn shown(self, value: f64) -> String {
        match self {
            Self::TcpStream => format!("{:.2}", value / 1e9),
            Self::Keepalive | Self::NewConnections => format!("{value:.0}"),
        }
    }

    fn key(self) -> &'static str {
        match self {
            Self::TcpStream => "tcp_stream_bits_per_s",
            Self::Keepalive => "keepalive_requests_per_s",
            Self::NewConnections => "new_connections_per_s",
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::TcpStream => "one TCP stream, Gbit/s",
            Self::Keepalive => "keep-alive requests/s",
            Self::NewConnections => "new connections/s",
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Bar {
            row,
            against,
            ratio,
        } = self.bar;
        let wanted = match against {
            System::Docker => "above".to_owned(),
            _ => format!("at least {ratio:.2} of"),
        };
        let mark = if self.is_met { "met   " } else { "MISSED" };
        write!(
            formatter,
            "{mark}  ours {wanted} {against} in {row}: {:.2}",
            self.ratio
        )
    }
}

impl Report {
    fn values(&self, system: System, row: Row, pick: impl Fn(&Sample) -> Option<f64>) -> Vec<f64> {
        let mut values: Vec<f64> = self
            .samples
            .iter()
            .filter(|sample| sample.system == system && sample.row == row)
            .filter_map(pick)
            .collect();
        values.sort_by(f64::total_cmp);
        values
    }

    /// The median over all rounds; none when the cell was not measured.
    #[must_use]
    pub fn median(&self, system: System, row: Row) -> Option<f64> {
        median(&self.values(system, row, |sample| Some(sample.value)))
    }

    /// The median of the rounds' ratios. A round measures its systems directly one after another; between
    /// rounds the machine's own speed can change more than the systems differ.
    fn ratio(&self, row: Row, over: System, under: System) -> Option<f64> {
        let in_round = |system, round| {
            let cell = |sample: &&Sample| {
                sample.system == system && sample.row == row && sample.round == round
            };
            self.samples.iter().find(cell).map(|sample| sample.value)
        };
        let ratios = (0..self.rounds)
            .filter_map(|round| Some(in_round(over, round)? / in_round(under, round)?));
        let mut ratios: Vec<f64> = ratios.collect();
        ratios.sort_by(f64::total_cmp);
        median(&ratios)
    }

    /// Every bar whose systems were measured.
    #[must_use]
    pub fn verdicts(&self) -> Vec<Verdict> {
        BARS.into_iter()
            .filter_map(|bar| {
                let ratio = self.ratio(bar.row, System::Ours, bar.against)?;
                let is_met = match bar.against {
                    System::Docker => ratio > bar.ratio,
                    _ => ratio >= bar.ratio,
                };
                Some(Verdict { bar, ratio, is_met })
            })
            .collect()
    }

    /// The table of medians and ratios, with the smallest and the largest value of each cell, and
    /// the notes and the verdicts below it.
    #[must_use]
    pub fn table(&self) -> String {
        const RATIOS: [(System, System); 3] = [
            (System::Docker, System::Plain),
            (System::Ours, System::Plain),
            (System::Ours, System::Docker),
        ];
        let mut text = format!(
            "medians of {} rounds of {} s (smallest to largest), and of the rounds' ratios\n\n{:<24}",
            self.rounds, self.cell_s, ""
        );
        for system in &self.systems {
            write!(text, "{:>22}", system.to_string()).ok();
        }
        for (over, under) in RATIOS {
            write!(text, "{:>14}", format!("{over}/{under}")).ok();
        }
        text.push('\n');
        for row in Row::ALL {
            write!(text, "{row:<24}").ok();
            for system in &self.systems {
                let values = self.values(*system, row, |sample| Some(sample.value));
                write!(text, "{:>22}", spread(&values, |value| row.shown(value))).ok();
            }
            for (over, under) in RATIOS {
                let ratio = self.ratio(row, over, under);
                let shown = ratio.map_or("-".into(), |ratio| format!("{ratio:.2}"));
                write!(text, "{shown:>14}").ok();
            }
            text.push('\n');
            if row == Row::TcpStream {
                continue;
            }
            for (name, pick) in PERCENTILES {
                write!(text, "  {:<22}", format!("{name}, ms")).ok();
                for system in &self.systems {
                    let values = self.values(*system, row, pick);
                    write!(
                        text,
                        "{:>22}",
                        spread(&values, |us| format!("{:.2}", us / 1e3))
                    )
                    .ok();
                }
                text.push('\n');
            }
        }
        text.push('\n');
        for note in self.notes.iter().cloned().chain(self.failures()) {
            writeln!(text, "{note}").ok();
        }
        for verdict in self.verdicts() {
            writeln!(text, "{verdict}").ok();
        }
        text
    }

    /// A line for each system with requests that failed.
    fn failures(&self) -> impl Iterator<Item = String> {
        self.systems.iter().filter_map(|system| {
            let samples = self
                .samples
                .iter()
                .filter(|sample| sample.system == *system);
            let failed: u64 = samples.map(|sample| sample.failed).sum();
            (failed > 0).then(|| format!("{system}: {failed} requests failed"))
        })
    }

    /// The medians as an object per row with a number per system, and next to them everything they
    /// come from.
    #[must_use]
    pub fn json(&self) -> Value {
        let per_system = |of: &dyn Fn(System) -> Option<f64>| -> Value {
            let pairs = self
                .systems
                .iter()
                .filter_map(|system| Some((system.to_string(), json!(of(*system)?))));
            Value::Object(pairs.collect())
        };
        let mut object = Map::new();
        for row in Row::ALL {
            object.insert(
                row.key().into(),
                per_system(&|system| self.median(system, row)),
            );
        }
        for (row, name) in [
            (Row::Keepalive, "keepalive_latency_us"),
            (Row::NewConnections, "new_connection_latency_us"),
        ] {
            let percentiles = PERCENTILES.into_iter().map(|(percentile, pick)| {
                let of = |system| median(&self.values(system, row, pick));
                (percentile.to_owned(), per_system(&of))
            });
            object.insert(name.into(), Value::Object(percentiles.collect()));
        }
        let bars = self.verdicts().into_iter().map(|verdict| {
            json!({
                "row": verdict.bar.row.key(),
                "against": verdict.bar.against,
                "wanted_ratio": verdict.bar.ratio,
                "ratio": verdict.ratio,
                "met": verdict.is_met,
            })
        });
        object.insert("bars".into(), bars.collect());
        object.insert("run".into(), json!(self));
        Value::Object(object)
    }
}

type Pick = fn(&Sample) -> Option<f64>;

const PERCENTILES: [(&str, Pick); 2] = [
    ("p50", |sample| sample.p50_us.map(|us| us as f64)),
    ("p99", |sample| sample.p99_us.map(|us| us as f64)),
];

/// Of sorted values; the mean of the middle two where their number is even.
fn median(sorted: &[f64]) -> Option<f64> {
    let upper = sorted.get(sorted.len() / 2)?;
    let lower = sorted[(sorted.len() - 1) / 2];
    Some((lower + upper) / 2.0)
}

fn spread(sorted: &[f64], shown: impl Fn(f64) -> String) -> String {
    match (median(sorted), sorted) {
        (Some(middle), [first, .., last]) => {
            format!("{} ({}-{})", shown(middle), shown(*first), shown(*last))
        }
        (Some(middle), _) => shown(middle),
        (None, _) => "-".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(cells: &[(System, Row, &[f64])]) -> Report {
        let samples = cells.iter().flat_map(|(system, row, values)| {
            values.iter().zip(0..).map(|(value, round)| Sample {
                system: *system,
                row: *row,
                round,
                value: *value,
                p50_us: (*row != Row::TcpStream).then_some(800),
                p99_us: (*row != Row::TcpStream).then_some(2500),
                failed: 0,
            })
        });
        Report {
            environment: Environment {
                kernel: "6.12".into(),
                cpus: 2,
                docker: "Docker version 26.1".into(),
            },
            rounds: 3,
            cell_s: 4,
            systems: System::ALL.to_vec(),
            notes: vec!["a note".into()],
            samples: samples.collect(),
        }
    }

    fn all(ours_keepalive: f64, ours_new: f64) -> Report {
        report(&[
            (System::Plain, Row::TcpStream, &[1.6e9, 1.5e9, 9e9]),
            (System::Docker, Row::TcpStream, &[1.2e9; 3]),
            (System::Ours, Row::TcpStream, &[1.3e9; 3]),
            (System::Plain, Row::Keepalive, &[1000.0; 3]),
            (System::Docker, Row::Keepalive, &[700.0; 3]),
            (System::Ours, Row::Keepalive, &[ours_keepalive; 3]),
            (System::Plain, Row::NewConnections, &[100.0; 3]),
            (System::Docker, Row::NewConnections, &[60.0; 3]),
            (System::Ours, Row::NewConnections, &[ours_new; 3]),
        ])
    }

    fn missed(report: &Report) -> Vec<String> {
        let missed = report
            .verdicts()
            .into_iter()
            .filter(|verdict| !verdict.is_met);
        missed.map(|verdict| verdict.to_string()).collect()
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[1.0, 4.0]), Some(2.5));
        assert_eq!(
            all(1.0, 1.0).median(System::Plain, Row::TcpStream),
            Some(1.6e9)
        );
    }

    #[test]
    fn bars_are_met_from_their_ratio_on_and_the_peer_has_to_be_exceeded() {
        assert_eq!(missed(&all(900.0, 85.0)), [""; 0]);
        let low = missed(&all(899.0, 84.0));
        assert_eq!(low.len(), 2, "{low:?}");
        assert!(
            low[0].contains("at least 0.90 of plain in keep-alive"),
            "{low:?}"
        );
        let level = missed(&all(700.0, 90.0));
        assert!(
            level
                .iter()
                .any(|line| line.contains("above docker in keep-alive")),
            "{level:?}"
        );
    }

    #[test]
    fn a_ratio_is_of_one_round_whatever_the_machine_does_between_rounds() {
        let report = report(&[
            (System::Plain, Row::Keepalive, &[1000.0, 400.0, 2000.0]),
            (System::Ours, Row::Keepalive, &[950.0, 360.0, 1000.0]),
        ]);
        let ratio = report.ratio(Row::Keepalive, System::Ours, System::Plain);
        assert_eq!(ratio, Some(0.9));
        assert_eq!(
            report.ratio(Row::Keepalive, System::Ours, System::Docker),
            None
        );
    }

    #[test]
    fn json_has_a_number_per_row_and_system() {
        let json = all(950.0, 90.0).json();
        for (row, ours) in [
            ("keepalive_requests_per_s", 950.0),
            ("new_connections_per_s", 90.0),
            ("tcp_stream_bits_per_s", 1.3e9),
        ] {
            let systems = json[row].as_object().unwrap();
            assert_eq!(systems.len(), 3);
            assert_eq!(systems["ours"], ours);
        }
        assert_eq!(json["keepalive_latency_us"]["p99"]["docker"], 2500.0);
        assert_eq!(json["bars"].as_array().unwrap().len(), 5);
    }

    #[test]
    fn what_was_not_measured_is_left_out() {
        let mut report = report(&[
            (System::Plain, Row::Keepalive, &[1000.0]),
            (System::Docker, Row::Keepalive, &[700.0]),
        ]);
        report.systems = vec![System::Plain, System::Docker];
        assert!(report.verdicts().is_empty());
        assert_eq!(
            report.json()["keepalive_requests_per_s"]
                .as_object()
                .unwrap()
                .len(),
            2
        );
        assert!(report.table().contains("0.70"));
    }

    #[test]
    fn the_table_has_every_row_the_notes_and_the_failures() {
        let mut report = all(950.0, 90.0);
        report.samples[3].failed = 2;
        let table = report.table();
        for row in Row::ALL {
            assert!(table.contains(&row.to_string()), "{table}");
        }
        assert!(
            table.contains("a note\ndocker: 2 requests failed\n"),
            "{table}"
        );
    }

    #[test]
    fn a_report_survives_the_way_out_of_the_lab() {
        let report = all(950.0, 90.0);
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    }
}
