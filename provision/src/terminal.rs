//! What people see: text, colours and tables on standard output, notes on standard error. Colours
//! appear only on a terminal and never with `NO_COLOR`; nothing fails because a reader went away.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use crate::cli::Output;
use crate::failure::{Exit, Failure, Result};

/// Good news.
pub const GOOD: Style = AnsiColor::Green.on_default();
/// Neither good nor bad yet.
pub const CHANGING: Style = AnsiColor::Yellow.on_default();
/// Bad news.
pub const BAD: Style = AnsiColor::Red.on_default();
/// Less important.
pub const FAINT: Style = Style::new().dimmed();
/// More important.
pub const STRONG: Style = Style::new().bold();

/// `text` in a style; the stream drops it where colours are not wanted.
pub fn paint(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

/// Prints a line on standard output.
pub fn say(text: &str) {
    // A closed pipe (`hivemind ps | head -1`) is how some readers say that they have enough.
    let _ = writeln!(anstream::stdout().lock(), "{text}");
}

/// Prints a line on standard error: notes that are not the result.
pub fn note(text: &str) {
    let _ = writeln!(anstream::stderr().lock(), "{text}");
}

/// Prints a note that may surprise.
pub fn caution(text: &str) {
    note(&format!("{} {text}", paint(CHANGING, "note:")));
}

/// Prints a result as JSON.
pub fn say_json(value: &impl Serialize) {
    // Results are plain structures with string keys, which always serialise.
    say(&serde_json::to_string_pretty(value).unwrap_or_default());
}

/// Prints why the command failed.
pub fn say_failure(failure: &Failure, output: Output) {
    if output == Output::Json {
        let text = serde_json::to_string_pretty(&serde_json::json!({ "error": failure })).unwrap_or_default();
        note(&text);
        return;
    }
    note(&format!("{} {failure}", paint(BAD.bold(), "error:")));
    if !failure.advice.is_empty() {
        note(&format!("{} {}", paint(STRONG, " next:"), failure.advice));
    }
}

/// Asks a question that only `y` or `yes` answers with yes.
///
/// # Errors
/// When there is nobody to ask, and `nothing` when the answer is another: what was not done.
pub fn confirm(question: &str, nothing: &str) -> Result<()> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::input("not-confirmed", format!("{question} There is nobody to ask"))
            .advice("add --yes if that is what you want"));
    }
    let _ = write!(anstream::stderr().lock(), "{question} [y/N] ");
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    read.map_err(|e| Failure::local("terminal", format!("cannot read the answer: {e}")))?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Failure::new(Exit::Interrupted, "not-confirmed", nothing)),
    }
}

/// A table: a row of headings, then rows. The last column is not padded.
pub struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

/// A table's cell.
pub struct Cell {
    text: String,
    style: Style,
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self { text, style: Style::new() }
    }
}

/// A cell in a style.
pub fn styled(style: Style, text: impl Into<String>) -> Cell {
    Cell { text: text.into(), style }
}

impl Table {
    /// A table without rows.
    pub fn new(headings: &[&'static str]) -> Self {
        Self { headings: headings.to_vec(), rows: Vec::new() }
    }

    /// Adds a row with a cell for each heading.
    pub fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        debug_assert_eq!(N, self.headings.len());
        self.rows.push(cells.into());
    }

    /// The table as text with colours, without a final newline.
    pub fn render(&self) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            let cells = cells.map(|cell| printable(&cell.text).chars().count());
            cells.chain([self.headings[column].len()]).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..self.headings.len()).map(width).collect();
        let line = |cells: Vec<(String, Style)>| {
            let last = cells.len().saturating_sub(1);
            let mut text = String::new();
            for (column, (cell, style)) in cells.into_iter().enumerate() {
                let gap = widths[column].saturating_sub(cell.chars().count()) + 2;
                text.push_str(&paint(style, &cell));
                if column != last {
                    text.push_str(&" ".repeat(gap));
                }
            }
            text
        };
        let mut lines = vec![line(self.headings.iter().map(|name| ((*name).to_owned(), STRONG)).collect())];
        for row in &self.rows {
            lines.push(line(row.iter().map(|cell| (printable(&cell.text), cell.style)).collect()));
        }
        lines.join("\n")
    }
}

/// `text` on one line and without control characters: what comes from the cluster must not be able
/// to move the cursor or forge lines.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_nothing_can_forge_a_line() {
        let mut table = Table::new(&["NAME", "STATE"]);
        table.row(["a-long-name".into(), styled(GOOD, "run\nning")]);
        table.row(["b".into(), "off\u{1b}[2J".into()]);
        let plain = anstream::adapter::strip_str(&table.render()).to_string();
        assert_eq!(plain, "NAME         STATE\na-long-name  run ning\nb            off [2J");
    }
}
