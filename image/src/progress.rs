//! The steps of a build, on standard error, with their times.

use std::time::Instant;

use anyhow::Result;

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its work.
    Done,
    /// Nothing: the inputs are those of an earlier build.
    Unchanged,
}

impl Outcome {
    /// The outcome of a step whose result was or was not in the cache.
    #[must_use]
    pub fn of(reused: bool) -> Self {
        if reused { Self::Unchanged } else { Self::Done }
    }
}

/// Numbers the steps.
pub struct Progress {
    step: usize,
    total: usize,
}

impl Progress {
    /// Progress over a known number of steps.
    #[must_use]
    pub fn new(total: usize) -> Self {
        Self { step: 0, total }
    }

    /// Runs one step.
    ///
    /// # Errors
    /// Those of the step.
    pub fn step<T>(&mut self, title: &str, work: impl FnOnce() -> Result<(T, Outcome)>) -> Result<T> {
        self.step += 1;
        eprint!("[{}/{}] {title} ... ", self.step, self.total);
        let start = Instant::now();
        let result = work();
        match &result {
            Ok((_, Outcome::Done)) => eprintln!("{:.1} s", start.elapsed().as_secs_f64()),
            Ok((_, Outcome::Unchanged)) => eprintln!("unchanged"),
            Err(_) => eprintln!("failed"),
        }
        result.map(|(value, _)| value)
    }
}
