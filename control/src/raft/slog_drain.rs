//! raft-rs logs through slog; this hands it on to tracing.

use std::fmt::{Arguments, Write as _};

use slog::{Drain, KV as _, Key, Level, Logger, Never, OwnedKVList, Record, Serializer};

/// A logger for raft-rs. Its target is `raft`.
pub(super) fn logger() -> Logger {
    Logger::root(TracingDrain, slog::o!())
}

struct TracingDrain;

impl Drain for TracingDrain {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), Never> {
        macro_rules! event {
            ($level:ident) => {
                if tracing::event_enabled!(target: "raft", tracing::Level::$level) {
                    tracing::event!(target: "raft", tracing::Level::$level, "{}", text(record, values));
                }
            };
        }
        match record.level() {
            Level::Critical | Level::Error => event!(ERROR),
            Level::Warning => event!(WARN),
            // What raft-rs thinks informative is every step of an election.
            Level::Info => event!(DEBUG),
            Level::Debug | Level::Trace => event!(TRACE),
        }
        Ok(())
    }
}

fn text(record: &Record<'_>, values: &OwnedKVList) -> String {
    let mut line = Line(record.msg().to_string());
    // Writing to a string cannot fail; a value that cannot print itself is left out.
    let _ = record.kv().serialize(record, &mut line);
    let _ = values.serialize(record, &mut line);
    line.0
}

struct Line(String);

impl Serializer for Line {
    fn emit_arguments(&mut self, key: Key, value: &Arguments<'_>) -> slog::Result {
        write!(self.0, " {key}={value}")?;
        Ok(())
    }
}
