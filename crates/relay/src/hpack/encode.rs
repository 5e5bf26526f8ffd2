//! Fields to blocks. A value enters the table when it is met for the second time, so that what is never the same twice
//! drives nothing out.

use super::fields::{Kind, Pseudo};
use super::table::Table;
use super::{TABLE_BYTES, huffman, integer, statics};
use crate::header::{Name, NameSet, names};

/// One direction of one connection.
#[derive(Debug)]
pub struct Encoder {
    table: Table,
    /// What was met of late, by hash; a newer one takes an older one's place.
    met: Option<Box<[Met; MET]>>,
    /// The entries that stand in the table for their names, in the order of [`NAMED`]; 0 for none.
    named: [u32; NAMED.len()],
    /// The smallest size the peer has wished since the last block, and the last.
    resize: Option<(usize, usize)>,
    huffman: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Met {
    hash: u32,
    /// Of the entry in the table; 0 when it is in none.
    number: u32,
}

const MET: usize = 128;

impl Encoder {
    /// `huffman`: whether strings are written shorter, which costs more time on both sides than it saves within a mesh.
    pub fn new(huffman: bool) -> Self {
        Self {
            table: Table::new(TABLE_BYTES),
            met: None,
            named: [0; NAMED.len()],
            resize: None,
            huffman,
        }
    }

    /// The peer's SETTINGS_HEADER_TABLE_SIZE. Told with the next block.
    pub fn resize(&mut self, size: usize) {
        let size = size.min(TABLE_BYTES);
        let smallest = self.resize.map_or(size, |(smallest, _)| smallest.min(size));
        let same = smallest == self.table.max() && size == smallest;
        self.resize = (!same).then_some((smallest, size));
    }

    /// Must stand before the fields of each block.
    #[inline]
    pub fn begin(&mut self, out: &mut Vec<u8>) {
        if let Some((smallest, size)) = self.resize.take() {
            if smallest < size {
                self.table.set_max(smallest);
                integer::write(0x20, 5, smallest, out);
            }
            self.table.set_max(size);
            integer::write(0x20, 5, size, out);
        }
    }

    #[inline]
    pub fn method(&mut self, method: &str, out: &mut Vec<u8>) {
        match method {
            "GET" => out.push(0x82),
            "POST" => out.push(0x83),
            _ => self.pseudo(Pseudo::Method, method.as_bytes(), out),
        }
    }

    #[inline]
    pub fn scheme(&mut self, secure: bool, out: &mut Vec<u8>) {
        out.push(if secure { 0x87 } else { 0x86 });
    }

    #[inline]
    pub fn status(&mut self, status: u16, out: &mut Vec<u8>) {
        let index = match status {
            200 => 8,
            204 => 9,
            206 => 10,
            304 => 11,
            400 => 12,
            404 => 13,
            500 => 14,
            _ => {
                let digit = |power: u16| b'0' + (status / power % 10) as u8;
                let text = [digit(100), digit(10), digit(1)];
                return self.pseudo(Pseudo::Status, &text, out);
            }
        };
        out.push(0x80 | index);
    }

    #[inline]
    pub fn authority(&mut self, authority: &str, out: &mut Vec<u8>) {
        self.pseudo(Pseudo::Authority, authority.as_bytes(), out);
    }

    /// A path with a query is not indexed: it may hold what is nobody else's business.
    #[inline]
    pub fn path(&mut self, path: &str, query: Option<&str>, out: &mut Vec<u8>) {
        match query {
            None if path == "/" => out.push(0x84),
            None => self.pseudo(Pseudo::Path, path.as_bytes(), out),
            Some(query) => {
                let len = path.len() + 1 + query.len();
                out.push(statics::pseudo_index(Pseudo::Path) as u8);
                integer::write(0, 7, len, out);
                out.extend_from_slice(path.as_bytes());
                out.push(b'?');
                out.extend_from_slice(query.as_bytes());
            }
        }
    }

    fn pseudo(&mut self, pseudo: Pseudo, value: &[u8], out: &mut Vec<u8>) {
        let index = statics::pseudo_index(pseudo);
        let hash = (index as u32).wrapping_mul(0x85EB_CA6B);
        if value.len() <= INDEXED_BYTES_MAX {
            self.indexed(Kind::Pseudo(pseudo), b"", index, hash, value, out);
        } else {
            self.literal(0, 4, index, b"", value, out);
        }
    }

    /// `never`: the sender said that no hop may index it.
    #[inline]
    pub fn field(&mut self, name: Name<'_>, value: &[u8], never: bool, out: &mut Vec<u8>) {
        let index = statics::name_index(name);
        let spelled = name.as_bytes();
        if never || SECRET.contains(name) {
            self.literal(0x10, 4, index, spelled, value, out);
        } else if value.len() > INDEXED_BYTES_MAX {
            self.literal(0, 4, index, spelled, value, out);
        } else if SELDOM_TWICE.contains(name) {
            match NAMED.iter().position(|named| *named == name) {
                Some(place) => self.named(place, name, value, out),
                None => self.literal(0, 4, index, spelled, value, out),
            }
        } else {
            let kind = Kind::Name(name.key());
            self.indexed(kind, spelled, index, name.hash(), value, out);
        }
    }

