//! Queries and captured path segments: taken apart and unescaped.

/// Decodes `%XX`, where `decode` says so of the byte that it stands for. What is no escape stays.
pub fn unescape(raw: &[u8], decode: impl Fn(u8) -> bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((byte, after)) = rest.split_first() {
        let escaped = match (byte, after) {
            (b'%', [high, low, tail @ ..]) => hex(*high)
                .zip(hex(*low))
                .map(|(high, low)| (high << 4 | low, tail))
                .filter(|(byte, _)| decode(*byte)),
            _ => None,
        };
        match escaped {
            Some((byte, tail)) => {
                out.push(byte);
                rest = tail;
            }
            None => {
                out.push(*byte);
                rest = after;
            }
        }
    }
    out
}

/// RFC 6570's reserved characters: they stay escaped where several segments are captured.
pub fn is_reserved(byte: u8) -> bool {
    b"!#$&'()*+,/:;=?@[]".contains(&byte)
}

/// Names and values, unescaped. What has no `=` or no name is left out.
pub fn pairs(query: &str, plus: bool) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
    let blank = move |raw: &str| match plus && raw.contains('+') {
        true => raw.replace('+', " ").into_bytes(),
        false => raw.as_bytes().to_vec(),
    };
    query.split('&').filter_map(move |pair| {
        let (name, value) = pair.split_once('=')?;
        if name.is_empty() {
            return None;
        }
        let read = |raw| unescape(&blank(raw), |_| true);
        Some((read(name), read(value)))
    })
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}
