//! The wire between owner and standby: frames with a length, and, where both share a secret, a tag on each that nobody
//! else could have made (HMAC-SHA256 over direction, number and content, cut to 16 bytes; a key per connection). Nothing
//! is encrypted: where that is wanted, or no secret is shared, the connection belongs inside the mesh's mTLS.
//!
//! ```text
//! u32 length of the rest, u8 kind, payload, tag (16 or 0 bytes)     little endian
//! ```

use std::{fmt, io};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::matchmaking::log::{BODY_BYTES_MAX, HEADER_BYTES};

pub const NONCE_BYTES: usize = 16;
/// Of one frame; the largest carries a record.
pub const FRAME_BYTES_MAX: usize = BODY_BYTES_MAX + HEADER_BYTES + 64;
/// Of a frame from somebody who proved nothing yet.
pub const GREETING_BYTES_MAX: usize = 1024;
const TAG_BYTES: usize = 16;
#[cfg(feature = "tokens")]
const SECRET_BYTES_MIN: usize = 32;

#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("the connection failed")]
    Io(#[from] io::Error),
    #[error("a frame of {bytes} bytes, at most {max} fit")]
    Large { bytes: usize, max: usize },
    #[error("a frame of unknown kind {0}")]
    Kind(u8),
    #[error("a frame was not sealed with our secret")]
    Seal,
    #[error("a {0:?} frame can't be read")]
    Payload(Kind),
    #[error("a {0:?} frame is out of turn")]
    Turn(Kind),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Owner: a nonce.
    Challenge = 1,
    /// Standby: who it is and how far it goes.
    Hello = 2,
    /// Owner: another standby is there.
    Turned = 3,
    /// Owner: a piece of the whole state.
    Piece = 4,
    /// Owner: its last piece.
    LastPiece = 5,
    /// Owner: a record.
    Record = 6,
    /// Owner: still here.
    Beat = 7,
    /// Standby: everything up to here is on its disk.
    Ack = 8,
}

impl Kind {
    fn of(byte: u8) -> Option<Kind> {
        Some(match byte {
            1 => Kind::Challenge,
            2 => Kind::Hello,
            3 => Kind::Turned,
            4 => Kind::Piece,
            5 => Kind::LastPiece,
            6 => Kind::Record,
            7 => Kind::Beat,
            8 => Kind::Ack,
            _ => return None,
        })
    }
}

/// What owner and standby share, or nothing. Feature `tokens` brings the secret.
#[derive(Clone, Default)]
pub struct Seal {
    #[cfg(feature = "tokens")]
    key: Option<aws_lc_rs::hmac::Key>,
}

/// A secret that could be guessed.
#[cfg(feature = "tokens")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a shared secret has {SECRET_BYTES_MIN} bytes at least")]
pub struct ShortSecret;

impl Seal {
    /// For connections that something else protects.
    pub fn none() -> Seal {
        Seal::default()
    }

    /// # Errors
    /// [`ShortSecret`].
    #[cfg(feature = "tokens")]
    pub fn shared(secret: &[u8]) -> Result<Seal, ShortSecret> {
        use aws_lc_rs::hmac;
        if secret.len() < SECRET_BYTES_MIN {
            return Err(ShortSecret);
        }
        Ok(Seal {
            key: Some(hmac::Key::new(hmac::HMAC_SHA256, secret)),
        })
    }

    /// The seal of one connection.
    #[cfg(feature = "tokens")]
    pub fn connection(&self, nonces: &[&[u8]]) -> Seal {
        use aws_lc_rs::hmac;
        let key = self.key.as_ref().map(|key| {
            let mut context = hmac::Context::with_key(key);
            context.update(b"phalanx game standby");
            nonces.iter().for_each(|nonce| context.update(nonce));
            hmac::Key::new(hmac::HMAC_SHA256, context.sign().as_ref())
        });
        Seal { key }
    }

    #[cfg(not(feature = "tokens"))]
    pub fn connection(&self, _: &[&[u8]]) -> Seal {
        Seal {}
    }

    #[cfg(feature = "tokens")]
    fn tag(&self, parts: &[&[u8]]) -> Option<[u8; TAG_BYTES]> {
        let mut context = aws_lc_rs::hmac::Context::with_key(self.key.as_ref()?);
        parts.iter().for_each(|part| context.update(part));
        context.sign().as_ref().first_chunk().copied()
    }

    #[cfg(not(feature = "tokens"))]
    fn tag(&self, _: &[&[u8]]) -> Option<[u8; TAG_BYTES]> {
        None
    }

    /// Takes the tag off, if it is right.
    fn open(&self, frame: &mut BytesMut, place: &[u8]) -> Result<(), FrameError> {
        if self.tag(&[]).is_none() {
            return Ok(());
        }
        let at = frame.len().checked_sub(TAG_BYTES);
        let tag = frame.split_off(at.ok_or(FrameError::Seal)?);
        let expected = self.tag(&[place, &frame[..]]).ok_or(FrameError::Seal)?;
        // Every byte is looked at, whichever differs.
        let different = tag
            .iter()
            .zip(expected)
            .fold(0, |all, (a, b)| all | (a ^ b));
        match different {
            0 => Ok(()),
            _ => Err(FrameError::Seal),
        }
    }
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.tag(&[]) {
            Some(_) => "Seal(shared secret)",
            None => "Seal(none)",
        })
    }
}

