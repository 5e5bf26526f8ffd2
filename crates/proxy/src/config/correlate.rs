//! Whether the application's calls are told whose children they are.

use std::time::Duration;

/// How long after its answer a request may still be the cause of calls.
pub const LINGER: Duration = Duration::from_millis(250);
/// How long after the start requests that came by a sidecar before this one may be under way: as long as one may take where
/// no route says more.
pub const SETTLE: Duration = Duration::from_secs(15);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Correlate {
    pub mode: CorrelateMode,
    pub linger: Duration,
    pub settle: Duration,
}

impl Default for Correlate {
    fn default() -> Self {
        Self {
            mode: CorrelateMode::On,
            linger: LINGER,
            settle: SETTLE,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CorrelateMode {
    /// Calls have what the application gives them.
    Off,
    On,
    /// A call whose colour was lost is refused. For test environments.
    Strict,
}

impl CorrelateMode {
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "on" => Ok(Self::On),
            "strict" => Ok(Self::Strict),
            other => Err(format!("`{other}` is none of off, on and strict")),
        }
    }
}
