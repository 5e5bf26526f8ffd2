//! A state written as one file: complete under its name, or not there.
//!
//! ```text
//! u32 magic, u64 seq, u64 epoch, u64 chain, u64 length, u64 check, state     little endian
//! ```

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
};

use bytes::Buf;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{LogError, Position, files};

const MAGIC: u32 = 0x314b_5850; // "PXK1"
const HEADER_BYTES: usize = 44;
/// What a shard may come to. A larger length is foreign.
pub const CHECKPOINT_BYTES_MAX: usize = 1 << 30;

/// What all entries up to a position come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    pub position: Position,
    /// A [`Ledger::snapshot`](crate::matchmaking::ledger::Ledger::snapshot).
    pub state: Vec<u8>,
}

impl Checkpoint {
    /// As it stands on disk and on the wire.
    pub fn header(&self) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(&MAGIC.to_le_bytes());
        header[4..12].copy_from_slice(&self.position.seq.to_le_bytes());
        header[12..20].copy_from_slice(&self.position.epoch.to_le_bytes());
        header[20..28].copy_from_slice(&self.position.chain.to_le_bytes());
        header[28..36].copy_from_slice(&(self.state.len() as u64).to_le_bytes());
        let check = checksum(&header[..36], &self.state);
        header[36..].copy_from_slice(&check.to_le_bytes());
        header
    }

    /// `None` for anything that isn't whole.
    pub fn parse(bytes: &[u8]) -> Option<Checkpoint> {
        let (header, state) = bytes.split_at_checked(HEADER_BYTES)?;
        let mut fields = header;
        let magic = fields.get_u32_le();
        let position = Position {
            seq: fields.get_u64_le(),
            epoch: fields.get_u64_le(),
            chain: fields.get_u64_le(),
        };
        let length = fields.get_u64_le();
        let whole = magic == MAGIC && length == state.len() as u64;
        let checked = whole && fields.get_u64_le() == checksum(&header[..36], state);
        checked.then(|| Checkpoint {
            position,
            state: state.to_vec(),
        })
    }

    pub(super) fn write(&self, directory: &Path, generation: u64) -> Result<(), LogError> {
        let path = files::checkpoint_path(directory, generation);
        let unfinished = path.with_extension(files::UNFINISHED);
        let mut file = File::create(&unfinished).map_err(files::io("make", &unfinished))?;
        let written = file
            .write_all(&self.header())
            .and_then(|()| file.write_all(&self.state))
            .and_then(|()| file.sync_data());
        written.map_err(files::io("write", &unfinished))?;
        fs::rename(&unfinished, &path).map_err(files::io("name", &path))?;
        files::sync_directory(directory)
    }
}

fn checksum(header: &[u8], state: &[u8]) -> u64 {
    xxh3_64_with_seed(state, xxh3_64_with_seed(header, u64::from(MAGIC)))
}
