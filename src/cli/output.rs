//! What a command prints: labelled lines, tables that fit the terminal, JSON.
//!
//! Owns: layout, colour, and making text from elsewhere harmless for a terminal. Does not own: wording.

use std::io::{IsTerminal as _, Write};

use serde::Serialize;

use super::CliError;
use crate::api::{drives_terminal, to_json};

/// Narrowest a table column is cut to, in characters.
const MIN_COLUMN: usize = 6;
/// Space between columns, in characters.
const GAP: usize = 2;

/// How a piece of text is meant; shown as colour on a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    Good,
    Bad,
    Head,
}

/// A piece of text with its tone.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    pub(super) fn good(text: impl Into<String>) -> Self {
        Cell { text: text.into(), tone: Tone::Good }
    }

    pub(super) fn bad(text: impl Into<String>) -> Self {
        Cell { text: text.into(), tone: Tone::Bad }
    }

    /// The head of a column.
    pub(super) fn head(text: &str) -> Self {
        Cell { text: text.to_owned(), tone: Tone::Head }
    }

    /// Good or bad, by `ok`.
    pub(super) fn state(ok: bool, text: impl Into<String>) -> Self {
        if ok { Cell::good(text) } else { Cell::bad(text) }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Cell { text: text.into(), tone: Tone::Plain }
    }
}

/// Where a command prints.
pub(super) struct Output {
    sink: Box<dyn Write>,
    json: bool,
    colour: bool,
    /// Terminal width in columns; `None` when the output is no terminal.
    width: Option<usize>,
}

impl Output {
    /// Standard output.
    pub(super) fn stdout(json: bool) -> Self {
        let stdout = std::io::stdout();
        let terminal = stdout.is_terminal();
        // https://no-color.org: any value but an empty one.
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            && std::env::var_os("TERM").is_none_or(|value| value != "dumb");
        let width = if terminal {
            terminal_size::terminal_size().map(|(terminal_size::Width(columns), _)| usize::from(columns))
        } else {
            None
        };
        Output { sink: Box::new(std::io::BufWriter::new(stdout)), json, colour: terminal && wanted, width }
    }

    /// Prints `data` as JSON when that was asked for, else as `text` lays it out.
    pub(super) fn data<T: Serialize>(
        &mut self,
        data: &T,
        text: impl FnOnce(&mut Output, &T) -> Result<(), CliError>,
    ) -> Result<(), CliError> {
        if !self.json {
            return text(self, data);
        }
        let json = to_json(data).map_err(|error| CliError::Output(error.into()))?;
        self.write(&(json + "\n"))
    }

    /// One line of text.
    pub(super) fn line(&mut self, text: &str) -> Result<(), CliError> {
        let text = printable(text);
        self.write(&text)?;
        self.write("\n")
    }

    /// `Label:   value` lines, the values in one column.
    pub(super) fn labels(&mut self, rows: &[(&str, Cell)]) -> Result<(), CliError> {
        let column = rows.iter().map(|(label, _)| label.chars().count() + 1).max().unwrap_or(0) + GAP;
        for (label, value) in rows {
            let head = format!("{label}:");
            self.write(&format!("{head:<column$}"))?;
            let lines = value.text.lines().map(printable).collect::<Vec<_>>().join(&format!("\n{:column$}", ""));
            let painted = self.painted(&lines, value.tone);
            self.write(&painted)?;
            self.write("\n")?;
        }
        Ok(())
    }

