//! How a message's body is delimited. Written by a codec from this and from nothing else, so that no header can lie about it.

/// Where a body ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// No body and no word of one.
    #[default]
    None,
    /// Exactly so many bytes; `Length(0)` says so on the wire.
    Length(u64),
    /// Until the codec's own end mark (the last chunk, END_STREAM).
    Chunked,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    Http10,
    #[default]
    Http11,
    Http2,
}

impl Framing {
    /// Whether not a byte of body follows.
    pub fn is_empty(self) -> bool {
        matches!(self, Self::None | Self::Length(0))
    }
}

/// `1*DIGIT` and nothing else: no sign, no blank, no list.
pub(crate) fn parse_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 19 {
        return None;
    }
    value.iter().try_fold(0u64, |sum, byte| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
        sum.checked_mul(10)?.checked_add(u64::from(digit))
    })
}
