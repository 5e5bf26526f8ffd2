//! Fights on disk, so that they can be fought again: seed, rules version, fuel, session, input and the hash of the result.
//! A file is a header and records, each with its length and checksum; what was torn off by a crash is found and told.
//!
//! Header: `PHXBTL` and the version (u16). Record: length of the body (u32), xxh3 of the body (u64), body. Body: length
//! (u8) and name of the kind; rules (u64); seed (u64); fuel (u64, all ones without limit); length (u16, all ones for none)
//! and name of the session; digest (u64); the input up to the end. All numbers are little-endian.

mod recorder;

pub use recorder::{Recorder, RecorderOptions, RecorderState};

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

use super::job::Job;
use super::{Battle, Call, SESSION_BYTES_MAX};

const MAGIC: &[u8; 6] = b"PHXBTL";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 8;
const FRAME_BYTES: usize = 12;
/// A record's body; larger inputs are not recorded.
pub(crate) const BODY_BYTES_MAX: usize = 1 << 20;
const NO_SESSION: u16 = u16::MAX;

/// A fight as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub kind: String,
    /// The version of the rules.
    pub rules: u64,
    pub seed: u64,
    /// Operations; `u64::MAX` without limit.
    pub fuel: u64,
    pub session: Option<String>,
    /// As the battle's `write_input` wrote it.
    pub input: Vec<u8>,
    /// [`super::digest`] of the end.
    pub digest: u64,
}

/// Why records can't be written or read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The system refused.
    #[error("the record file can't be read or written")]
    File(#[from] io::Error),
    /// It begins with something else.
    #[error("this is no file of recorded battles")]
    NoRecords,
    /// Another version of the format.
    #[error("the file is of version {found}, this build reads {VERSION}")]
    Version { found: u16 },
    /// What comes before was read; a crash leaves such an end.
    #[error("the file is torn or damaged from byte {offset} on")]
    Damaged { offset: u64 },
    /// `RecorderOptions::bytes_max` below what one record may take.
    #[error("a recorder's file may have {found} bytes, it needs {needed} at least")]
    TooSmall { found: u64, needed: u64 },
}

impl Record {
    pub(crate) fn of<B: Battle>(job: &Job<B>, digest: u64) -> Self {
        let mut input = Vec::new();
        B::write_input(&job.input, &mut input);
        Self {
            kind: job.kind.name.to_owned(),
            rules: job.rules.number,
            seed: job.call.seed,
            fuel: job.call.fuel,
            session: job.call.session.as_deref().map(str::to_owned),
            input,
            digest,
        }
    }

    /// The call that this was.
    pub fn call(&self) -> Call {
        let call = Call::new(self.seed).fuel(self.fuel);
        match &self.session {
            Some(session) => call.session(session.as_str()),
            None => call,
        }
    }

    /// With its frame; `None` when it is too large.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let kind = u8::try_from(self.kind.len()).ok()?;
        let mut out = vec![0; FRAME_BYTES];
        out.push(kind);
        out.extend_from_slice(self.kind.as_bytes());
        for number in [self.rules, self.seed, self.fuel] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        match &self.session {
            None => out.extend_from_slice(&NO_SESSION.to_le_bytes()),
            Some(session) if session.len() > SESSION_BYTES_MAX => return None,
            Some(session) => {
                out.extend_from_slice(&(session.len() as u16).to_le_bytes());
                out.extend_from_slice(session.as_bytes());
            }
        }
        out.extend_from_slice(&self.digest.to_le_bytes());
        out.extend_from_slice(&self.input);
        let (frame, body) = out.split_at_mut(FRAME_BYTES);
        if body.len() > BODY_BYTES_MAX {
            return None;
        }
        let (length, sum) = frame.split_at_mut(4);
        length.copy_from_slice(&(body.len() as u32).to_le_bytes());
        sum.copy_from_slice(&xxh3_64(body).to_le_bytes());
        Some(out)
    }

    /// A body, whose checksum was right; `None` when it makes no sense even so.
    fn decode(body: &[u8]) -> Option<Self> {
        let (&kind, body) = body.split_first()?;
        let (kind, body) = body.split_at_checked(usize::from(kind))?;
        let (rules, body) = number(body)?;
        let (seed, body) = number(body)?;
        let (fuel, body) = number(body)?;
        let (length, body) = body.split_first_chunk::<2>()?;
        let (session, body) = match u16::from_le_bytes(*length) {
            NO_SESSION => (None, body),
            length => {
                let (session, body) = body.split_at_checked(usize::from(length))?;
                (
                    Some(text(session).filter(|text| text.len() <= SESSION_BYTES_MAX)?),
                    body,
                )
            }
        };
        let (digest, input) = number(body)?;
        Some(Self {
            kind: text(kind)?,
            rules,
            seed,
            fuel,
            session,
            input: input.to_vec(),
            digest,
        })
    }
}

fn number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<8>()?;
    Some((u64::from_le_bytes(*number), rest))
}

fn text(bytes: &[u8]) -> Option<String> {
    String::from_utf8(bytes.to_vec()).ok()
}

fn header() -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..6].copy_from_slice(MAGIC);
    header[6..].copy_from_slice(&VERSION.to_le_bytes());
    header
}

/// Reads a file of records, one after the other. Ends after the first error.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    offset: u64,
    over: bool,
}

impl Reader<BufReader<File>> {
    pub fn open(path: &Path) -> Result<Self, RecordError> {
        Self::new(BufReader::new(File::open(path)?))
    }
}

impl<R: Read> Reader<R> {
    pub fn new(mut from: R) -> Result<Self, RecordError> {
        let mut found = [0; HEADER_BYTES];
        from.read_exact(&mut found)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => RecordError::NoRecords,
                _ => RecordError::File(error),
            })?;
        if !found.starts_with(MAGIC) {
            return Err(RecordError::NoRecords);
        }
        let version = u16::from_le_bytes([found[6], found[7]]);
        if version != VERSION {
            return Err(RecordError::Version { found: version });
        }
        Ok(Self {
            from,
            offset: HEADER_BYTES as u64,
            over: false,
        })
    }

    fn read(&mut self) -> Result<Option<Record>, RecordError> {
        let offset = self.offset;
        let damaged = || RecordError::Damaged { offset };
        let mut frame = [0; FRAME_BYTES];
        match fill(&mut self.from, &mut frame)? {
            0 => return Ok(None),
            FRAME_BYTES => {}
            _ => return Err(damaged()),
        }
        let (length, sum) = frame.split_first_chunk::<4>().ok_or_else(damaged)?;
        let length = u32::from_le_bytes(*length) as usize;
        if length > BODY_BYTES_MAX {
            return Err(damaged());
        }
        let mut body = vec![0; length];
        if fill(&mut self.from, &mut body)? != length {
            return Err(damaged());
        }
        if xxh3_64(&body).to_le_bytes() != *sum {
            return Err(damaged());
        }
        self.offset += (FRAME_BYTES + length) as u64;
        Record::decode(&body).map(Some).ok_or_else(damaged)
    }
}

/// As many bytes as there are.
fn fill(from: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = into.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match from.read(rest) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

impl<R: Read> Iterator for Reader<R> {
    type Item = Result<Record, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let record = self.read().transpose();
        self.over = !matches!(record, Some(Ok(_)));
        record
    }
}

#[cfg(test)]
mod tests;