    /// A table under `heads`; on a terminal the widest columns are cut until a row fits.
    pub(super) fn table(&mut self, heads: &[&str], rows: Vec<Vec<Cell>>) -> Result<(), CliError> {
        let rows: Vec<Vec<Cell>> = rows
            .into_iter()
            .map(|row| row.into_iter().map(|cell| Cell { text: printable(&cell.text), ..cell }).collect())
            .collect();
        let mut widths: Vec<usize> = heads.iter().map(|head| head.chars().count()).collect();
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.text.chars().count());
            }
        }
        if let Some(limit) = self.width {
            fit(&mut widths, limit);
        }
        let head: Vec<Cell> = heads.iter().map(|head| Cell::head(head)).collect();
        self.row(&head, &widths)?;
        for row in &rows {
            self.row(row, &widths)?;
        }
        Ok(())
    }

    /// One row in columns of these widths, for what is printed as it comes; nothing is cut.
    pub(super) fn columns(&mut self, row: &[Cell], widths: &[usize]) -> Result<(), CliError> {
        let row: Vec<Cell> = row.iter().map(|cell| Cell { text: printable(&cell.text), ..cell.clone() }).collect();
        let wide = |(cell, width): (&Cell, &usize)| (*width).max(cell.text.chars().count());
        let widths: Vec<usize> = row.iter().zip(widths).map(wide).collect();
        self.row(&row, &widths)
    }

    /// True when JSON was asked for.
    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    /// A line of JSON as it came.
    pub(super) fn raw(&mut self, line: &str) -> Result<(), CliError> {
        self.write(line)
    }

    pub(super) fn flush(&mut self) -> std::io::Result<()> {
        self.sink.flush()
    }

    fn row(&mut self, row: &[Cell], widths: &[usize]) -> Result<(), CliError> {
        for (index, (cell, width)) in row.iter().zip(widths).enumerate() {
            let text = cut(&cell.text, *width);
            let last = index + 1 == row.len();
            let padding = if last { 0 } else { width + GAP - text.chars().count() };
            let painted = self.painted(&text, cell.tone);
            self.write(&painted)?;
            self.write(&" ".repeat(padding))?;
        }
        self.write("\n")
    }

    fn painted(&self, text: &str, tone: Tone) -> String {
        let code = match tone {
            Tone::Plain => return text.to_owned(),
            _ if !self.colour || text.is_empty() => return text.to_owned(),
            Tone::Good => "32",
            Tone::Bad => "31",
            Tone::Head => "1",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    fn write(&mut self, text: &str) -> Result<(), CliError> {
        self.sink.write_all(text.as_bytes()).map_err(CliError::Output)
    }
}

/// Takes from the widest column, one character at a time, until the row fits or every column is at its least.
fn fit(widths: &mut [usize], limit: usize) {
    let gaps = GAP * widths.len().saturating_sub(1);
    while widths.iter().sum::<usize>() + gaps > limit {
        match widths.iter_mut().max() {
            Some(widest) if *widest > MIN_COLUMN => *widest -= 1,
            _ => return,
        }
    }
}

/// `text` in at most `width` characters, the cut shown by `…`.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut out: String = text.chars().take(width.saturating_sub(1)).collect();
    out.push('…');
    out
}

/// Control characters made visible: names and descriptions come from elsewhere and must not drive the terminal.
/// Line feeds stay.
pub(super) fn printable(text: &str) -> String {
    let harmless = |c: char| c == '\n' || !drives_terminal(c);
    if text.chars().all(harmless) {
        return text.to_owned();
    }
    text.chars().map(|c| if harmless(c) { c.to_string() } else { c.escape_unicode().to_string() }).collect()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Rc<RefCell<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.borrow_mut().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn printed(width: Option<usize>, colour: bool, print: impl FnOnce(&mut Output)) -> String {
        let sink = Sink::default();
        let mut output = Output { sink: Box::new(sink.clone()), json: false, colour, width };
        print(&mut output);
        String::from_utf8(sink.0.take()).unwrap()
    }

    #[test]
    fn labels_are_padded_to_one_column() {
        let text = printed(None, false, |output| {
            output.labels(&[("Bridge", "outcall0".into()), ("nftables", Cell::good("active"))]).unwrap();
        });
        assert_eq!(text, "Bridge:    outcall0\nnftables:  active\n");
    }

    #[test]
    fn a_table_fits_the_terminal_and_shows_the_cut() {
        let text = printed(Some(24), false, |output| {
            output
                .table(&["ID", "CONDITION"], vec![vec!["allow-a".into(), "http.host == \"example.com\"".into()]])
                .unwrap();
        });
        assert_eq!(text, "ID       CONDITION\nallow-a  http.host == \"…\n");
        assert!(text.lines().all(|line| line.chars().count() <= 24));
    }

    #[test]
    fn a_pipe_gets_everything_and_no_colour() {
        let long = "x".repeat(300);
        let text = printed(None, false, |output| output.table(&["A"], vec![vec![Cell::bad(long.clone())]]).unwrap());
        assert_eq!(text, format!("A\n{long}\n"));
    }

    #[test]
    fn colour_wraps_the_text_and_not_the_padding() {
        let text = printed(None, true, |output| {
            output.table(&["A", "B"], vec![vec![Cell::good("ok"), "x".into()]]).unwrap();
        });
        assert_eq!(text, "\x1b[1mA\x1b[0m   \x1b[1mB\x1b[0m\n\x1b[32mok\x1b[0m  x\n");
    }

    #[test]
    fn text_from_elsewhere_does_not_drive_the_terminal() {
        assert_eq!(printable("a\x1b[31mb\rc\u{202e}d"), "a\\u{1b}[31mb\\u{d}c\\u{202e}d");
        assert_eq!(printable("two\nlines"), "two\nlines");
    }
}