/// Where a frame stands in its connection, so that none can be repeated, left out or sent back.
#[derive(Debug)]
struct Place {
    direction: u8,
    number: u64,
}

impl Place {
    fn next(&mut self) -> [u8; 9] {
        let mut place = [self.direction; 9];
        place[1..].copy_from_slice(&self.number.to_le_bytes());
        self.number += 1;
        place
    }
}

#[derive(Debug)]
pub struct Writer<W> {
    io: W,
    seal: Seal,
    place: Place,
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    /// `direction` differs between the two ends.
    pub fn new(io: W, seal: Seal, direction: u8) -> Writer<W> {
        let number = 0;
        let place = Place { direction, number };
        Writer { io, seal, place }
    }

    pub fn reseal(&mut self, seal: Seal) {
        self.seal = seal;
    }

    pub async fn send(&mut self, kind: Kind, payload: &[u8]) -> Result<(), FrameError> {
        let place = self.place.next();
        let tag = self.seal.tag(&[&place, &[kind as u8], payload]);
        let tag = tag.as_ref().map_or(&[][..], |tag| tag);
        let length = 1 + payload.len() + tag.len();
        let mut head = [kind as u8; 5];
        head[..4].copy_from_slice(&(length as u32).to_le_bytes());
        self.io.write_all(&head).await?;
        self.io.write_all(payload).await?;
        self.io.write_all(tag).await?;
        Ok(())
    }

    pub async fn flush(&mut self) -> Result<(), FrameError> {
        Ok(self.io.flush().await?)
    }
}

#[derive(Debug)]
pub struct Reader<R> {
    io: R,
    seal: Seal,
    place: Place,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub fn new(io: R, seal: Seal, direction: u8) -> Reader<R> {
        let number = 0;
        let place = Place { direction, number };
        Reader { io, seal, place }
    }

    pub fn reseal(&mut self, seal: Seal) {
        self.seal = seal;
    }

    /// The next frame. Not to be dropped halfway.
    pub async fn next(&mut self, max: usize) -> Result<(Kind, Bytes), FrameError> {
        let mut length = [0; 4];
        self.io.read_exact(&mut length).await?;
        let bytes = u32::from_le_bytes(length) as usize;
        if bytes == 0 || bytes > max {
            return Err(FrameError::Large { bytes, max });
        }
        let mut frame = BytesMut::zeroed(bytes);
        self.io.read_exact(&mut frame).await?;
        let place = self.place.next();
        self.seal.open(&mut frame, &place)?;
        let byte = *frame.first().ok_or(FrameError::Seal)?;
        let kind = Kind::of(byte).ok_or(FrameError::Kind(byte))?;
        Ok((kind, frame.freeze().slice(1..)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn sent(seal: &Seal) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new(), seal.clone(), 1);
        writer.send(Kind::Beat, b"").await.unwrap();
        writer.send(Kind::Record, b"a record").await.unwrap();
        writer.io
    }

    #[tokio::test]
    async fn frames_read_back() {
        let bytes = sent(&Seal::none()).await;
        let mut reader = Reader::new(&bytes[..], Seal::none(), 1);
        assert_eq!(reader.next(100).await.unwrap().0, Kind::Beat);
        let (kind, payload) = reader.next(100).await.unwrap();
        assert_eq!((kind, &payload[..]), (Kind::Record, &b"a record"[..]));
        assert!(reader.next(100).await.is_err());
    }

    #[tokio::test]
    async fn a_frame_that_is_too_large_is_not_read() {
        let mut reader = Reader::new(&[255; 64][..], Seal::none(), 1);
        let refused = reader.next(FRAME_BYTES_MAX).await;
        assert!(matches!(refused, Err(FrameError::Large { .. })));
    }

    #[cfg(feature = "tokens")]
    #[tokio::test]
    async fn a_frame_without_the_secret_is_refused_wherever_it_differs() {
        let seal = Seal::shared(&[7; 32]).unwrap().connection(&[b"a", b"b"]);
        let bytes = sent(&seal).await;
        let mut reader = Reader::new(&bytes[..], seal.clone(), 1);
        assert!(reader.next(100).await.is_ok() && reader.next(100).await.is_ok());

        for at in 4..21 {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            let mut reader = Reader::new(&changed[..], seal.clone(), 1);
            assert!(
                matches!(reader.next(100).await, Err(FrameError::Seal)),
                "{at}"
            );
        }
        // Left out, sent back, or of another connection.
        let mut reader = Reader::new(&bytes[21..], seal.clone(), 1);
        assert!(matches!(reader.next(100).await, Err(FrameError::Seal)));
        let mut reader = Reader::new(&bytes[..], seal.clone(), 2);
        assert!(matches!(reader.next(100).await, Err(FrameError::Seal)));
        let other = Seal::shared(&[7; 32]).unwrap().connection(&[b"a", b"c"]);
        let mut reader = Reader::new(&bytes[..], other, 1);
        assert!(matches!(reader.next(100).await, Err(FrameError::Seal)));
        assert_eq!(Seal::shared(&[7; 31]).unwrap_err(), ShortSecret);
    }
}
