//! Regular expressions in the common subset of RE2 (Envoy, gRPC) and the crate `regex`: what both take and read alike.
//! Where they read a class differently (`\d` is ASCII in RE2), the pattern is rewritten to RE2's meaning.

use regex::bytes::{Regex, RegexBuilder};

/// Longest pattern in bytes, the Gateway API's bound for a header value.
pub const PATTERN_LEN_MAX: usize = 4096;
/// RE2's bound of a repetition, nested ones multiplied.
pub const REPEAT_MAX: u32 = 1000;
/// Compiled size in bytes.
const PROGRAM_SIZE_MAX: usize = 256 * 1024;
/// The lazily built automaton, in bytes for each thread.
const DFA_SIZE_MAX: usize = 256 * 1024;
/// Nested groups.
const DEPTH_MAX: usize = 32;

/// A regular expression that matches a whole value.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    #[error("the pattern is longer than {PATTERN_LEN_MAX} bytes")]
    Length,
    #[error("`{what}` is not in the common subset of RE2 and Rust's regex ({why})")]
    Subset { what: String, why: &'static str },
    #[error("the pattern compiles to more than {PROGRAM_SIZE_MAX} bytes")]
    Size,
    #[error("the pattern is no regular expression: {0}")]
    Syntax(String),
}

impl Pattern {
    /// Checks and compiles.
    ///
    /// # Errors
    /// [`PatternError`] for what either engine refuses, both read differently, or is too large.
    pub fn parse(pattern: &str) -> Result<Self, PatternError> {
        if pattern.len() > PATTERN_LEN_MAX {
            return Err(PatternError::Length);
        }
        let translated = Scanner::new(pattern).translate()?;
        // Alone first: `a)|(b` is wrong by itself, but not between parentheses.
        build(&translated)?;
        build(&format!(r"\A(?:{translated})\z")).map(Self)
    }

    pub fn matches(&self, value: &[u8]) -> bool {
        self.0.is_match(value)
    }

    /// Its text, in RE2's meaning.
    pub fn written(&self) -> &str {
        let whole = self.0.as_str();
        let inner = whole.strip_prefix(r"\A(?:");
        inner
            .and_then(|inner| inner.strip_suffix(r")\z"))
            .unwrap_or(whole)
    }
}

fn build(pattern: &str) -> Result<Regex, PatternError> {
    let built = RegexBuilder::new(pattern)
        .size_limit(PROGRAM_SIZE_MAX)
        .dfa_size_limit(DFA_SIZE_MAX)
        .build();
    built.map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => PatternError::Size,
        other => PatternError::Syntax(last_line(&other.to_string())),
    })
}

/// The crate draws the pattern over several lines; its last line says what is wrong.
fn last_line(text: &str) -> String {
    let line = text.lines().last().unwrap_or(text).trim();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

/// Reads a pattern once, refuses what is not common and writes the rest anew.
struct Scanner<'p> {
    pattern: &'p str,
    at: usize,
    out: String,
    /// Of each open group: the largest product of repetitions inside.
    groups: Vec<u32>,
    /// The product of repetitions in the last atom; none where no repetition may follow.
    atom: Option<u32>,
}

impl<'p> Scanner<'p> {
    fn new(pattern: &'p str) -> Self {
        Self {
            pattern,
            at: 0,
            out: String::with_capacity(pattern.len() + 16),
            groups: vec![1],
            atom: None,
        }
    }

    fn translate(mut self) -> Result<String, PatternError> {
        while let Some(c) = self.next() {
            match c {
                '\\' => {
                    self.escape(false)?;
                    self.set_atom(1);
                }
                '[' => {
                    self.class()?;
                    self.set_atom(1);
                }
                '(' => self.open_group()?,
                ')' => self.close_group(),
                '*' | '+' | '?' | '{' => self.repeat(c)?,
                '|' => {
                    self.out.push(c);
                    self.atom = None;
                }
                _ => {
                    self.out.push(c);
                    self.set_atom(1);
                }
            }
        }
        Ok(self.out)
    }

