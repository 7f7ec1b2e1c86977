//! The machine's screen, which is the first virtual terminal: rows on top that say how the machine is, and below them the
//! lines of the console, scrolling.
//!
//! ```text
//!   rows 1 to HEAD    the agent's, painted over and over; the first is PID 1's while there is no agent
//!   the rest          lines, the newest at the bottom
//! ```
//!
//! Nothing but the terminal's own scrolling region (`console_codes(4)`) keeps the two apart, so whoever writes does not have
//! to know of the other: each painting is one write, which the kernel does not divide, and leaves the cursor where it was.
//!
//! A machine without a screen has the terminal too. What is written to it is seen by nobody, and costs next to nothing.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::termios::{InputFlags, LocalFlags, SetArg, tcgetattr, tcsetattr};

/// Rows of the upper part.
pub const HEAD: usize = 12;

/// Rows that the lower part needs; a screen with fewer has lines only.
const LINES: usize = 8;

const TERMINAL: &str = "/dev/tty1";

/// What is on it, in front of it four bytes: rows, columns, and the cursor's column and row (`vcs(4)`).
const MEMORY: &str = "/dev/vcsa1";

/// What shows terminals (kernel documentation: "Console Drivers").
const CONSOLES: &str = "/sys/class/vtconsole";

/// The consoles of the kernel; the last is `/dev/console`.
const ACTIVE: &str = "/sys/class/tty/console/active";

/// How often a line is tried to be written while somebody else writes, and the pause between: lines are dropped rather
/// than waited for.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(1);

/// How large a screen is, and where its cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// The cursor's row, from 0.
    row: usize,
}

impl Place {
    /// As the kernel tells it now: a graphics driver may change it.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn look() -> io::Result<Self> {
        let mut head = [0; 4];
        File::open(MEMORY)?.read_exact(&mut head)?;
        let [rows, columns, _, row] = head.map(usize::from);
        Ok(Self { rows, columns, row })
    }

    fn has_head(self) -> bool {
        self.rows >= HEAD + LINES
    }
}

/// What is painted in a row: its text, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The text. What is no printable ASCII is shown as `?`: fonts of consoles differ, and a control character could make
    /// the screen lie.
    pub text: String,
    /// How it looks.
    pub look: Look,
}

/// How a row looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Like a line.
    Plain,
    /// On green: all is well.
    Good,
    /// On yellow: something is under way.
    Busy,
    /// On red: somebody should look.
    Bad,
    /// In bold red.
    Alarm,
}

impl Look {
    /// The colours, as of ECMA-48 "select graphic rendition".
    fn codes(self) -> &'static str {
        match self {
            Self::Plain => "0",
            Self::Good => "30;42",
            Self::Busy => "30;43",
            Self::Bad => "37;41",
            Self::Alarm => "1;31",
        }
    }
}

/// The terminal.
#[derive(Debug)]
pub struct Screen(File);

impl Screen {
    /// The machine's.
    ///
    /// # Errors
    /// When the kernel has no virtual terminals.
    pub fn open() -> io::Result<Self> {
        let flags = (OFlag::O_NOCTTY | OFlag::O_NONBLOCK).bits();
        let terminal = OpenOptions::new().read(true).write(true).custom_flags(flags).open(TERMINAL)?;
        Ok(Self(terminal))
    }

    /// Whether there is a screen that shows it.
    #[must_use]
    pub fn is_seen() -> bool {
        let consoles = fs::read_dir(CONSOLES).into_iter().flatten().flatten();
        consoles.into_iter().any(|console| shows(&console.path()))
    }

    /// Paints the first rows, at most [`HEAD`] of them; on a small screen none.
    ///
    /// # Errors
    /// Those of the terminal.
    pub fn paint(&self, rows: &[Row]) -> io::Result<()> {
        let place = Place::look()?;
        if place.has_head() { self.write(&painting(place, rows)) } else { Ok(()) }
    }

    /// Makes room for the upper part above what is there already, and has the keyboard change nothing.
    pub(super) fn lay_out(&self) -> io::Result<()> {
        let mut terminal = tcgetattr(&self.0)?;
        // What is typed is not shown, and cannot stop the output.
        terminal.local_flags.remove(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG);
        terminal.input_flags.remove(InputFlags::IXON);
        tcsetattr(&self.0, SetArg::TCSANOW, &terminal)?;
        let place = Place::look()?;
        if place.has_head() { self.write(&layout(place)) } else { Ok(()) }
    }

    /// Writes where the cursor is.
    pub(super) fn write(&self, text: &str) -> io::Result<()> {
        let mut tries = 0;
        loop {
            match (&self.0).write_all(text.as_bytes()) {
                Err(error) if error.kind() == ErrorKind::WouldBlock && tries < TRIES => {
                    tries += 1;
                    std::thread::sleep(PAUSE);
                }
                done => return done,
            }
        }
    }
}

/// Whether `/dev/console` is a virtual terminal itself.
pub(super) fn is_console() -> bool {
    let active = fs::read_to_string(ACTIVE).unwrap_or_default();
    let last = active.split_whitespace().last().and_then(|name| name.strip_prefix("tty"));
    last.is_some_and(|number| number.starts_with(|first: char| first.is_ascii_digit()))
}

/// Whether a console is in use, and more than the one of a machine without a screen.
fn shows(console: &Path) -> bool {
    let read = |name: &str| fs::read_to_string(console.join(name)).unwrap_or_default();
    read("bind").trim() == "1" && !read("name").contains("dummy")
}

