//! Which rule a request meets: a [`RouteTable`] is compiled once and then asked per request, without allocation in the
//! common case. Paths and authorities are expected in the form that [`canonical`] gives; [`order`] says which match comes
//! first when documents are compiled, [`peers`] which word about mutual TLS holds, [`pattern`] is the one place where
//! regular expressions are made, [`compare`] tells people what was compared.

pub mod access;
pub mod canonical;
pub mod compare;
pub mod hostname;
mod index;
pub mod order;
pub mod pattern;
pub mod peers;

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use self::index::PathIndex;
use self::pattern::{Pattern, PatternError};
use crate::resource::{
    HeaderMatch, PathMatch, QueryMatch, RouteTable, Rule, ValueMatch, VirtualHost,
};

/// What matching asks of a request.
pub trait Request {
    fn method(&self) -> &str;

    /// Canonical, without query.
    fn path(&self) -> &str;

    /// As sent, without `?`.
    fn query(&self) -> Option<&str>;

    /// The value of a header (`name` is lower case), several values joined by `,` as Envoy does; borrowed when there is
    /// only one.
    fn header(&self, name: &str) -> Option<Cow<'_, [u8]>>;

    /// Whether the content type is `application/grpc` or `application/grpc+…`.
    fn is_grpc(&self) -> bool;
}

/// A [`RouteTable`] ready for requests. `A` is what the caller makes of each rule's action.
#[derive(Debug)]
pub struct CompiledTable<A> {
    pub name: String,
    hosts: Vec<CompiledHost<A>>,
    exact: HashMap<Box<str>, usize, BuildHasherDefault<TextHasher>>,
    /// What follows the `*` of a wildcard, longest first.
    suffixes: Vec<(Box<str>, usize)>,
    any: Option<usize>,
}

#[derive(Debug)]
pub struct CompiledHost<A> {
    pub name: String,
    rules: Vec<CompiledRule<A>>,
    index: Option<PathIndex>,
}

#[derive(Debug)]
pub struct CompiledRule<A> {
    /// As in [`Rule::name`].
    pub name: String,
    pub attachment: A,
    path: PathTest,
    method: Option<Box<str>>,
    grpc: bool,
    headers: Box<[ValueTest]>,
    query: Box<[ValueTest]>,
}

#[derive(Debug, thiserror::Error)]
pub enum CompileError<E> {
    #[error("rule `{rule}`: {source}")]
    Pattern { rule: String, source: PatternError },
    #[error("host `{host}`: `{domain}` is no domain (an authority, `*.suffix` or `*`)")]
    Domain { host: String, domain: String },
    #[error("host `{host}`: domain `{domain}` belongs to another host already")]
    Duplicate { host: String, domain: String },
    #[error("rule `{rule}`: {source}")]
    Rule { rule: String, source: E },
}

impl<A> CompiledTable<A> {
    /// Compiles every rule; `attach` gives what the caller wants to find beside a rule.
    ///
    /// # Errors
    /// The first pattern that doesn't compile, domain that is none or stands twice, or refusal of `attach`.
    pub fn compile<E>(
        table: &RouteTable,
        mut attach: impl FnMut(&Rule) -> Result<A, E>,
    ) -> Result<Self, CompileError<E>> {
        let mut compiled = Self {
            name: table.name.clone(),
            hosts: Vec::with_capacity(table.hosts.len()),
            exact: HashMap::default(),
            suffixes: Vec::new(),
            any: None,
        };
        for host in &table.hosts {
            compiled.add_domains(host)?;
            let rules = host
                .rules
                .iter()
                .map(|rule| CompiledRule::compile(rule, &mut attach))
                .collect::<Result<Vec<_>, _>>()?;
            compiled.hosts.push(CompiledHost {
                name: host.name.clone(),
                index: PathIndex::of(&rules),
                rules,
            });
        }
        compiled
            .suffixes
            .sort_by_key(|(suffix, _)| std::cmp::Reverse(suffix.len()));
        Ok(compiled)
    }

