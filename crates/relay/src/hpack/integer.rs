//! Integers with a prefix of a few bits (RFC 7541 §5.1).

/// Takes one from the front; `first` is its first byte, already taken, of which `bits` belong to it. None when it does not
/// end, or is larger than anything a block could mean.
#[inline]
pub(super) fn read(first: u8, bits: u32, rest: &mut &[u8]) -> Option<usize> {
    let mask = (1u32 << bits) - 1;
    let mut value = u32::from(first) & mask;
    if value < mask {
        return Some(value as usize);
    }
    for place in 0..CONTINUED_MAX {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        value += u32::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Some(value as usize);
        }
    }
    None
}

/// Writes `value` behind the upper bits of `first`.
#[inline]
pub(super) fn write(first: u8, bits: u32, value: usize, out: &mut Vec<u8>) {
    let mask = (1usize << bits) - 1;
    if value < mask {
        out.push(first | value as u8);
        return;
    }
    out.push(first | mask as u8);
    let mut left = value - mask;
    while left >= 0x80 {
        out.push(left as u8 | 0x80);
        left >>= 7;
    }
    out.push(left as u8);
}

/// 28 bits: no block is that large.
const CONTINUED_MAX: u32 = 4;
