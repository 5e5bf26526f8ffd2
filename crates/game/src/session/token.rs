//! Passes as tokens: opaque to clients, sealed with HMAC-SHA256, URL-safe. A token has one text only, so that whatever is
//! changed in it, by chance or on purpose, is refused. Keys are told apart by number and overlap when they change.

use std::fmt;
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::name::{Key, Stage, millis};
use super::pass::Pass;

/// Characters of a token.
pub const TOKEN_MAX: usize = 480;
/// Keys at once: the one in use, the next, and those whose tokens are still about.
pub const KEYS_MAX: usize = 8;
/// Bytes of a secret, at least.
pub const SECRET_MIN: usize = 32;

const VERSION: u8 = 1;
const TAG: usize = 32;
/// Nothing else that the same secret may seal is taken for a token.
const PURPOSE: &[u8] = b"phalanx game reconnect";

/// A secret that all servers of a service share. Times are since the Unix epoch.
#[derive(Clone)]
pub struct Secret {
    /// In each token that it seals.
    pub id: u32,
    /// At least [`SECRET_MIN`] random bytes.
    pub bytes: Vec<u8>,
    /// Seals from then on. Hand out a new one with a time by which every server has it.
    pub seals_from: Duration,
    /// Opens until then; none: for as long as it is there.
    pub opens_until: Option<Duration>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({})", self.id)
    }
}

/// Which secrets are known. Replaced as a whole when they change.
#[derive(Clone, Debug)]
pub struct Keyring {
    known: Vec<Known>,
}

#[derive(Clone, Debug)]
struct Known {
    id: u32,
    key: hmac::Key,
    seals_from: Duration,
    opens_until: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyringError {
    #[error("a keyring has 1 to {KEYS_MAX} secrets")]
    Count,
    #[error("secret {0} is there twice")]
    Twice(u32),
    #[error("secret {0} has fewer than {SECRET_MIN} bytes")]
    Short(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    #[error("no secret of the keyring seals by now")]
    NoSecret,
    /// Its end is past, or before its earliest time.
    #[error("the pass could never be used")]
    Useless,
}

/// Why a text is no token. What it seems to say is not looked at before its seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not our alphabet, too long, too short, or nothing that a pass could be.
    #[error("it is no token")]
    Garbled,
    #[error("tokens of version {0} are not known")]
    Version(u8),
    /// Of another service, or sealed with a secret that this server was not given yet.
    #[error("secret {0} is not known")]
    UnknownSecret(u32),
    /// Its [`Secret::opens_until`] is past.
    #[error("secret {0} opens nothing any more")]
    RetiredSecret(u32),
    /// Something was changed in it, or another secret of that number made it.
    #[error("its seal is not ours")]
    Forged,
    #[error("it expired {ago:?} ago")]
    Expired { ago: Duration },
}

impl Keyring {
    /// # Errors
    /// [`KeyringError`]
    pub fn try_new(secrets: &[Secret]) -> Result<Self, KeyringError> {
        if secrets.is_empty() || secrets.len() > KEYS_MAX {
            return Err(KeyringError::Count);
        }
        let mut known: Vec<Known> = Vec::with_capacity(secrets.len());
        for secret in secrets {
            if secret.bytes.len() < SECRET_MIN {
                return Err(KeyringError::Short(secret.id));
            }
            if known.iter().any(|known| known.id == secret.id) {
                return Err(KeyringError::Twice(secret.id));
            }
            known.push(Known {
                id: secret.id,
                key: hmac::Key::new(hmac::HMAC_SHA256, &secret.bytes),
                seals_from: secret.seals_from,
                opens_until: secret.opens_until,
            });
        }
        Ok(Self { known })
    }