    fn add_domains<E>(&mut self, host: &VirtualHost) -> Result<(), CompileError<E>> {
        let index = self.hosts.len();
        for domain in &host.domains {
            let known = match domain.strip_prefix('*') {
                Some("") => self.any.replace(index).is_some(),
                Some(suffix) if !suffix.contains('*') => {
                    let known = self.suffixes.iter().any(|(known, _)| **known == *suffix);
                    self.suffixes.push((suffix.into(), index));
                    known
                }
                None if !domain.is_empty() && !domain.contains('*') => {
                    self.exact.insert(domain.as_str().into(), index).is_some()
                }
                _ => {
                    return Err(CompileError::Domain {
                        host: host.name.clone(),
                        domain: domain.clone(),
                    });
                }
            };
            if known {
                return Err(CompileError::Duplicate {
                    host: host.name.clone(),
                    domain: domain.clone(),
                });
            }
        }
        Ok(())
    }

    /// The host for a canonical authority, with or without port as the table's domains have it: the same text, else
    /// the longest `*suffix`, else `*`.
    pub fn host(&self, authority: &str) -> Option<&CompiledHost<A>> {
        let suffix = || {
            self.suffixes
                .iter()
                .find(|(s, _)| authority.len() > s.len() && authority.ends_with(&**s))
                .map(|(_, i)| *i)
        };
        let index = self
            .exact
            .get(authority)
            .copied()
            .or_else(suffix)
            .or(self.any)?;
        self.hosts.get(index)
    }

    pub fn hosts(&self) -> &[CompiledHost<A>] {
        &self.hosts
    }
}

impl<A> CompiledHost<A> {
    pub fn rules(&self) -> &[CompiledRule<A>] {
        &self.rules
    }

    /// The first rule, in order, whose conditions all hold.
    pub fn find(&self, request: &impl Request) -> Option<&CompiledRule<A>> {
        let (path, method) = (request.path(), request.method());
        let holds = |rule: &&CompiledRule<A>| rule.holds(path, method, request);
        match self.index.as_ref().and_then(|i| i.candidates(path)) {
            Some(mut places) => places.find_map(|place| self.rules.get(place).filter(holds)),
            None => self.rules.iter().find(holds),
        }
    }
}

impl<A> CompiledRule<A> {
    fn compile<E>(
        rule: &Rule,
        attach: &mut impl FnMut(&Rule) -> Result<A, E>,
    ) -> Result<Self, CompileError<E>> {
        let pattern = |source| CompileError::Pattern {
            rule: rule.name.clone(),
            source,
        };
        let matches = &rule.matches;
        let header = |m: &HeaderMatch| ValueTest::compile(&m.name, &m.value);
        let query = |m: &QueryMatch| ValueTest::compile(&m.name, &m.value);
        Ok(Self {
            path: PathTest::compile(&matches.path).map_err(pattern)?,
            method: matches.method.as_deref().map(Into::into),
            grpc: matches.grpc,
            headers: matches
                .headers
                .iter()
                .map(header)
                .collect::<Result<_, _>>()
                .map_err(pattern)?,
            query: matches
                .query
                .iter()
                .map(query)
                .collect::<Result<_, _>>()
                .map_err(pattern)?,
            attachment: attach(rule).map_err(|source| CompileError::Rule {
                rule: rule.name.clone(),
                source,
            })?,
            name: rule.name.clone(),
        })
    }

    /// Whether the request meets this rule, whatever stands before it.
    pub fn matches(&self, request: &impl Request) -> bool {
        self.holds(request.path(), request.method(), request)
    }

    /// Bytes of the path that the rule's prefix covers (1 for `/`); none when it matches another way.
    pub fn prefix_len(&self) -> Option<usize> {
        match &self.path {
            PathTest::All => Some(1),
            PathTest::Prefix(prefix) => Some(prefix.len()),
            PathTest::Exact(_) | PathTest::Regex(_) => None,
        }
    }

    fn holds(&self, path: &str, method: &str, request: &impl Request) -> bool {
        self.path.holds(path)
            && self.method.as_deref().is_none_or(|m| m == method)
            && (!self.grpc || request.is_grpc())
            && self.headers.iter().all(|test| {
                request
                    .header(&test.name)
                    .is_some_and(|value| test.holds(&value))
            })
            && self.query.iter().all(|test| {
                query_value(request.query(), &test.name).is_some_and(|value| test.holds(&value))
            })
    }
}