/// Pushes what is there down by the upper part, or up where there is no room below.
fn layout(place: Place) -> String {
    let up = (place.row + HEAD + 1).saturating_sub(place.rows);
    let row = place.row + HEAD - up;
    let lines = "\n".repeat(up);
    format!(
        "\x1b[?25l\x1b[r\x1b[{bottom};1H{lines}\x1b[H\x1b[{HEAD}L\x1b[{first};{bottom}r\x1b[{cursor};1H",
        bottom = place.rows,
        first = HEAD + 1,
        cursor = row + 1,
    )
}

fn painting(place: Place, rows: &[Row]) -> String {
    // The region is set again each time: a screen whose size has changed has none.
    let mut text = format!("\x1b7\x1b[{};{}r", HEAD + 1, place.rows);
    for (row, Row { text: words, look }) in (1..=HEAD).zip(rows) {
        let shown: String = words.chars().map(printable).take(place.columns).collect();
        let _ = write!(text, "\x1b[{row};1H\x1b[{}m{shown}", look.codes());
        // Past the last column this would take its character away.
        text.push_str(if shown.len() < place.columns { "\x1b[K\x1b[0m" } else { "\x1b[0m" });
    }
    text.push_str("\x1b8");
    text
}

fn printable(character: char) -> char {
    if character.is_ascii_graphic() || character == ' ' { character } else { '?' }
}

#[cfg(test)]
mod tests {
    use std::num::NonZero;

    use super::*;

    /// A terminal as the kernel's, where a new line begins on the left.
    struct Terminal(vt100::Parser);

    impl Terminal {
        fn new(rows: u16) -> Self {
            let size = |number| NonZero::new(number).unwrap();
            Self(vt100::Parser::new(size(rows), size(80), 0))
        }

        fn place(&self) -> Place {
            let (rows, columns) = self.0.screen().size();
            let (row, _) = self.0.screen().cursor_position();
            Place { rows: rows.get().into(), columns: columns.get().into(), row: row.into() }
        }

        fn write(&mut self, text: &str) {
            self.0.process(text.replace('\n', "\r\n").as_bytes());
        }

        fn rows(&self) -> Vec<String> {
            self.0.screen().rows(0, 80).map(|row| row.trim_end().to_owned()).collect()
        }
    }

    fn rows(texts: &[&str]) -> Vec<Row> {
        texts.iter().map(|text| Row { text: (*text).to_owned(), look: Look::Good }).collect()
    }

    #[test]
    fn what_was_there_stays_below_the_upper_part_and_the_newest_lines_are_never_lost() {
        for before in [1, 5, 24, 60] {
            let mut terminal = Terminal::new(25);
            (0..before).for_each(|number| terminal.write(&format!("line {number}\n")));
            terminal.write(&layout(terminal.place()));
            terminal.write("the next\n");
            let shown = terminal.rows();
            assert!(shown[..HEAD].iter().all(String::is_empty), "{shown:#?}");
            let next = shown.iter().position(|row| row == "the next").unwrap();
            assert_eq!(shown[next - 1], format!("line {}", before - 1), "{shown:#?}");
        }
    }

    #[test]
    fn lines_scroll_below_what_is_painted_and_paintings_leave_them_alone() {
        let mut terminal = Terminal::new(25);
        terminal.write(&layout(terminal.place()));
        for number in 0..40 {
            terminal.write(&format!("line {number}\n"));
            let painted = [format!("Hivemind {number}"), String::new(), "well".to_owned()];
            terminal.write(&painting(terminal.place(), &rows(&painted.each_ref().map(String::as_str))));
        }
        let shown = terminal.rows();
        assert_eq!((shown[0].as_str(), shown[2].as_str()), ("Hivemind 39", "well"));
        assert_eq!((shown[23].as_str(), shown[24].as_str()), ("line 39", ""));
        assert_eq!(shown[HEAD], "line 28");
    }

    #[test]
    fn no_text_leaves_its_row_or_gives_orders() {
        let mut terminal = Terminal::new(25);
        terminal.write(&layout(terminal.place()));
        let long = "x".repeat(200);
        terminal.write(&painting(terminal.place(), &rows(&[&long, "\x1b[2Jwiped\n\u{e9}", "third"])));
        let shown = terminal.rows();
        assert_eq!(shown[0], "x".repeat(80));
        assert_eq!(shown[1], "?[2Jwiped??");
        assert_eq!(shown[2], "third");
        let too_many = vec!["row"; HEAD + 5];
        terminal.write(&painting(terminal.place(), &rows(&too_many)));
        assert!(terminal.rows()[HEAD..].iter().all(String::is_empty));
    }

    #[test]
    fn only_a_console_in_use_that_is_no_dummy_shows_something() {
        let folder = tempfile::tempdir().unwrap();
        let console = |bind: &str, name: &str| {
            fs::write(folder.path().join("bind"), bind).unwrap();
            fs::write(folder.path().join("name"), name).unwrap();
            shows(folder.path())
        };
        assert!(console("1\n", "(M) frame buffer device\n"));
        assert!(console("1\n", "(S) VGA+\n"));
        assert!(!console("0\n", "(M) frame buffer device\n"));
        assert!(!console("1\n", "(S) dummy device\n"));
    }
}
