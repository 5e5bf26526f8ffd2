//! How a verb ends: the exit codes scripts rely on, and an error that says what to do.

use std::fmt::Display;
use std::process::ExitCode;

use phalanx_client::admin::AdminError;
use phalanx_client::api::Problem;
use serde_json::json;

use crate::output;

pub type Outcome = Result<(), Failure>;

/// An ending that is no success. `message` may be empty when everything has been printed already.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    message: String,
    hint: Option<String>,
    problems: Vec<Problem>,
    /// The configuration's, where another one was expected.
    revision: Option<u64>,
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
            problems: Vec::new(),
            revision: None,
        }
    }

    /// Findings in files, each with its place.
    pub fn problems(mut self, problems: Vec<Problem>) -> Self {
        self.problems = problems;
        self
    }

    /// Prints what is left to say on standard error: lines, or one JSON object for those who asked for JSON.
    pub fn report(self, is_json: bool) -> ExitCode {
        if is_json && !self.message.is_empty() {
            let mut body = json!({"error": self.message, "code": self.code});
            if let Some(hint) = &self.hint {
                body["hint"] = json!(hint);
            }
            if let Some(revision) = self.revision {
                body["revision"] = json!(revision);
            }
            if !self.problems.is_empty() {
                body["problems"] = json!(self.problems);
            }
            output::tell(&format!("{body:#}"));
            return ExitCode::from(self.code);
        }
        for problem in &self.problems {
            output::tell(&output::plain(&problem.to_string()));
        }
        if !self.message.is_empty() {
            output::tell(&format!(
                "{} {}",
                output::stderr_style().error("error:"),
                lines(&self.message)
            ));
        }
        if let Some(hint) = &self.hint {
            let word = output::stderr_style().dim(" hint:");
            output::tell(&format!("{word} {}", lines(hint)));
        }
        ExitCode::from(self.code)
    }
}

/// Of our own text, with what others wrote in it.
fn lines(text: &str) -> String {
    let plain: Vec<_> = text.lines().map(output::plain).collect();
    plain.join("\n")
}

impl From<AdminError> for Failure {
    fn from(error: AdminError) -> Self {
        let code = if error.is_unreachable() { 4 } else { 1 };
        let hint = error.hint();
        let problems = error.problems().to_vec();
        let revision = match &error {
            AdminError::Conflict { body } => body.revision,
            _ => None,
        };
        Self {
            code,
            hint,
            problems,
            revision,
            ..Self::from_error(error)
        }
    }
}