    /// A token for a pass, by the newest secret that seals at `now`.
    ///
    /// # Errors
    /// [`SealError`]
    pub fn seal(&self, pass: &Pass, now: Duration) -> Result<String, SealError> {
        if pass.expires <= now || pass.expires <= pass.earliest {
            return Err(SealError::Useless);
        }
        let sealing = self.known.iter().filter(|known| known.opens_at(now));
        let sealing = sealing.filter(|known| known.seals_from <= now);
        let known = sealing.max_by_key(|known| (known.seals_from, known.id));
        let known = known.ok_or(SealError::NoSecret)?;
        let mut bytes = write(known.id, pass);
        let tag = known.tag(&bytes);
        bytes.extend_from_slice(tag.as_ref());
        Ok(URL_SAFE_NO_PAD.encode(bytes))
    }

    /// The pass in a token, if it is ours and not over. Whether it is early, and whether it was used, is asked elsewhere.
    ///
    /// # Errors
    /// [`TokenError`]
    pub fn open(&self, token: &str, now: Duration) -> Result<Pass, TokenError> {
        if token.len() > TOKEN_MAX {
            return Err(TokenError::Garbled);
        }
        let bytes = URL_SAFE_NO_PAD.decode(token);
        let bytes = bytes.map_err(|_| TokenError::Garbled)?;
        let (body, tag) = bytes.split_last_chunk::<TAG>().ok_or(TokenError::Garbled)?;
        let mut reader = Reader(body);
        let [version] = reader.take().ok_or(TokenError::Garbled)?;
        if version != VERSION {
            return Err(TokenError::Version(version));
        }
        let id = u32::from_be_bytes(reader.take().ok_or(TokenError::Garbled)?);
        let known = self.known.iter().find(|known| known.id == id);
        let known = known.ok_or(TokenError::UnknownSecret(id))?;
        if !known.opens_at(now) {
            return Err(TokenError::RetiredSecret(id));
        }
        verify_slices_are_equal(known.tag(body).as_ref(), tag).map_err(|_| TokenError::Forged)?;
        let pass = reader.pass().ok_or(TokenError::Garbled)?;
        match now >= pass.expires {
            true => Err(TokenError::Expired {
                ago: now - pass.expires,
            }),
            false => Ok(pass),
        }
    }
}

impl Known {
    fn opens_at(&self, now: Duration) -> bool {
        self.opens_until.is_none_or(|until| now < until)
    }

    fn tag(&self, body: &[u8]) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(PURPOSE);
        context.update(body);
        context.sign()
    }
}

fn write(secret: u32, pass: &Pass) -> Vec<u8> {
    let mut out = Vec::with_capacity(160);
    out.push(VERSION);
    out.extend_from_slice(&secret.to_be_bytes());
    let numbers = [
        pass.player,
        pass.epoch,
        pass.serial,
        millis(pass.issued),
        millis(pass.earliest),
        millis(pass.spread),
        millis(pass.expires),
    ];
    for number in numbers {
        out.extend_from_slice(&number.to_be_bytes());
    }
    out.extend_from_slice(&pass.region.to_be_bytes());
    out.push(pass.stage as u8);
    for name in [&pass.session, &pass.room] {
        // A name has at most 128 bytes.
        out.push(name.as_str().len() as u8);
        out.extend_from_slice(name.as_str().as_bytes());
    }
    out
}

/// What is left of a body.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn number(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }

    fn time(&mut self) -> Option<Duration> {
        self.number().map(Duration::from_millis)
    }

    fn name(&mut self) -> Option<Key> {
        let [length] = self.take()?;
        let (name, rest) = self.0.split_at_checked(usize::from(length))?;
        self.0 = rest;
        Key::parse(std::str::from_utf8(name).ok()?).ok()
    }

    /// To the end.
    fn pass(mut self) -> Option<Pass> {
        let (player, epoch, serial) = (self.number()?, self.number()?, self.number()?);
        let (issued, earliest) = (self.time()?, self.time()?);
        let (spread, expires) = (self.time()?, self.time()?);
        let region = u16::from_be_bytes(self.take()?);
        let [stage] = self.take()?;
        let stage = Stage::from_index(stage)?;
        let (session, room) = (self.name()?, self.name()?);
        self.0.is_empty().then_some(Pass {
            session,
            player,
            room,
            epoch,
            serial,
            region,
            stage,
            issued,
            earliest,
            spread,
            expires,
        })
    }
}
