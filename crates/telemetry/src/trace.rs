//! W3C Trace Context, level 2: `traceparent` is parsed strictly and written anew on every hop, `tracestate` is passed on
//! as it is or not at all. Works on the bytes of header values, in fixed-size buffers; nothing is allocated here.

use fastrand::Rng;

/// Names of the two headers, lower case.
pub const TRACEPARENT: &str = "traceparent";
pub const TRACESTATE: &str = "tracestate";

/// Length of a `traceparent` of version 00: `00-<32 hex>-<16 hex>-<2 hex>`.
pub const TRACEPARENT_LEN: usize = 55;

/// More members than this in one `tracestate`, and the whole is dropped (§3.3.1.5).
pub const TRACESTATE_MEMBERS_MAX: usize = 32;

const KEY_MAX: usize = 256;
const VALUE_MAX: usize = 256;

/// The trace was asked to be recorded.
pub const SAMPLED: u8 = 0x01;
/// The low 56 bits of the trace id are random, so that samplers may decide by them.
pub const RANDOM: u8 = 0x02;

/// One position in one trace: what `traceparent` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// Never zero.
    trace_id: [u8; 16],
    /// Never zero.
    span_id: [u8; 8],
    /// Only [`SAMPLED`] and [`RANDOM`]; unknown bits are cleared (§3.2.2.5).
    flags: u8,
}

impl TraceContext {
    /// Takes the one `traceparent` of a request. Optional white space around it is allowed, upper-case digits are not.
    /// Of an unknown version the known fields are taken.
    ///
    /// # Errors
    /// [`TraceError`] says which field is wrong; the trace must then be started anew and `tracestate` dropped.
    pub fn parse(value: &[u8]) -> Result<Self, TraceError> {
        let value = trim(value);
        let Some((head, tail)) = value.split_first_chunk::<TRACEPARENT_LEN>() else {
            return Err(TraceError::Length);
        };
        let [version] = hex::<1>(&head[0..2]).ok_or(TraceError::Version)?;
        match (version, tail.first()) {
            (0xff, _) => return Err(TraceError::Version),
            (0, Some(_)) => return Err(TraceError::Length),
            (_, None | Some(b'-')) => {}
            (_, Some(_)) => return Err(TraceError::Length),
        }
        if head[2] != b'-' || head[35] != b'-' || head[52] != b'-' {
            return Err(TraceError::Separator);
        }
        let trace_id = hex::<16>(&head[3..35])
            .filter(|id| *id != [0; 16])
            .ok_or(TraceError::TraceId)?;
        let span_id = hex::<8>(&head[36..52])
            .filter(|id| *id != [0; 8])
            .ok_or(TraceError::SpanId)?;
        let [flags] = hex::<1>(&head[53..55]).ok_or(TraceError::Flags)?;
        Ok(Self {
            trace_id,
            span_id,
            flags: flags & (SAMPLED | RANDOM),
        })
    }

    /// The context of a request whose `traceparent` values are `values`; none unless there is exactly one and it is
    /// valid.
    pub fn of<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Option<Self> {
        let mut values = values.into_iter();
        let only = values.next()?;
        if values.next().is_some() {
            return None;
        }
        Self::parse(only).ok()
    }

    /// Starts a trace; the id is random and says so.
    pub fn mint(rng: &mut Rng, sampled: bool) -> Self {
        let flags = if sampled { SAMPLED | RANDOM } else { RANDOM };
        Self {
            trace_id: nonzero_id(rng),
            span_id: nonzero_id_short(rng),
            flags,
        }
    }

    /// The next hop of the same trace: a new span id, everything else kept.
    #[must_use]
    pub fn child(&self, rng: &mut Rng) -> Self {
        Self {
            span_id: nonzero_id_short(rng),
            ..*self
        }
    }

