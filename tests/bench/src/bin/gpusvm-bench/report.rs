// SPDX-License-Identifier: GPL-2.0

//! The figures, as tables for people and as JSON for machines.

use crate::samples::Summary;
use std::fmt::Write;

/// One figure.
#[derive(Clone, Copy, Debug)]
pub enum Cell {
    /// Of repeated measurements; people see the mean.
    Measured(Summary),
    /// A number.
    Number(u64),
    /// A share, in percent.
    Percent(f64),
    /// A quotient.
    Ratio(f64),
    /// Not measured.
    None,
}

impl From<Summary> for Cell {
    fn from(summary: Summary) -> Self {
        Self::Measured(summary)
    }
}

impl From<u64> for Cell {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl Cell {
    /// `part` of `whole`, in percent.
    pub fn percent(part: u64, whole: u64) -> Self {
        match whole {
            0 => Self::None,
            _ => Self::Percent(part as f64 * 100.0 / whole as f64),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Measured(summary) => grouped(summary.mean),
            Self::Number(number) => grouped(*number),
            Self::Percent(share) => format!("{share:.1} %"),
            Self::Ratio(ratio) => format!("{ratio:.2}"),
            Self::None => String::new(),
        }
    }

    fn json(&self) -> String {
        match self {
            Self::Measured(s) => format!(
                "{{\"mean\": {}, \"median\": {}, \"min\": {}, \"max\": {}, \"samples\": {}}}",
                s.mean, s.median, s.least, s.most, s.samples
            ),
            Self::Number(number) => number.to_string(),
            Self::Percent(value) | Self::Ratio(value) => format!("{value:.4}"),
            Self::None => "null".into(),
        }
    }
}

/// A line of a table.
#[derive(Clone, Debug)]
struct Row {
    id: String,
    title: String,
    cells: Vec<Cell>,
}

/// Figures that belong together.
#[derive(Clone, Debug)]
pub struct Table {
    id: &'static str,
    title: &'static str,
    /// Id and heading of each column.
    columns: Vec<(&'static str, &'static str)>,
    rows: Vec<Row>,
    notes: Vec<String>,
}

impl Table {
    /// An empty table. Ids are what machines know things by, and stay; titles are for people.
    pub fn new(
        id: &'static str,
        title: &'static str,
        columns: &[(&'static str, &'static str)],
    ) -> Self {
        Self { id, title, columns: columns.to_vec(), rows: Vec::new(), notes: Vec::new() }
    }

    /// Adds a line, with a cell for each column.
    pub fn row(&mut self, id: impl Into<String>, title: impl Into<String>, cells: Vec<Cell>) {
        assert_eq!(cells.len(), self.columns.len(), "a cell for each column");
        self.rows.push(Row { id: id.into(), title: title.into(), cells });
    }

    /// Adds a remark for people.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// The table as text.
    pub fn text(&self) -> String {
        let first = self.rows.iter().map(|row| row.title.chars().count()).max().unwrap_or(0);
        let first = first.max(self.title.chars().count());
        let widths: Vec<usize> = self
            .columns
            .iter()
            .enumerate()
            .map(|(i, (_, heading))| {
                let cells = self.rows.iter().map(|row| row.cells[i].text().chars().count());
                cells.max().unwrap_or(0).max(heading.chars().count())
            })
            .collect();
        let mut out = String::new();
        let mut line = |title: &str, cells: &mut dyn Iterator<Item = String>| {
            let mut text = format!("{title:<first$}");
            for (cell, width) in cells.zip(&widths) {
                let _ = write!(text, "  {cell:>width$}");
            }
            out.push_str(text.trim_end());
            out.push('\n');
        };
        line(self.title, &mut self.columns.iter().map(|(_, heading)| (*heading).to_owned()));
        for row in &self.rows {
            line(&row.title, &mut row.cells.iter().map(Cell::text));
        }
        for note in &self.notes {
            let _ = writeln!(out, "  {note}");
        }
        out
    }

    fn json(&self) -> String {
        let rows: Vec<String> = self
            .rows
            .iter()
            .map(|row| {
                let cells: Vec<String> = self
                    .columns
                    .iter()
                    .zip(&row.cells)
                    .map(|((id, _), cell)| format!("{}: {}", quoted(id), cell.json()))
                    .collect();
                format!(
                    "      {}: {{\"title\": {}, {}}}",
                    quoted(&row.id),
                    quoted(&row.title),
                    cells.join(", ")
                )
            })
            .collect();
        format!(
            "    {}: {{\n      \"title\": {},\n{}\n    }}",
            quoted(self.id),
            quoted(self.title),
            rows.join(",\n")
        )
    }
}

/// What was measured on: names and values.
pub type Facts = Vec<(&'static str, String)>;

/// All tables as JSON.
pub fn json(facts: &Facts, tables: &[Table]) -> String {
    let facts: Vec<String> = facts
        .iter()
        .map(|(name, value)| format!("  {}: {}", quoted(name), quoted(value)))
        .collect();
    let tables: Vec<String> = tables.iter().map(Table::json).collect();
    format!(
        "{{\n  \"schema\": 1,\n{},\n  \"tables\": {{\n{}\n  }}\n}}\n",
        facts.join(",\n"),
        tables.join(",\n")
    )
}

/// A string of JSON.
fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c < ' ' => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A number with its digits in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i != 0 && (digits.len() - i) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1000), "1,000");
        assert_eq!(grouped(1_234_567), "1,234,567");
    }

    #[test]
    fn tables_are_text_and_json() {
        let mut table = Table::new("t", "Title", &[("a", "A"), ("b", "share")]);
        table.row("r", "say \"r\"", vec![12345.into(), Cell::percent(1, 4)]);
        assert_eq!(table.text(), "Title         A   share\nsay \"r\"  12,345  25.0 %\n");
        let json = json(&vec![("unit", "x".into())], &[table]);
        assert!(
            json.contains("\"r\": {\"title\": \"say \\\"r\\\"\", \"a\": 12345, \"b\": 25.0000}")
        );
    }
}
