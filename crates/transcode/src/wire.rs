//! Protobuf's wire format: records read from bytes that may be hostile, and written.

/// Groups are no part of it: nothing that we read may have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("protobuf that ends within a record")]
    Short,
    #[error("a protobuf varint of more than ten bytes")]
    Varint,
    #[error("a protobuf record of a group, or of field 0")]
    Tag,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'b> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'b [u8]),
    Fixed32(u32),
}

/// The records of a message, in the order in which they stand.
#[derive(Clone)]
pub struct Records<'b> {
    rest: &'b [u8],
}

impl<'b> Records<'b> {
    pub fn new(message: &'b [u8]) -> Self {
        Self { rest: message }
    }

    /// Bytes not read yet.
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// None at the end.
    pub fn read(&mut self) -> Result<Option<(u32, Value<'b>)>, Malformed> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = varint(&mut self.rest)?;
        let number = u32::try_from(tag >> 3).map_err(|_| Malformed::Tag)?;
        if number == 0 || number > NUMBER_MAX {
            return Err(Malformed::Tag);
        }
        let value = match tag & 7 {
            0 => Value::Varint(varint(&mut self.rest)?),
            1 => Value::Fixed64(u64::from_le_bytes(fixed(&mut self.rest)?)),
            2 => {
                let len = varint(&mut self.rest)?;
                let len = usize::try_from(len).map_err(|_| Malformed::Short)?;
                let (bytes, rest) = self.rest.split_at_checked(len).ok_or(Malformed::Short)?;
                self.rest = rest;
                Value::Bytes(bytes)
            }
            5 => Value::Fixed32(u32::from_le_bytes(fixed(&mut self.rest)?)),
            _ => return Err(Malformed::Tag),
        };
        Ok(Some((number, value)))
    }
}

pub fn varint(bytes: &mut &[u8]) -> Result<u64, Malformed> {
    let mut value = 0u64;
    for place in 0..10 {
        let (byte, rest) = bytes.split_first().ok_or(Malformed::Short)?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Malformed::Varint)
}

pub fn fixed<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], Malformed> {
    let (first, rest) = bytes.split_first_chunk::<N>().ok_or(Malformed::Short)?;
    *bytes = rest;
    Ok(*first)
}

pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub fn put_tag(out: &mut Vec<u8>, number: u32, wire_type: u8) {
    put_varint(out, u64::from(number) << 3 | u64::from(wire_type));
}

pub fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_tag(out, number, 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Begins something of a length that is not known yet.
#[must_use]
pub fn begin(out: &mut Vec<u8>, number: u32) -> usize {
    put_tag(out, number, 2);
    out.push(0);
    out.len()
}

/// Ends what [`begin`] began.
pub fn end(out: &mut Vec<u8>, begun: usize) {
    let len = out.len().saturating_sub(begun);
    let mut bytes = Vec::with_capacity(5);
    put_varint(&mut bytes, len as u64);
    let place = begun.saturating_sub(1);
    out.splice(place..begun, bytes);
}

/// A message as gRPC sends it: uncompressed, its length in front.
pub fn put_frame(out: &mut Vec<u8>, message: &[u8]) {
    out.push(0);
    out.extend_from_slice(&(message.len() as u32).to_be_bytes());
    out.extend_from_slice(message);
}

const NUMBER_MAX: u32 = (1 << 29) - 1;