    /// The header value, always of version 00.
    pub fn encode(&self) -> [u8; TRACEPARENT_LEN] {
        let mut out = *b"00-00000000000000000000000000000000-0000000000000000-00";
        put_hex(&mut out[3..35], &self.trace_id);
        put_hex(&mut out[36..52], &self.span_id);
        put_hex(&mut out[53..55], &[self.flags]);
        out
    }

    pub fn trace_id(&self) -> [u8; 16] {
        self.trace_id
    }

    pub fn span_id(&self) -> [u8; 8] {
        self.span_id
    }

    pub fn sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    pub fn random(&self) -> bool {
        self.flags & RANDOM != 0
    }
}

/// Whether the `tracestate` values of a request, taken together in their order, may be passed on. If not, all of them
/// are dropped; so they are when there is no valid `traceparent` beside them. No value at all is valid.
pub fn tracestate_valid<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> bool {
    let mut members = 0;
    for value in values {
        for member in value.split(|b| *b == b',') {
            let member = trim(member);
            // Empty members are allowed and don't count (§3.3.1.1).
            if member.is_empty() {
                continue;
            }
            members += 1;
            if members > TRACESTATE_MEMBERS_MAX || !member_valid(member) {
                return false;
            }
        }
    }
    true
}

/// Which part of a `traceparent` is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    #[error("traceparent has a wrong length")]
    Length,
    #[error("traceparent has no valid version")]
    Version,
    #[error("traceparent lacks a separator")]
    Separator,
    #[error("traceparent has no valid trace id")]
    TraceId,
    #[error("traceparent has no valid parent id")]
    SpanId,
    #[error("traceparent has no valid flags")]
    Flags,
}

/// `key=value`, with the key grammar of level 2 and a value without `,`, `=` and control characters.
fn member_valid(member: &[u8]) -> bool {
    let Some(at) = member.iter().position(|b| *b == b'=') else {
        return false;
    };
    let (key, value) = (&member[..at], &member[at + 1..]);
    let head = key
        .first()
        .is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let rest = |b: &u8| {
        b.is_ascii_lowercase()
            || b.is_ascii_digit()
            || matches!(b, b'_' | b'-' | b'*' | b'/' | b'@')
    };
    let printable = |b: &u8| matches!(b, 0x20..=0x7e) && *b != b'=';
    head && key.len() <= KEY_MAX
        && key.iter().all(rest)
        && !value.is_empty()
        && value.len() <= VALUE_MAX
        && value.iter().all(printable)
}

fn nonzero_id(rng: &mut Rng) -> [u8; 16] {
    rng.u128(1..).to_be_bytes()
}

fn nonzero_id_short(rng: &mut Rng) -> [u8; 8] {
    rng.u64(1..).to_be_bytes()
}

/// Strips optional white space (RFC 9110 §5.6.3).
fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// `text` has 2·N bytes; none if one of them is no lower-case hexadecimal digit.
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let mut out = [0; N];
    // Digits are at most 0x0f; a wrong one sets high bits, looked at once after the loop.
    let mut seen = 0;
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        let (high, low) = (DIGIT[usize::from(pair[0])], DIGIT[usize::from(pair[1])]);
        seen |= high | low;
        *byte = (high << 4) | low;
    }
    (seen <= 0x0f).then_some(out)
}

fn put_hex(out: &mut [u8], bytes: &[u8]) {
    for (pair, byte) in out.chunks_exact_mut(2).zip(bytes) {
        pair.copy_from_slice(&PAIRS[usize::from(*byte)]);
    }
}

const WRONG: u8 = 0xf0;

/// The value of a lower-case hexadecimal digit, or [`WRONG`].
static DIGIT: [u8; 256] = {
    let mut table = [WRONG; 256];
    let mut value = 0;
    while value < 16 {
        table[b"0123456789abcdef"[value] as usize] = value as u8;
        value += 1;
    }
    table
};

/// Both digits of every byte.
static PAIRS: [[u8; 2]; 256] = {
    let digits = b"0123456789abcdef";
    let mut table = [[0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = [digits[byte >> 4], digits[byte & 15]];
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests;
