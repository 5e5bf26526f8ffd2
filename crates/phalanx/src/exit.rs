//! How a verb ends: the exit codes scripts rely on, and an error that says what to do.

use std::fmt::Display;
use std::process::ExitCode;

use phalanx_client::admin::AdminError;

use crate::output;

pub type Outcome = Result<(), Failure>;

/// An ending that is no success. `message` may be empty when everything has been printed already.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    message: String,
    hint: Option<String>,
}

impl Failure {
    /// Findings, or a refusal.
    pub fn refused(message: impl Display) -> Self {
        Self::new(1, message)
    }

    pub fn usage(message: impl Display) -> Self {
        Self::new(2, message)
    }

    /// A file that can't be opened or is no YAML.
    pub fn file(message: impl Display) -> Self {
        Self::new(3, message)
    }

    /// Not reachable, or timed out.
    pub fn unreachable(message: impl Display) -> Self {
        Self::new(4, message)
    }

    pub fn defect(message: impl Display) -> Self {
        Self::new(70, message)
    }

    /// A role that could not start or had to stop, with everything its sources say.
    pub fn from_error(error: impl std::error::Error) -> Self {
        let sources = std::iter::successors(error.source(), |e| e.source());
        Self::refused(sources.fold(error.to_string(), |text, source| {
            format!("{text}: {source}")
        }))
    }

    pub fn hint(mut self, hint: impl Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }

    fn new(code: u8, message: impl Display) -> Self {
        Self {
            code,
            message: message.to_string(),
            hint: None,
        }
    }

    /// Prints what is left to say on standard error.
    pub fn report(self) -> ExitCode {
        if !self.message.is_empty() {
            eprintln!(
                "{} {}",
                output::stderr_style().error("error:"),
                self.message
            );
        }
        if let Some(hint) = &self.hint {
            eprintln!("{} {hint}", output::stderr_style().dim(" hint:"));
        }
        ExitCode::from(self.code)
    }
}

impl From<AdminError> for Failure {
    fn from(error: AdminError) -> Self {
        for problem in error.problems() {
            eprintln!("{problem}");
        }
        let code = if error.is_unreachable() { 4 } else { 1 };
        let hint = error.hint();
        Self {
            code,
            hint,
            ..Self::from_error(error)
        }
    }
}
