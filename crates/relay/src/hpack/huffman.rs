//! The Huffman code of RFC 7541, by tables made at compile time from the lengths of its codes.
//!
//! Decoding looks at twelve bits at a time, which hold two symbols of most text; longer codes are found by their length.

/// Bits of each symbol's code (appendix B). The code is canonical: among codes of one length the order is that of the
/// symbols, and longer ones follow shorter ones, so that the lengths say all. The end of string is thirty ones.
#[rustfmt::skip]
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, //
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28, //
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, //
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, //
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, //
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, //
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, //
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, //
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, //
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, //
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, //
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, //
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, //
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, //
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, //
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, //
];

const LENGTH_MAX: usize = 30;
const FAST_BITS: u32 = 12;

/// Where the codes of one length begin, left-aligned to 32 bits, where they end, and where their symbols stand in
/// [`SYMBOLS`].
#[derive(Clone, Copy)]
struct Span {
    first: u32,
    end: u64,
    at: u16,
}

/// Symbols in the order of their codes.
#[allow(clippy::indexing_slicing)] // at compile time
static SYMBOLS: [u8; 256] = {
    let mut symbols = [0; 256];
    let (mut at, mut length) = (0, 0);
    while length <= LENGTH_MAX {
        let mut symbol = 0;
        while symbol < 256 {
            if LENGTHS[symbol] as usize == length {
                symbols[at] = symbol as u8;
                at += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    symbols
};

#[allow(clippy::indexing_slicing)] // at compile time
const SPANS: [Span; LENGTH_MAX + 1] = {
    let none = Span {
        first: 0,
        end: 0,
        at: 0,
    };
    let mut spans = [none; LENGTH_MAX + 1];
    let (mut code, mut at, mut length) = (0u64, 0, 1);
    while length <= LENGTH_MAX {
        let first = code;
        let mut symbol = 0;
        let mut count = 0;
        while symbol < 256 {
            if LENGTHS[symbol] as usize == length {
                count += 1;
            }
            symbol += 1;
        }
        code += (count as u64) << (32 - length);
        spans[length] = Span {
            first: first as u32,
            end: code,
            at,
        };
        at += count;
        length += 1;
    }
    spans
};

static LONG: [Span; LENGTH_MAX + 1] = SPANS;

/// A symbol's code, right-aligned, and its length.
#[allow(clippy::indexing_slicing)] // at compile time
static CODES: [(u32, u8); 256] = {
    let mut codes = [(0, 0); 256];
    let mut symbol = 0;
    while symbol < 256 {
        let length = LENGTHS[symbol] as usize;
        let mut place = 0;
        let mut other = 0;
        while other < symbol {
            if LENGTHS[other] as usize == length {
                place += 1;
            }
            other += 1;
        }
        let first = SPANS[length].first >> (32 - length);
        codes[symbol] = (first + place, length as u8);
        symbol += 1;
    }
    codes
};

/// One or two symbols that the next twelve bits begin with; none when the first one's code is longer.
#[derive(Clone, Copy)]
struct Fast {
    symbols: [u8; 2],
    count: u8,
    /// Of all of them.
    bits: u8,
}

#[allow(clippy::indexing_slicing)] // at compile time
static FAST: [Fast; 1 << FAST_BITS] = {
    let none = Fast {
        symbols: [0; 2],
        count: 0,
        bits: 0,
    };
    let mut table = [none; 1 << FAST_BITS];
    let mut bits = 0;
    while bits < 1 << FAST_BITS {
        let window = (bits as u32) << (32 - FAST_BITS);
        let (symbol, first) = first_symbol(window, FAST_BITS as usize);
        if first > 0 {
            let left = FAST_BITS as usize - first;
            let (second, length) = first_symbol(window << first, left);
            table[bits] = Fast {
                symbols: [symbol, second],
                count: 1 + (length > 0) as u8,
                bits: (first + length) as u8,
            };
        }
        bits += 1;
    }
    table
};

/// The symbol that `window` begins with and the length of its code, if that is at most `longest`.
#[allow(clippy::indexing_slicing)] // at compile time
const fn first_symbol(window: u32, longest: usize) -> (u8, usize) {
    let mut length = 1;
    while length <= longest {
        let span = SPANS[length];
        if (window as u64) < span.end {
            let place = (window - span.first) >> (32 - length);
            let mut symbol = 0;
            let mut before = 0;
            while symbol < 256 {
                if LENGTHS[symbol] as usize == length {
                    if before == place {
                        return (symbol as u8, length);
                    }
                    before += 1;
                }
                symbol += 1;
            }
        }
        length += 1;
    }
    (0, 0)
}

/// Bytes that `text` takes encoded.
pub(super) fn encoded_len(text: &[u8]) -> usize {
    let bits = |byte: &u8| {
        CODES
            .get(usize::from(*byte))
            .map_or(0, |code| usize::from(code.1))
    };
    text.iter().map(bits).sum::<usize>().div_ceil(8)
}

pub(super) fn encode(text: &[u8], out: &mut Vec<u8>) {
    let (mut held, mut bits) = (0u64, 0u32);
    for byte in text {
        let (code, length) = CODES.get(usize::from(*byte)).copied().unwrap_or_default();
        held = held << length | u64::from(code);
        bits += u32::from(length);
        if bits >= 32 {
            bits -= 32;
            out.extend_from_slice(&((held >> bits) as u32).to_be_bytes());
        }
    }
    let padding = 64 - bits;
    if bits > 0 {
        let last = held << padding | u64::MAX >> bits;
        let len = bits.div_ceil(8) as usize;
        out.extend_from_slice(last.to_be_bytes().get(..len).unwrap_or_default());
    }
}

/// Appends what `bytes` stand for, at most 8/5 of them. False, and anything appended, when they are no such string: the end
/// of string in its middle, padding of a byte and more, or of other than ones.
pub(super) fn decode(bytes: &[u8], out: &mut Vec<u8>) -> bool {
    out.reserve(bytes.len() * 8 / 5 + WORD);
    let mut rest = bytes;
    let (mut held, mut bits) = (0u64, 0u32); // held is left-aligned, zero behind its bits
    loop {
        if let Some(eight) = rest.first_chunk::<8>() {
            // As many whole bytes as there is room for.
            let taken = (63 - bits) / 8;
            let kept = u64::MAX.checked_shl(64 - 8 * taken).unwrap_or_default();
            held |= (u64::from_be_bytes(*eight) & kept) >> bits;
            bits += 8 * taken;
            rest = rest.get(taken as usize..).unwrap_or_default();
        } else {
            while bits <= 56
                && let Some((byte, after)) = rest.split_first()
            {
                held |= u64::from(*byte) << (56 - bits);
                bits += 8;
                rest = after;
            }
        }
        let (mut word, mut count) = (0u64, 0u32);
        while bits >= FAST_BITS && count <= WORD as u32 - 2 {
            let Some(fast) = FAST.get((held >> (64 - FAST_BITS)) as usize) else {
                return false;
            };
            if fast.count == 0 {
                break;
            }
            word |= u64::from(u16::from_le_bytes(fast.symbols)) << (8 * count);
            count += u32::from(fast.count);
            held <<= fast.bits;
            bits -= u32::from(fast.bits);
        }
        // Eight bytes are one store; those too many are taken back.
        let len = out.len() + count as usize;
        out.extend_from_slice(&word.to_le_bytes());
        out.truncate(len);
        if bits >= LENGTH_MAX as u32 {
            if count <= WORD as u32 - 2 {
                let Some((symbol, taken)) = long(held) else {
                    return false;
                };
                out.push(symbol);
                held <<= taken;
                bits -= taken;
            }
        } else if rest.is_empty() {
            return decode_last(held, bits, out);
        }
    }
}

/// Fewer bits than the longest code has, and nothing behind them.
fn decode_last(mut held: u64, mut bits: u32, out: &mut Vec<u8>) -> bool {
    loop {
        let ones = (!held).leading_zeros().min(bits);
        if ones == bits {
            return bits < 8;
        }
        let padded = held | u64::MAX.checked_shr(bits).unwrap_or_default();
        let Some((symbol, taken)) = long(padded) else {
            return false;
        };
        if taken > bits {
            return false;
        }
        out.push(symbol);
        held <<= taken;
        bits -= taken;
    }
}

/// The one symbol that `held` begins with, of whatever length, and its bits; none for the end of string.
fn long(held: u64) -> Option<(u8, u32)> {
    let window = (held >> 32) as u32;
    for (length, span) in LONG.iter().enumerate().skip(1) {
        if u64::from(window) < span.end {
            let place = (window - span.first) >> (32 - length);
            let symbol = *SYMBOLS.get(usize::from(span.at) + place as usize)?;
            return Some((symbol, length as u32));
        }
    }
    None
}

/// Symbols written at once.
const WORD: usize = 8;
