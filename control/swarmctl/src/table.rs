//! Lists: Docker's columns, padded with three spaces, or one JSON object a line.

use serde_json::{Map, Value};

/// How a list is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Columns for people.
    #[default]
    Table,
    /// One JSON object a line, for programs.
    Json,
}

/// Options of every command that lists.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct ListOptions {
    /// How to print the list
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
    /// Print the ids alone
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// A list: column heads as tables show them, with their JSON names, and rows of as many cells.
#[derive(Debug)]
pub(crate) struct Table<const N: usize> {
    /// `(HEAD, JsonName)`; the first column is the id.
    pub(crate) columns: [(&'static str, &'static str); N],
    /// Cells.
    pub(crate) rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// The list as text, a line feed at its end.
    pub(crate) fn render(&self, options: ListOptions) -> String {
        if options.quiet {
            return self
                .rows
                .iter()
                .map(|row| format!("{}\n", row[0]))
                .collect();
        }
        match options.format {
            Format::Table => self.render_table(),
            Format::Json => self.render_json(),
        }
    }

    fn render_table(&self) -> String {
        let heads = self.columns.map(|(head, _)| head.to_owned());
        let lines = || std::iter::once(&heads).chain(&self.rows);
        let widths: [usize; N] = std::array::from_fn(|column| {
            lines()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        });
        let mut text = String::new();
        for row in lines() {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(widths) {
                line.push_str(&format!("{cell:width$}   "));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    fn render_json(&self) -> String {
        let line = |row: &[String; N]| {
            let object: Map<String, Value> = self
                .columns
                .iter()
                .zip(row)
                .map(|((_, name), cell)| ((*name).to_owned(), Value::String(cell.clone())))
                .collect();
            format!("{}\n", Value::Object(object))
        };
        self.rows.iter().map(line).collect()
    }
}

/// `word` as a cell shows it.
pub(crate) fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(letters).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table<2> {
        Table {
            columns: [("ID", "ID"), ("CURRENT STATE", "CurrentState")],
            rows: vec![
                ["abc".to_owned(), "up".to_owned()],
                ["d".to_owned(), String::new()],
            ],
        }
    }

    fn options(format: Format, quiet: bool) -> ListOptions {
        ListOptions { format, quiet }
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let text = table().render(options(Format::Table, false));
        assert_eq!(text, "ID    CURRENT STATE\nabc   up\nd\n");
    }

    #[test]
    fn json_is_one_object_a_line() {
        let text = table().render(options(Format::Json, false));
        assert_eq!(text.lines().count(), 2);
        assert!(
            text.starts_with(r#"{"CurrentState":"up","ID":"abc"}"#),
            "{text}"
        );
    }

    #[test]
    fn quiet_is_ids() {
        assert_eq!(table().render(options(Format::Table, true)), "abc\nd\n");
    }
}
