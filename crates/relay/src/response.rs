//! The head of an answer, from an upstream that may be hostile, after the checks that a request's head gets too.

use crate::framing::{Framing, parse_length};
use crate::header::{HeaderList, Name, Value, names};
use crate::limits::{FIELD_OVERHEAD, Limits};

/// What is passed on of an answer. Fields that belong to one connection are gone, and so is `content-length`: the framing
/// says it.
#[derive(Clone, Debug, Default)]
pub struct ResponseHead {
    pub status: u16,
    pub headers: HeaderList,
    framing: Option<Framing>,
}

/// Why an answer can't be passed on; the connection it came by is not used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadResponse {
    #[error("the answer has a status outside 101 and 200 to 999")]
    Status,
    #[error("the answer has a header name or value that can't be sent on")]
    Field,
    #[error("the answer has two lengths or a length that is none")]
    Length,
    #[error("the head of the answer is too large")]
    TooLarge,
}

impl ResponseHead {
    /// Fills `self` anew. `fields` in order, names in lower case. `bodyless`: no body can follow (HEAD, 204, 304), though
    /// a length may be told.
    ///
    /// # Errors
    /// [`BadResponse`]: answered with 502 downstream.
    pub fn fill<'f>(
        &mut self,
        status: u16,
        fields: impl Iterator<Item = (&'f [u8], &'f [u8])>,
        bodyless: bool,
        limits: &Limits,
    ) -> Result<(), BadResponse> {
        self.status = status;
        self.headers.clear();
        if !(status == 101 || (200..1000).contains(&status)) {
            return Err(BadResponse::Status);
        }
        let (mut length, mut chunked, mut nominated) = (None, false, false);
        let (mut bytes, mut count) = (0, 0);
        for (name, value) in fields {
            bytes += name.len() + value.len() + FIELD_OVERHEAD;
            count += 1;
            if bytes > limits.head_bytes || count > limits.head_fields {
                return Err(BadResponse::TooLarge);
            }
            let (name, value) = Name::new(name)
                .zip(Value::new(value))
                .ok_or(BadResponse::Field)?;
            if name == names::CONTENT_LENGTH {
                let told = parse_length(value.as_bytes()).ok_or(BadResponse::Length)?;
                if length.replace(told).is_some_and(|before| before != told) {
                    return Err(BadResponse::Length);
                }
            } else if name == names::TRANSFER_ENCODING {
                chunked = true;
            } else if name == names::CONNECTION {
                nominated |= names_fields(value.as_bytes());
                self.headers.push(name, value);
            } else if !is_hop_by_hop(name) || (status == 101 && name == names::UPGRADE) {
                self.headers.push(name, value);
            }
        }
        if chunked && length.is_some() {
            return Err(BadResponse::Length);
        }
        drop_connection(&mut self.headers, nominated);
        self.framing = Some(match length {
            Some(length) => Framing::Length(length),
            None if bodyless => Framing::None,
            None => Framing::Chunked,
        });
        Ok(())
    }

    /// An empty head to be filled.
    pub fn blank() -> Self {
        Self::default()
    }

    pub fn framing(&self) -> Framing {
        self.framing.unwrap_or(Framing::None)
    }

    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// Fields of RFC 9110 §7.6.1 that end at this hop whether nominated or not. `content-length` and `host` are not among
/// them: they are taken from the list before.
#[inline]
pub(crate) fn is_hop_by_hop(name: Name<'_>) -> bool {
    [
        names::CONNECTION,
        names::KEEP_ALIVE,
        names::PROXY_CONNECTION,
        names::PROXY_AUTHENTICATE,
        names::PROXY_AUTHORIZATION,
        names::TE,
        names::TRAILER,
        names::TRANSFER_ENCODING,
        names::UPGRADE,
        names::HTTP2_SETTINGS,
    ]
    .contains(&name)
}

/// Whether a `connection` value names fields, beyond the usual words.
#[inline]
pub(crate) fn names_fields(connection: &[u8]) -> bool {
    crate::header::elements(connection).any(|e| {
        !(e.eq_ignore_ascii_case(b"close")
            || e.eq_ignore_ascii_case(b"keep-alive")
            || e.eq_ignore_ascii_case(b"upgrade"))
    })
}

/// Takes away `connection` and, with `nominated`, what it names.
pub(crate) fn drop_connection(headers: &mut HeaderList, nominated: bool) {
    if nominated {
        let connection: Vec<Vec<u8>> = headers
            .get_all(names::CONNECTION)
            .flat_map(crate::header::elements)
            .map(<[u8]>::to_ascii_lowercase)
            .collect();
        headers.remove_where(|name, _| connection.iter().any(|nominee| nominee == name.as_bytes()));
    }
    headers.remove(names::CONNECTION);
}
