//! Prometheus's text exposition format, version 0.0.4
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>). Pure.

use std::fmt::Write as _;

/// The `Content-Type` of what [`render`] gives.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Whether a value may become less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It grows until what it is about is made anew.
    Counter,
    /// It may.
    Gauge,
}

/// A metric with its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Family {
    /// `[a-zA-Z_:][a-zA-Z0-9_:]*`, by convention with the unit, and `_total` for a counter.
    pub(super) name: &'static str,
    /// One line.
    pub(super) help: &'static str,
    /// What it is.
    pub(super) kind: Kind,
    /// Values, each with its labels.
    pub(super) samples: Vec<(Vec<Label>, u64)>,
}

/// A label's name and content.
pub(super) type Label = (&'static str, String);

/// The families as text. Those without a sample are left out.
pub(super) fn render(families: &[Family]) -> String {
    let mut text = String::new();
    for family in families.iter().filter(|family| !family.samples.is_empty()) {
        let Family {
            name, help, kind, ..
        } = family;
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        // Writing to a string does not fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in &family.samples {
            text.push_str(name);
            for (index, (label, content)) in labels.iter().enumerate() {
                let open = if index == 0 { '{' } else { ',' };
                let _ = write!(text, "{open}{label}=\"{}\"", escaped(content));
            }
            if !labels.is_empty() {
                text.push('}');
            }
            let _ = writeln!(text, " {value}");
        }
    }
    text
}

/// The content of a label between quotes.
fn escaped(content: &str) -> String {
    let mut escaped = String::with_capacity(content.len());
    for character in content.chars() {
        match character {
            '\\' => escaped.push_str("\\\\"),
            '"' => escaped.push_str("\\\""),
            '\n' => escaped.push_str("\\n"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn family(samples: Vec<(Vec<(&'static str, String)>, u64)>) -> Family {
        Family {
            name: "swarm_things_total",
            help: "Things.",
            kind: Kind::Counter,
            samples,
        }
    }

    #[test]
    fn values_are_told_with_their_labels() {
        let labels = vec![
            ("service", "web".to_owned()),
            ("task", "a\"b\\c\nd".to_owned()),
        ];
        let text = render(&[family(vec![(labels, 7), (Vec::new(), u64::MAX)])]);
        let expected = "# HELP swarm_things_total Things.\n\
                        # TYPE swarm_things_total counter\n\
                        swarm_things_total{service=\"web\",task=\"a\\\"b\\\\c\\nd\"} 7\n\
                        swarm_things_total 18446744073709551615\n";
        assert_eq!(text, expected);
        assert_eq!(render(&[family(Vec::new())]), "");
    }

    proptest! {
        #[test]
        fn whatever_a_label_holds_it_stays_on_its_line_and_between_its_quotes(content in ".*") {
            let text = render(&[family(vec![(vec![("service", content.clone())], 1)])]);
            let line = text.lines().nth(2);
            // `lines` also ends one at "\r\n", of which the line feed is escaped here.
            prop_assert_eq!(text.matches('\n').count(), 3);
            let quoted = line.unwrap().strip_prefix("swarm_things_total{service=\"").unwrap();
            let quoted = quoted.strip_suffix("\"} 1").unwrap();
            let mut read = String::new();
            let mut characters = quoted.chars();
            while let Some(character) = characters.next() {
                prop_assert_ne!(character, '"', "an unescaped quote");
                read.push(match character {
                    '\\' => match characters.next() {
                        Some('n') => '\n',
                        Some(other) => other,
                        None => return Err(TestCaseError::fail("ends in an escape")),
                    },
                    other => other,
                });
            }
            prop_assert_eq!(read, content);
        }
    }
}
