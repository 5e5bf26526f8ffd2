//! Which requests are logged, and where.

use std::path::PathBuf;

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Standard output.
    Stdout,
    File(PathBuf),
}

impl Target {
    /// `-` is standard output.
    pub fn parse(text: &str) -> Self {
        match text {
            "-" => Self::Stdout,
            path => Self::File(path.into()),
        }
    }
}

/// What the command line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLogConfig {
    pub target: Target,
    pub policy: LogPolicy,
}

/// Which requests are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogPolicy {
    pub sample: Sample,
    /// Those that ended in an error, whatever the sample says.
    pub errors: bool,
    /// With their query.
    pub query: bool,
}

/// A part of all traces: the same one at every hop, because the trace's id decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample(u64);

/// Of a trace's id, these bits are random (W3C Trace Context level 2).
const RANDOM_BITS: u32 = 56;

impl Sample {
    pub const ALL: Self = Self(1 << RANDOM_BITS);

    /// `1%`, `0.5%`, `100%` or a fraction such as `0.01`.
    ///
    /// # Errors
    /// It is none, or not from 0 to 1.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (number, unit) = match text.strip_suffix('%') {
            Some(number) => (number, 100.0),
            None => (text, 1.0),
        };
        let share = number.parse::<f64>().ok().map(|number| number / unit);
        let share = share.filter(|share| (0.0..=1.0).contains(share));
        let share = share
            .ok_or_else(|| format!("`{text}` is no share such as 1%, 0.5% or 0.01, from 0 to 1"))?;
        Ok(Self((share * Self::ALL.0 as f64) as u64))
    }

    /// `random`: where there is no trace.
    pub fn takes(self, trace_id: &[u8; 16], random: impl FnOnce() -> u64) -> bool {
        let [.., a, b, c, d, e, f, g] = trace_id;
        let of_trace = u64::from_be_bytes([0, *a, *b, *c, *d, *e, *f, *g]);
        let number = match of_trace {
            0 => random() % Self::ALL.0,
            number => number,
        };
        number < self.0
    }
}
