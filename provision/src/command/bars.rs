//! What is under way: a bar for each thing on a terminal, elsewhere a line for each change.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::terminal::note;

/// The bars, or the lines that were said last, by what they are of.
pub(super) struct Bars<K> {
    /// On a terminal.
    all: Option<MultiProgress>,
    bars: BTreeMap<K, ProgressBar>,
    said: BTreeMap<K, String>,
    show: bool,
    /// Columns of the longest name.
    width: usize,
}

impl<K: Ord + Clone> Bars<K> {
    /// `show`: whether anything is; `width`: columns of the longest name, so that the bars stand below each other.
    pub(super) fn new(show: bool, width: usize) -> Self {
        let terminal = show && std::io::stderr().is_terminal();
        let all = terminal.then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));
        Self { all, bars: BTreeMap::new(), said: BTreeMap::new(), show, width }
    }

    /// Shows that `done` of `total` parts are done, with a message; without a terminal says `line`, if that is new.
    pub(super) fn update(
        &mut self,
        key: &K,
        name: &str,
        (done, total): (u64, u64),
        message: String,
        line: String,
    ) {
        if let Some(all) = &self.all {
            let bar = self.bars.entry(key.clone()).or_insert_with(|| {
                let template =
                    format!("{{prefix:<{}}}  {{bar:24}} {{pos}}/{{len}}  {{wide_msg}}", self.width);
                // A template of constant form; should it ever be wrong, the default shows the same.
                let style = ProgressStyle::with_template(&template)
                    .unwrap_or_else(|_| ProgressStyle::default_bar())
                    .progress_chars("━╸─");
                all.add(ProgressBar::new(total).with_style(style).with_prefix(name.to_owned()))
            });
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(message);
        } else if self.show && self.said.get(key) != Some(&line) {
            note(&line);
            self.said.insert(key.clone(), line);
        }
    }

    /// Gives all bars a message.
    pub(super) fn message(&self, message: &str) {
        self.bars.values().for_each(|bar| bar.set_message(message.to_owned()));
    }

    /// Leaves the bars as they are.
    pub(super) fn finish(&self) {
        self.bars.values().for_each(ProgressBar::abandon);
    }
}

/// Bytes under way: a bar on a terminal, nothing elsewhere.
pub(super) fn bytes(total: Option<u64>) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = match total {
        Some(_) => "{bar:24} {bytes}/{total_bytes}  {bytes_per_sec}  {eta}",
        None => "{spinner} {bytes}  {bytes_per_sec}",
    };
    // A template of constant form; should it ever be wrong, the default shows the same.
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
    bar.with_style(style.progress_chars("━╸─"))
}
