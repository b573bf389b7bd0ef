// SPDX-License-Identifier: GPL-2.0

//! A table for people.

use std::{fmt, time::Duration};

/// Columns as wide as they must be; all but the first aligned as their contents are.
pub struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these heads of columns; without any it has no head.
    pub fn new(head: &[&str]) -> Self {
        Self { head: head.iter().map(|&h| h.to_owned()).collect(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = (!self.head.is_empty()).then_some(&self.head);
        let all: Vec<&Vec<String>> = head.into_iter().chain(&self.rows).collect();
        let columns = all.iter().map(|row| row.len()).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = all.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &all {
            let mut line = String::from(" ");
            for (column, cell) in row.iter().enumerate() {
                let room = widths[column];
                // Figures go to the right, words to the left.
                let body = self.rows.first().and_then(|r| r.get(column));
                let figure = column > 0 && body.is_some_and(|c| is_figure(c));
                line +=
                    &if figure { format!(" {cell:>room$} ") } else { format!(" {cell:<room$} ") };
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

fn is_figure(cell: &str) -> bool {
    cell.starts_with(|c: char| c.is_ascii_digit()) && !cell.starts_with("0x") && !cell.contains(',')
}

/// A number of bytes.
pub fn size(bytes: u64) -> String {
    match bytes {
        b if b % (1 << 20) == 0 => format!("{} MiB", b >> 20),
        b if b > 1 << 20 => format!("{:.1} MiB", b as f64 / f64::from(1 << 20)),
        b => format!("{} KiB", b >> 10),
    }
}

/// A time.
pub fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

/// A time in microseconds.
pub fn microseconds(us: u64) -> String {
    milliseconds(Duration::from_micros(us))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut t = Table::new(&["name", "n"]);
        t.row(vec!["a".into(), "7".into()]);
        t.row(vec!["longer".into(), "123".into()]);
        assert_eq!(t.to_string(), "  name      n\n  a         7\n  longer  123\n");
    }

    #[test]
    fn units_are_those_of_people() {
        assert_eq!(size(4 << 20), "4 MiB");
        assert_eq!(size(64 << 10), "64 KiB");
        assert_eq!(size(16512 << 10), "16.1 MiB");
        assert_eq!(microseconds(1500), "1.5 ms");
    }
}
