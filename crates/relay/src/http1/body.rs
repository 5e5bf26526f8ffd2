//! Where a body ends, and its bytes until there. No byte is copied, and nothing is held but the section of trailers.

use super::lines::{Lines, Unusable};
use super::{steps, trailers};
use crate::framing::Framing;
use crate::header::{HeaderList, Value};
use crate::limits::{CHUNK_EXTENSION_BYTES, Limits};
use crate::pool::Pool;
use crate::response::Delimiter;

/// Why a body can't be read to its end; the connection can't be used any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadBody {
    #[error("a chunk that is none")]
    Chunk,
    #[error("too many bytes of chunk extensions")]
    ExtensionsTooLarge,
    #[error("a trailer that is no field")]
    Trailer,
    #[error("trailers over the limits")]
    TrailersTooLarge,
}

/// The next of a body.
#[derive(Debug)]
pub(super) enum Piece<'i> {
    Data(&'i [u8]),
    End(Option<HeaderList>),
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Decoder {
    #[default]
    Ended,
    Length(u64),
    UntilClose,
    Chunked {
        place: Place,
        extensions: u16,
    },
}

/// Where in a chunk.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    Size { value: u64, digits: u8 },
    Extension { value: u64 },
    SizeLineFeed { value: u64 },
    Data { left: u64 },
    DataReturn,
    DataLineFeed,
    Trailers,
}

const CHUNK_BEGIN: Place = Place::Size {
    value: 0,
    digits: 0,
};

impl Decoder {
    pub(super) fn of_request(framing: Framing) -> Self {
        match framing {
            Framing::None | Framing::Length(0) => Self::Ended,
            Framing::Length(left) => Self::Length(left),
            Framing::Chunked => Self::chunked(),
        }
    }

    pub(super) fn of_answer(delimiter: Delimiter) -> Self {
        match delimiter {
            Delimiter::None | Delimiter::Length(0) => Self::Ended,
            Delimiter::Length(left) => Self::Length(left),
            Delimiter::Chunked => Self::chunked(),
            Delimiter::Close => Self::UntilClose,
        }
    }

    fn chunked() -> Self {
        Self::Chunked {
            place: CHUNK_BEGIN,
            extensions: 0,
        }
    }

    /// Takes from the front of `input`; none when more is needed.
    pub(super) fn read<'i>(
        &mut self,
        input: &mut &'i [u8],
        lines: &mut Lines,
        pool: &mut Pool,
        limits: &Limits,
    ) -> Result<Option<Piece<'i>>, BadBody> {
        let piece = match self {
            Self::Ended => return Ok(Some(Piece::End(None))),
            Self::UntilClose => take(input, u64::MAX).map(Piece::Data),
            Self::Length(left) => {
                let data = take(input, *left);
                *left -= data.map_or(0, |data| data.len() as u64);
                if *left == 0 {
                    *self = Self::Ended;
                }
                data.map(Piece::Data)
            }
            Self::Chunked { place, extensions } => loop {
                if let Place::Trailers = place {
                    let section = collect_trailers(input, lines, pool, limits)?;
                    break section.map(Piece::End);
                }
                if let Place::Data { left } = place {
                    let data = take(input, *left);
                    *left -= data.map_or(0, |data| data.len() as u64);
                    if *left == 0 {
                        *place = Place::DataReturn;
                    }
                    break data.map(Piece::Data);
                }
                let Some((byte, rest)) = input.split_first() else {
                    break None;
                };
                *input = rest;
                steps::add(1);
                *place = place.after(*byte, extensions)?;
            },
        };
        if let Some(Piece::End(_)) = piece {
            *self = Self::Ended;
        }
        Ok(piece)
    }

    /// The peer closed: whether the body is complete so.
    pub(super) fn is_complete_at_close(&self) -> bool {
        matches!(self, Self::Ended | Self::UntilClose)
    }
}

impl Place {
    /// One byte on, outside of data and trailers.
    fn after(self, byte: u8, extensions: &mut u16) -> Result<Self, BadBody> {
        Ok(match (self, byte) {
            (Self::Size { value, digits }, _) if byte.is_ascii_hexdigit() => {
                if digits >= SIZE_DIGITS_MAX {
                    return Err(BadBody::Chunk);
                }
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                Self::Size {
                    value: value << 4 | u64::from(digit),
                    digits: digits + 1,
                }
            }
            (Self::Size { digits: 0, .. }, _) => return Err(BadBody::Chunk),
            (Self::Size { value, .. } | Self::Extension { value }, b'\r') => {
                Self::SizeLineFeed { value }
            }
            // No blanks before it: there are servers that read on behind them, and others that don't.
            (Self::Size { value, .. }, b';') | (Self::Extension { value }, _) => {
                *extensions += 1;
                if usize::from(*extensions) > CHUNK_EXTENSION_BYTES {
                    return Err(BadBody::ExtensionsTooLarge);
                }
                Value::new(&[byte]).ok_or(BadBody::Chunk)?;
                Self::Extension { value }
            }
            (Self::SizeLineFeed { value: 0 }, b'\n') => Self::Trailers,
            (Self::SizeLineFeed { value }, b'\n') => Self::Data { left: value },
            (Self::DataReturn, b'\r') => Self::DataLineFeed,
            (Self::DataLineFeed, b'\n') => CHUNK_BEGIN,
            _ => return Err(BadBody::Chunk),
        })
    }
}

/// Some when the section is complete; with a list when anything is in it.
fn collect_trailers(
    input: &mut &[u8],
    lines: &mut Lines,
    pool: &mut Pool,
    limits: &Limits,
) -> Result<Option<Option<HeaderList>>, BadBody> {
    let collected = lines.collect(input, limits.trailer_bytes.max(EMPTY_LINE), pool);
    match collected {
        Ok(false) => return Ok(None),
        Ok(true) => {}
        Err(Unusable::BareLineFeed) => return Err(BadBody::Trailer),
        Err(Unusable::TooLarge) => return Err(BadBody::TrailersTooLarge),
    }
    if pool.scratch.len() <= EMPTY_LINE {
        return Ok(Some(None));
    }
    let mut list = pool.list();
    let read = trailers::read(&mut list, &mut pool.scratch, limits);
    if read.is_err() || list.is_empty() {
        pool.put_list(list);
        return read.map(|()| Some(None));
    }
    Ok(Some(Some(list)))
}

/// Up to `max` bytes from the front; none when there are none.
fn take<'i>(input: &mut &'i [u8], max: u64) -> Option<&'i [u8]> {
    if input.is_empty() {
        return None;
    }
    let len = usize::try_from(max).unwrap_or(usize::MAX).min(input.len());
    let (data, rest) = input.split_at_checked(len)?;
    *input = rest;
    Some(data)
}

/// More would say a size that no 64 bits hold, or hide one behind zeros.
const SIZE_DIGITS_MAX: u8 = 16;
const EMPTY_LINE: usize = 2;