    fn rest(&self) -> &'p str {
        self.pattern.get(self.at..).unwrap_or_default()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.rest().chars().next()?;
        self.at += c.len_utf8();
        Some(c)
    }

    /// Copies `len` bytes and goes past them.
    fn copy(&mut self, len: usize) {
        let text = self.rest().get(..len).unwrap_or_default();
        self.out.push_str(text);
        self.at += text.len();
    }

    fn set_atom(&mut self, product: u32) {
        self.atom = Some(product);
        if let Some(largest) = self.groups.last_mut() {
            *largest = product.max(*largest);
        }
    }

    /// After a backslash.
    fn escape(&mut self, in_class: bool) -> Result<(), PatternError> {
        let c = self
            .next()
            .ok_or_else(|| refuse("\\", "a backslash at the end"))?;
        let written = match c {
            'd' => "[0-9]",
            'D' => "[^0-9]",
            's' => r"[\t\n\x0C\r ]",
            'S' => r"[^\t\n\x0C\r ]",
            'w' => "[0-9A-Za-z_]",
            'W' => "[^0-9A-Za-z_]",
            'b' if !in_class => r"(?-u:\b)",
            'B' if !in_class => r"(?-u:\B)",
            'A' if !in_class => r"\A",
            'z' if !in_class => r"\z",
            't' | 'n' | 'r' | 'f' | 'v' | 'a' => {
                self.out.extend(['\\', c]);
                return Ok(());
            }
            'x' => return self.hex_escape(),
            '<' | '>' | '_' => {
                return Err(refuse(
                    &format!("\\{c}"),
                    "the engines differ; write the character alone",
                ));
            }
            c if c.is_ascii_punctuation() => {
                self.out.extend(['\\', c]);
                return Ok(());
            }
            'p' | 'P' => {
                return Err(refuse(
                    &format!("\\{c}"),
                    "the engines know different Unicode classes",
                ));
            }
            '0'..='9' => {
                return Err(refuse(
                    &format!("\\{c}"),
                    "neither back-references nor octal escapes",
                ));
            }
            _ => return Err(refuse(&format!("\\{c}"), "no escape of both")),
        };
        self.out.push_str(written);
        Ok(())
    }

    fn hex_escape(&mut self) -> Result<(), PatternError> {
        let hex = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit());
        let len = match self.rest().strip_prefix('{') {
            Some(rest) => rest
                .find('}')
                .filter(|n| (1..=6).contains(n) && rest.get(..*n).is_some_and(hex))
                .map(|n| n + 2),
            None => self.rest().get(..2).filter(|digits| hex(digits)).map(|_| 2),
        };
        let len = len.ok_or_else(|| refuse("\\x", "two hex digits, or one to six in braces"))?;
        self.out.push_str("\\x");
        self.copy(len);
        Ok(())
    }

    /// After `[`.
    fn class(&mut self) -> Result<(), PatternError> {
        const NAMES: [&str; 14] = [
            "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print",
            "punct", "space", "upper", "word", "xdigit",
        ];
        self.out.push('[');
        if self.rest().starts_with('^') {
            self.copy(1);
        }
        if self.rest().starts_with(']') {
            self.at += 1;
            self.out.push_str("\\]");
        }
        loop {
            for operator in ["&&", "--", "~~"] {
                if self.rest().starts_with(operator) {
                    return Err(refuse(operator, "no set operations in a class"));
                }
            }
            let c = self
                .next()
                .ok_or_else(|| PatternError::Syntax("unclosed character class".to_owned()))?;
            match c {
                ']' => break,
                '\\' => self.escape(true)?,
                '[' => {
                    let inner = self
                        .rest()
                        .strip_prefix(':')
                        .and_then(|rest| rest.split_once(":]"))
                        .map(|(name, _)| name);
                    let name = inner
                        .filter(|name| NAMES.contains(&name.strip_prefix('^').unwrap_or(name)));
                    let name = name.ok_or_else(|| refuse("[", "inside a class, write \\["))?;
                    self.out.push('[');
                    self.copy(name.len() + 3);
                }
                _ => self.out.push(c),
            }
        }
        self.out.push(']');
        Ok(())
    }

    /// After `(`.
    fn open_group(&mut self) -> Result<(), PatternError> {
        self.out.push('(');
        self.atom = None;
        if self.groups.len() > DEPTH_MAX {
            return Err(refuse("(", "groups nested too deeply"));
        }
        if let Some(rest) = self.rest().strip_prefix('?') {
            let refused = || {
                refuse(
                    "(?",
                    "of its kinds only (?:…), (?P<name>…), (?<name>…) and the flags i, m, s, U",
                )
            };
            if let Some(named) = rest.strip_prefix("P<").or_else(|| rest.strip_prefix('<')) {
                let name = named
                    .split_once('>')
                    .map(|(name, _)| name)
                    .ok_or_else(refused)?;
                let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
                if name.is_empty()
                    || !name.bytes().all(plain)
                    || name.starts_with(|c: char| c.is_ascii_digit())
                {
                    return Err(refused());
                }
                self.copy(1 + rest.len() - named.len() + name.len() + 1);
            } else {
                let end = rest.find([':', ')']).ok_or_else(refused)?;
                let flags = rest.get(..end).unwrap_or_default();
                let only_flags = rest.get(end..).is_some_and(|rest| rest.starts_with(')'));
                let known = flags.bytes().all(|b| b"imsU-".contains(&b))
                    && !flags.ends_with('-')
                    && !flags.contains("--");
                if !known || (only_flags && flags.is_empty()) {
                    return Err(refused());
                }
                self.copy(1 + end + 1);
                if only_flags {
                    return Ok(());
                }
            }
        }
        self.groups.push(1);
        Ok(())
    }

    fn close_group(&mut self) {
        self.out.push(')');
        let product = if self.groups.len() > 1 {
            self.groups.pop().unwrap_or(1)
        } else {
            1
        };
        self.set_atom(product);
    }

    fn repeat(&mut self, operator: char) -> Result<(), PatternError> {
        let product = self.atom.ok_or_else(|| {
            refuse(
                &operator.to_string(),
                "nothing to repeat, or repeated twice",
            )
        })?;
        let mut times = 1;
        self.out.push(operator);
        if operator == '{' {
            let inside = self.rest().split_once('}').map(|(inside, _)| inside);
            let inside = inside
                .ok_or_else(|| refuse("{", "a repetition is {n}, {n,} or {n,m}; a brace is \\{"))?;
            times = repetition(inside).ok_or_else(|| {
                refuse(
                    &format!("{{{inside}}}"),
                    "a repetition is {n}, {n,} or {n,m}, at most 1000",
                )
            })?;
            self.copy(inside.len() + 1);
        }
        if self.rest().starts_with('?') {
            self.copy(1);
        }
        let product = product.saturating_mul(times.max(1));
        if product > REPEAT_MAX {
            return Err(refuse("{", "nested repetitions come to more than 1000"));
        }
        self.set_atom(product);
        self.atom = None;
        Ok(())
    }
}

/// The larger bound of `n`, `n,` or `n,m`.
fn repetition(text: &str) -> Option<u32> {
    let number = |digits: &str| {
        let plain =
            !digits.is_empty() && digits.len() <= 4 && digits.bytes().all(|b| b.is_ascii_digit());
        digits.parse().ok().filter(|n| plain && *n <= REPEAT_MAX)
    };
    match text.split_once(',') {
        None => number(text),
        Some((low, "")) => number(low),
        Some((low, high)) => {
            number(high).filter(|high| number(low).is_some_and(|low| low <= *high))
        }
    }
}

fn refuse(what: &str, why: &'static str) -> PatternError {
    PatternError::Subset {
        what: what.to_owned(),
        why,
    }
}