    /// One whose name alone is worth an entry, which some value of it brings there.
    fn named(&mut self, place: usize, name: Name<'_>, value: &[u8], out: &mut Vec<u8>) {
        let kind = Kind::Name(name.key());
        let number = self.named.get(place).copied().unwrap_or_default();
        if let Some(place) = self.table.place(number)
            && self
                .table
                .get(place)
                .is_some_and(|found| found.kind == kind)
        {
            return self.literal(0, 4, statics::COUNT + 1 + place, b"", value, out);
        }
        self.table.insert(kind, b"", value);
        if let Some(number) = self.named.get_mut(place) {
            *number = self.table.newest();
        }
        self.literal(0x40, 6, 0, name.as_bytes(), value, out);
    }

    #[inline]
    fn indexed(
        &mut self,
        kind: Kind,
        name: &[u8],
        index: usize,
        name_hash: u32,
        value: &[u8],
        out: &mut Vec<u8>,
    ) {
        let hash = hash(name_hash, value);
        let met = self
            .met
            .get_or_insert_with(|| Box::new([Met::default(); MET]));
        let Some(met) = met.get_mut(hash as usize % MET) else {
            return self.literal(0, 4, index, name, value, out);
        };
        if met.hash != hash {
            *met = Met { hash, number: 0 };
            return self.literal(0, 4, index, name, value, out);
        }
        if let Some(place) = self.table.place(met.number)
            && let Some(found) = self.table.get(place)
            && found.kind == kind
            && found.value == value
            && (!kind.is_spelled() || found.name == name)
        {
            return integer::write(0x80, 7, statics::COUNT + 1 + place, out);
        }
        if kind.is_spelled() && sounds_secret(name) {
            return self.literal(0, 4, index, name, value, out);
        }
        self.table.insert(kind, name, value);
        met.number = self.table.newest();
        self.literal(0x40, 6, index, name, value, out);
    }

    #[inline]
    fn literal(
        &self,
        first: u8,
        bits: u32,
        index: usize,
        name: &[u8],
        value: &[u8],
        out: &mut Vec<u8>,
    ) {
        integer::write(first, bits, index, out);
        if index == 0 {
            self.string(name, out);
        }
        self.string(value, out);
    }

    #[inline]
    fn string(&self, text: &[u8], out: &mut Vec<u8>) {
        if self.huffman {
            let len = huffman::encoded_len(text);
            if len < text.len() {
                integer::write(0x80, 7, len, out);
                return huffman::encode(text, out);
            }
        }
        integer::write(0, 7, text.len(), out);
        out.extend_from_slice(text);
    }

    pub fn held_bytes(&self) -> usize {
        self.table.held_bytes() + self.met.as_ref().map_or(0, |met| size_of_val(&**met))
    }
}

/// Eight bytes a step, the last of them read twice where they don't come out even. Never 0, which stands for nothing met.
#[inline]
fn hash(name: u32, value: &[u8]) -> u32 {
    const FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;
    let mut state = (u64::from(name) << 8 ^ value.len() as u64).wrapping_mul(FACTOR);
    let (words, tail) = value.as_chunks::<8>();
    for word in words {
        state = (state.rotate_left(23) ^ u64::from_le_bytes(*word)).wrapping_mul(FACTOR);
    }
    if !tail.is_empty() {
        let last = match value.last_chunk::<8>() {
            Some(word) => u64::from_le_bytes(*word),
            None => tail
                .iter()
                .fold(0, |word, byte| word << 8 | u64::from(*byte)),
        };
        state = (state.rotate_left(23) ^ last).wrapping_mul(FACTOR);
    }
    (state >> 32) as u32 | 1
}

/// A name that we don't know, but whose value may be what it sounds like. On a connection that many share, a table would
/// tell one of them whether it has guessed another's.
fn sounds_secret(name: &[u8]) -> bool {
    const SOUNDS: [&[u8]; 8] = [
        b"auth", b"cred", b"key", b"pass", b"secret", b"session", b"sign", b"token",
    ];
    SOUNDS
        .iter()
        .any(|sound| name.windows(sound.len()).any(|part| part == *sound))
}

/// Longer values are seldom met twice, and drive out too much.
const INDEXED_BYTES_MAX: usize = 128;

/// Of [`SELDOM_TWICE`] those that most requests have and no static entry names. What is left of one in the table is random.
const NAMED: [Name<'static>; 3] = [names::TRACEPARENT, names::TRACESTATE, names::X_REQUEST_ID];

const SECRET: NameSet = NameSet::of(&[
    names::AUTHORIZATION,
    names::COOKIE,
    names::PROXY_AUTHORIZATION,
    names::SET_COOKIE,
    names::X_GAME_SESSION,
]);

const SELDOM_TWICE: NameSet = NameSet::of(&[
    names::AGE,
    names::BAGGAGE,
    names::CONTENT_LENGTH,
    names::CONTENT_RANGE,
    names::DATE,
    names::ETAG,
    names::EXPIRES,
    names::GRPC_MESSAGE,
    names::IF_MATCH,
    names::IF_MODIFIED_SINCE,
    names::IF_NONE_MATCH,
    names::IF_RANGE,
    names::IF_UNMODIFIED_SINCE,
    names::LAST_MODIFIED,
    names::LOCATION,
    names::RANGE,
    names::REFERER,
    names::SEC_WEBSOCKET_ACCEPT,
    names::SEC_WEBSOCKET_KEY,
    names::TRACEPARENT,
    names::TRACESTATE,
    names::WWW_AUTHENTICATE,
    names::X_FORWARDED_FOR,
    names::X_REQUEST_ID,
]);
