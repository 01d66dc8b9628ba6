//! Figures, and the bars that they are held against.

use std::fmt::Write as _;

use serde_json::{Value, json};

/// What a figure has to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bar {
    /// At least this much.
    AtLeast(f64),
    /// Less than this.
    Below(f64),
}

impl Bar {
    fn is_kept(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bar) => value >= bar,
            Self::Below(bar) => value < bar,
        }
    }
}

/// One figure.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// What was measured: its key in JSON, too.
    pub(crate) name: String,
    /// The figure.
    pub(crate) value: f64,
    /// Its unit.
    pub(crate) unit: &'static str,
    /// What it has to be, where that was promised.
    pub(crate) bar: Option<Bar>,
}

/// Everything that was measured.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

impl Report {
    /// Adds a figure, and says it at once: a run takes minutes.
    pub(crate) fn add(
        &mut self,
        name: impl Into<String>,
        value: f64,
        unit: &'static str,
        bar: Option<Bar>,
    ) {
        let row = Row {
            name: name.into(),
            value,
            unit,
            bar,
        };
        eprintln!("  {}: {} {}", row.name, shown(row.value), row.unit);
        self.rows.push(row);
    }

    /// The figures, for people (Markdown).
    pub(crate) fn table(&self) -> String {
        let mut text = "| what | figure | bar | |\n|---|---|---|---|\n".to_owned();
        for row in &self.rows {
            let (bar, verdict) = match row.bar {
                None => (String::new(), ""),
                Some(bar) => {
                    let words = match bar {
                        Bar::AtLeast(value) => format!("at least {}", shown(value)),
                        Bar::Below(value) => format!("below {}", shown(value)),
                    };
                    let verdict = if bar.is_kept(row.value) {
                        "kept"
                    } else {
                        "**missed**"
                    };
                    (words, verdict)
                }
            };
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "| {} | {} {} | {bar} | {verdict} |",
                row.name,
                shown(row.value),
                row.unit
            );
        }
        text
    }

    /// The same for programs.
    pub(crate) fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            let (at_least, below) = match row.bar {
                None => (None, None),
                Some(Bar::AtLeast(bar)) => (Some(bar), None),
                Some(Bar::Below(bar)) => (None, Some(bar)),
            };
            json!({
                "name": row.name,
                "value": row.value,
                "unit": row.unit,
                "at_least": at_least,
                "below": below,
                "kept": row.bar.map(|bar| bar.is_kept(row.value)),
            })
        });
        json!({ "figures": rows.collect::<Vec<_>>() })
    }
}

/// A figure with as many digits as say something.
fn shown(value: f64) -> String {
    if value.abs() >= 100.0 {
        format!("{value:.0}")
    } else if value.abs() >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_kept_or_missed() {
        let mut report = Report::default();
        report.add("fast", 3.0, "s", Some(Bar::Below(3.0)));
        report.add("many", 100_000.0, "/s", Some(Bar::AtLeast(100_000.0)));
        report.add("size", 12.34, "KiB", None);
        let table = report.table();
        assert!(
            table.contains("| fast | 3.00 s | below 3.00 | **missed** |"),
            "{table}"
        );
        assert!(
            table.contains("| many | 100000 /s | at least 100000 | kept |"),
            "{table}"
        );
        assert!(table.contains("| size | 12.3 KiB |  |  |"), "{table}");
        let json = report.json();
        assert_eq!(json["figures"][0]["kept"], json!(false));
        assert_eq!(json["figures"][2]["kept"], json!(null));
    }
}
