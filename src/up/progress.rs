//! What the user sees while the cluster starts: a line a step, with its time.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// The steps so far.
pub struct Progress {
    began: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    pub fn new() -> Self {
        Progress { began: Instant::now(), bar: None }
    }

    /// Says what is being done now; on a terminal with a spinner until [`Progress::done`].
    pub fn step(&mut self, what: &str) {
        if std::io::stdout().is_terminal() {
            let bar = ProgressBar::new_spinner().with_message(what.to_string());
            if let Ok(style) = ProgressStyle::with_template("  {spinner} {msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            self.bar = Some(bar);
        }
    }

    /// Says that it is done.
    pub fn done(&mut self, what: &str) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        println!("  [{:5.2} s] {what}", self.began.elapsed().as_secs_f64());
    }
}
