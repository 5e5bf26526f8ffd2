//! JSON (RFC 8259), pulled piece by piece from bytes that may be hostile. Nothing is made better: what is no JSON is refused.

use std::borrow::Cow;

use super::DEPTH_MAX;

/// What is wrong with a text, and at which byte.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("byte {at}: {what}")]
pub struct Bad {
    pub at: usize,
    pub what: String,
}

#[derive(Clone)]
pub struct Lexer<'j> {
    text: &'j str,
    at: usize,
}

/// A value that has no parts.
#[derive(Clone, Debug, PartialEq)]
pub enum Token<'j> {
    Text(Cow<'j, str>),
    Number(&'j str),
    Bool(bool),
    Null,
}

impl<'j> Lexer<'j> {
    /// # Errors
    /// Where it is no UTF-8.
    pub fn try_new(text: &'j [u8]) -> Result<Self, Bad> {
        match std::str::from_utf8(text) {
            Ok(text) => Ok(Self { text, at: 0 }),
            Err(error) => Err(Bad {
                at: error.valid_up_to(),
                what: "no UTF-8".into(),
            }),
        }
    }

    pub fn bad<T>(&self, what: impl Into<String>) -> Result<T, Bad> {
        Err(Bad {
            at: self.at,
            what: what.into(),
        })
    }

    /// The next byte that is no blank.
    pub fn peek(&mut self) -> Option<u8> {
        let rest = self.text.as_bytes().get(self.at..)?;
        let blank = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
        self.at += rest.iter().take_while(|byte| blank(byte)).count();
        self.text.as_bytes().get(self.at).copied()
    }

    pub fn take(&mut self, wanted: u8) -> bool {
        let is_there = self.peek() == Some(wanted);
        self.at += usize::from(is_there);
        is_there
    }

    pub fn expect(&mut self, wanted: u8) -> Result<(), Bad> {
        match self.take(wanted) {
            true => Ok(()),
            false => self.bad(format!("`{}` is expected", char::from(wanted))),
        }
    }

    /// Nothing but blanks may follow.
    pub fn finish(&mut self) -> Result<(), Bad> {
        match self.peek() {
            None => Ok(()),
            Some(_) => self.bad("something follows the end"),
        }
    }

    /// The next key of an object whose `{` was read, its colon read too; none at the object's end.
    pub fn key(&mut self, first: &mut bool) -> Result<Option<Cow<'j, str>>, Bad> {
        if !self.more(first, b'}')? {
            return Ok(None);
        }
        let key = self.string()?;
        self.expect(b':')?;
        Ok(Some(key))
    }

    /// Whether an array or object goes on.
    pub fn more(&mut self, first: &mut bool, end: u8) -> Result<bool, Bad> {
        if std::mem::take(first) {
            return Ok(!self.take(end));
        }
        if self.take(end) {
            return Ok(false);
        }
        self.expect(b',')?;
        Ok(true)
    }

    pub fn token(&mut self) -> Result<Token<'j>, Bad> {
        Ok(match self.peek() {
            Some(b'"') => Token::Text(self.string()?),
            Some(b'-' | b'0'..=b'9') => Token::Number(self.number()?),
            Some(b't') if self.word("true") => Token::Bool(true),
            Some(b'f') if self.word("false") => Token::Bool(false),
            Some(b'n') if self.word("null") => Token::Null,
            None => return self.bad("the text ends too early"),
            _ => return self.bad("a string, number, true, false or null is expected"),
        })
    }

    pub fn string(&mut self) -> Result<Cow<'j, str>, Bad> {
        self.expect(b'"')?;
        let mut out: Cow<'j, str> = Cow::Borrowed("");
        loop {
            let rest = self.text.get(self.at..).unwrap_or_default();
            let plain = |byte: &u8| *byte >= b' ' && *byte != b'"' && *byte != b'\\';
            let len = rest.bytes().take_while(plain).count();
            let run = rest.get(..len).unwrap_or_default();
            match out.is_empty() {
                true => out = Cow::Borrowed(run),
                false => out.to_mut().push_str(run),
            }
            self.at += len;
            match rest.as_bytes().get(len) {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(out);
                }
                Some(b'\\') => {
                    self.at += 1;
                    let escaped = self.escape()?;
                    out.to_mut().push(escaped);
                }
                Some(_) => return self.bad("a control character in a string"),
                None => return self.bad("a string that does not end"),
            }
        }
    }

    fn escape(&mut self) -> Result<char, Bad> {
        let byte = self.text.as_bytes().get(self.at).copied();
        self.at += usize::from(byte.is_some());
        Ok(match byte {
            Some(plain @ (b'"' | b'\\' | b'/')) => char::from(plain),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                let first = self.hex()?;
                if !(0xd800..0xdc00).contains(&first) {
                    return char::from_u32(first).map_or_else(|| self.lone(), Ok);
                }
                let rest = self.text.get(self.at..).unwrap_or_default();
                if !rest.starts_with("\\u") {
                    return self.lone();
                }
                self.at += 2;
                let second = self.hex()?;
                let low = second.wrapping_sub(0xdc00);
                if low >= 0x400 {
                    return self.lone();
                }
                let code = 0x10000 + ((first - 0xd800) << 10) + low;
                char::from_u32(code).map_or_else(|| self.lone(), Ok)?
            }
            _ => return self.bad("an escape that is none"),
        })
    }

    fn lone(&self) -> Result<char, Bad> {
        self.bad("half of a surrogate pair")
    }

    fn hex(&mut self) -> Result<u32, Bad> {
        let digits = self.text.get(self.at..self.at + 4).unwrap_or_default();
        let are = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        match u32::from_str_radix(digits, 16) {
            Ok(code) if are => {
                self.at += 4;
                Ok(code)
            }
            _ => self.bad("an escape that is none"),
        }
    }

    fn number(&mut self) -> Result<&'j str, Bad> {
        let bytes = self.text.as_bytes();
        let start = self.at;
        let digits = |at: &mut usize| {
            let rest = bytes.get(*at..).unwrap_or_default();
            let count = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
            *at += count;
            count
        };
        let mut at = start + usize::from(bytes.get(start) == Some(&b'-'));
        let leading_zero = bytes.get(at) == Some(&b'0');
        let whole = digits(&mut at);
        let mut good = whole == 1 || (whole > 1 && !leading_zero);
        if bytes.get(at) == Some(&b'.') {
            at += 1;
            good &= digits(&mut at) > 0;
        }
        if let Some(b'e' | b'E') = bytes.get(at) {
            at += 1;
            at += usize::from(matches!(bytes.get(at), Some(b'+' | b'-')));
            good &= digits(&mut at) > 0;
        }
        if !good {
            return self.bad("a number that is none");
        }
        self.at = at;
        Ok(self.text.get(start..at).unwrap_or_default())
    }

    fn word(&mut self, word: &str) -> bool {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let after = rest.as_bytes().get(word.len());
        let is_there = rest.starts_with(word) && !after.is_some_and(u8::is_ascii_alphanumeric);
        self.at += if is_there { word.len() } else { 0 };
        is_there
    }

    /// Passes over a value, whatever it is.
    pub fn skip(&mut self) -> Result<(), Bad> {
        // What is open: true for an object.
        let mut open: Vec<(bool, bool)> = Vec::new();
        loop {
            let began = match self.peek() {
                Some(b'{') => Some(true),
                Some(b'[') => Some(false),
                _ => None,
            };
            match began {
                Some(_) if open.len() >= DEPTH_MAX => return self.bad(TOO_DEEP),
                Some(object) => {
                    self.at += 1;
                    open.push((object, true));
                }
                None => drop(self.token()?),
            }
            loop {
                let Some((object, first)) = open.last_mut() else {
                    return Ok(());
                };
                let goes_on = match *object {
                    true => self.key(first)?.is_some(),
                    false => self.more(first, b']')?,
                };
                if goes_on {
                    break;
                }
                open.pop();
            }
        }
    }
}

pub(super) const TOO_DEEP: &str = "nested too deep";
