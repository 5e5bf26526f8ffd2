//! Bytes that are nearly right: a piece of a corpus, changed a little, always the same for the same seed.

use fastrand::Rng;

/// More than any bound that a parser has for one piece of its input.
const LEN_MAX: usize = 16 << 10;
const CHANGES_MAX: usize = 6;
/// What parsers have a meaning for.
const TOKENS: &[&[u8]] = &[
    b"\r\n",
    b"\r\n\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b":",
    b";",
    b",",
    b".",
    b"..",
    b"/",
    b"//",
    b"%2f",
    b"%2e%2e",
    b"%00",
    b"%",
    b"\\",
    b"?",
    b"#",
    b"@",
    b"[::1]",
    b"-",
    b"+",
    b"0",
    b"0x",
    b"18446744073709551616",
    b"-1",
    b"\xff",
    b"\x80",
    b"\xc3\xa9",
    b"\"",
    b"=",
    b"chunked",
    b"content-length: 1\r\n",
    b"transfer-encoding: chunked\r\n",
    b"HTTP/1.1",
    b"{",
    b"}",
    b"[",
    b"]",
    b"- ",
    b"&a ",
    b"*a",
    b"|\n",
    b"\xff\xff\xff\xff",
    b"\0\0\0\0",
    b"\x30\x82",
    b"1e999",
    b"null",
];

/// The next input of `corpus`, which has one at least.
pub fn mutate(corpus: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let pick = |rng: &mut Rng| corpus.get(rng.usize(..corpus.len().max(1)));
    let mut bytes = pick(rng).cloned().unwrap_or_default();
    for _ in 0..rng.usize(1..=CHANGES_MAX) {
        let at = rng.usize(..=bytes.len());
        let end = (at + rng.usize(..=16)).min(bytes.len());
        match rng.u8(..9) {
            0 if at < bytes.len() => bytes[at] = rng.u8(..),
            1 if at < bytes.len() => bytes[at] ^= 1 << rng.u8(..8),
            2 => drop(bytes.drain(at..end)),
            3 => bytes.truncate(at),
            4 => insert(&mut bytes, at, TOKENS[rng.usize(..TOKENS.len())]),
            5 => {
                let again = bytes[at..end].to_vec();
                let to = rng.usize(..=bytes.len());
                insert(&mut bytes, to, &again);
            }
            6 => {
                let other = pick(rng).cloned().unwrap_or_default();
                let from = rng.usize(..=other.len());
                let to = (from + rng.usize(..=64)).min(other.len());
                insert(&mut bytes, at, &other[from..to]);
            }
            7 if at < bytes.len() => bytes[at] = bytes[at].wrapping_add(rng.u8(..)),
            _ => {
                let many = vec![rng.u8(..); rng.usize(..=64)];
                insert(&mut bytes, at, &many);
            }
        }
    }
    bytes.truncate(LEN_MAX);
    bytes
}

fn insert(bytes: &mut Vec<u8>, at: usize, piece: &[u8]) {
    bytes.splice(at..at, piece.iter().copied());
}
