//! How far something is, on one line of a terminal; nothing where nobody looks.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

pub struct Progress {
    verb: &'static str,
    unit: &'static str,
    /// None: not yet, or never.
    shown: Option<Instant>,
    is_seen: bool,
}

impl Progress {
    pub fn new(verb: &'static str, unit: &'static str) -> Self {
        Self {
            verb,
            unit,
            shown: None,
            is_seen: io::stderr().is_terminal(),
        }
    }

    /// `all` 0: nobody knows.
    pub fn at(&mut self, done: u64, all: u64) {
        let is_fresh = self.shown.is_some_and(|at| at.elapsed() < PAUSE);
        if !self.is_seen || is_fresh {
            return;
        }
        self.shown = Some(Instant::now());
        let of = if all > 0 {
            format!(" of {all}")
        } else {
            String::new()
        };
        // Who can't be told can't be told.
        let _ = write!(
            io::stderr(),
            "\r{} {done}{of} {}\x1b[K",
            self.verb,
            self.unit
        );
    }

    /// Clears the line.
    pub fn end(&self) {
        if self.shown.is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

const PAUSE: Duration = Duration::from_millis(100);