#[derive(Debug)]
enum PathTest {
    /// Prefix `/`.
    All,
    Exact(Box<str>),
    Prefix(Box<str>),
    Regex(Pattern),
}

impl PathTest {
    fn compile(path: &PathMatch) -> Result<Self, PatternError> {
        Ok(match path {
            PathMatch::Exact(text) => Self::Exact(text.as_str().into()),
            PathMatch::Prefix(text) => match text.trim_end_matches('/') {
                "" => Self::All,
                prefix => Self::Prefix(prefix.into()),
            },
            PathMatch::Regex(text) => Self::Regex(Pattern::parse(text)?),
        })
    }

    fn holds(&self, path: &str) -> bool {
        match self {
            Self::All => path.starts_with('/'),
            Self::Exact(text) => **text == *path,
            Self::Prefix(prefix) => path
                .strip_prefix(&**prefix)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
            Self::Regex(pattern) => pattern.matches(path.as_bytes()),
        }
    }
}

#[derive(Debug)]
struct ValueTest {
    name: Box<str>,
    expected: Expected,
}

#[derive(Debug)]
enum Expected {
    Exact(Box<[u8]>),
    Regex(Pattern),
}

impl ValueTest {
    fn compile(name: &str, value: &ValueMatch) -> Result<Self, PatternError> {
        let expected = match value {
            ValueMatch::Exact(text) => Expected::Exact(text.as_bytes().into()),
            ValueMatch::Regex(text) => Expected::Regex(Pattern::parse(text)?),
        };
        Ok(Self {
            name: name.into(),
            expected,
        })
    }

    fn holds(&self, value: &[u8]) -> bool {
        match &self.expected {
            Expected::Exact(text) => **text == *value,
            Expected::Regex(pattern) => pattern.matches(value),
        }
    }
}

/// Conditions on headers outside of a table.
#[derive(Debug, Default)]
pub struct HeaderTests(Box<[ValueTest]>);

impl HeaderTests {
    /// # Errors
    /// The first pattern that doesn't compile.
    pub fn compile(headers: &[HeaderMatch]) -> Result<Self, PatternError> {
        let tests = headers
            .iter()
            .map(|m| ValueTest::compile(&m.name, &m.value));
        tests.collect::<Result<_, _>>().map(Self)
    }

    /// All of them; none holds always.
    pub fn hold(&self, request: &impl Request) -> bool {
        let holds = |test: &ValueTest| {
            let value = request.header(&test.name);
            value.is_some_and(|value| test.holds(&value))
        };
        self.0.iter().all(holds)
    }
}

/// The first value of `name`, percent-decoded; empty for a name without `=`. `+` stays as it is.
fn query_value<'q>(query: Option<&'q str>, name: &str) -> Option<Cow<'q, [u8]>> {
    let pairs = query?
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let mut values = pairs.filter(|(key, _)| {
        *key == name || (key.contains('%') && *percent_decode(key) == *name.as_bytes())
    });
    values.next().map(|(_, value)| percent_decode(value))
}

/// Escapes that are none stay as they are.
fn percent_decode(text: &str) -> Cow<'_, [u8]> {
    if !text.contains('%') {
        return Cow::Borrowed(text.as_bytes());
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let escape = if byte == b'%' {
            canonical::hex_pair(after)
        } else {
            None
        };
        decoded.push(escape.unwrap_or(byte));
        rest = after
            .get(if escape.is_some() { 2 } else { 0 }..)
            .unwrap_or_default();
    }
    Cow::Owned(decoded)
}

/// Eight bytes a step (the scheme of rustc's FxHash). The keys come from configuration, so nobody can make them collide.
#[derive(Debug, Default)]
struct TextHasher(u64);

impl TextHasher {
    fn step(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

impl Hasher for TextHasher {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.step(u64::from_le_bytes(*word));
        }
        self.step(
            rest.iter()
                .fold(0, |word, byte| word << 8 | u64::from(*byte)),
        );
    }

    fn write_u8(&mut self, _: u8) {} // the end mark of a str: one key is one str

    fn finish(&self) -> u64 {
        self.0.rotate_left(26)
    }
}

#[cfg(test)]
mod tests;
