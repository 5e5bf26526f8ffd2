//! YAML as a tree in which every value knows its place. Refuses what makes a small text large (anchors, aliases), what
//! changes types (tags), duplicate keys, and documents over the limits.

use std::collections::HashMap;
use std::fmt;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, StrInput};

use super::report::{Mark, ProblemKind, Report, child_path, index_path, quoted};

/// Documents of one file, `---` and items of a `List` counted alike.
pub const DOCUMENTS_MAX: usize = 1000;
/// Bytes of one document.
pub const DOCUMENT_LEN_MAX: usize = 1024 * 1024;
/// Levels of one document.
pub const DEPTH_MAX: usize = 64;
/// Values of one document, keys not counted.
pub const NODES_MAX: usize = 10_000;
/// Bytes of a key; YAML's own bound of one before `:`.
const KEY_LEN_MAX: usize = 1024;

#[derive(Debug)]
pub(super) struct Node {
    pub mark: Mark,
    pub value: Value,
}

#[derive(Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    /// As written.
    Number(String),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Debug)]
pub(super) struct Entry {
    pub key: String,
    pub mark: Mark,
    pub value: Node,
}

/// One document.
pub(super) struct Root {
    pub node: Node,
    /// No problem was told while its tree was built.
    pub sound: bool,
}

/// All documents of which a tree could be built; empty ones are left out.
pub(super) fn read(text: &str, report: &Report<'_>) -> Vec<Root> {
    let mut roots = Vec::new();
    for (count, chunk) in chunks(text).into_iter().enumerate() {
        let start = Mark {
            line: chunk.first_line,
            column: 1,
        };
        if count >= DOCUMENTS_MAX {
            report.tell(
                start,
                "",
                format!("more than {DOCUMENTS_MAX} documents in one file"),
                None,
            );
            break;
        }
        if chunk.text.len() > DOCUMENT_LEN_MAX {
            let message = format!(
                "the document has {} bytes, at most {DOCUMENT_LEN_MAX} are taken",
                chunk.text.len()
            );
            report.tell(start, "", message, Some("split it at `---`".to_owned()));
            continue;
        }
        Builder {
            chunk: &chunk,
            report,
            stack: Vec::new(),
            nodes: 0,
            problems: report.count(),
            failed: false,
            roots: &mut roots,
        }
        .run();
    }
    roots
}

struct Chunk<'t> {
    text: &'t str,
    first_line: usize,
}

/// Splits before each line that starts with `---`: YAML allows such a line nowhere but between documents. So a syntax
/// error ends one document only.
fn chunks(text: &str) -> Vec<Chunk<'_>> {
    let mut chunks = Vec::new();
    let (mut start, mut first_line, mut offset) = (0, 1, 0);
    for (line, content) in text.split_inclusive('\n').enumerate() {
        let marker = content
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if marker && offset > start {
            chunks.push(Chunk {
                text: text.get(start..offset).unwrap_or_default(),
                first_line,
            });
            (start, first_line) = (offset, line + 1);
        }
        offset += content.len();
    }
    chunks.push(Chunk {
        text: text.get(start..).unwrap_or_default(),
        first_line,
    });
    let says_nothing = |line: &str| {
        line.trim_start_matches('\u{feff}').trim().is_empty() || line.starts_with(['#', '%'])
    };
    chunks.retain(|chunk| !chunk.text.lines().all(says_nothing));
    chunks
}

struct Builder<'a, 'r> {
    chunk: &'a Chunk<'a>,
    report: &'a Report<'r>,
    stack: Vec<Frame>,
    nodes: usize,
    /// Told before this document.
    problems: usize,
    /// The rest of the document is skipped.
    failed: bool,
    roots: &'a mut Vec<Root>,
}

/// A list or mapping that is still open.
enum Frame {
    List(Mark, Vec<Node>),
    /// Its entries so far, the key whose value comes next, and where each key stood.
    Map(
        Mark,
        Vec<Entry>,
        Option<(String, Mark)>,
        HashMap<String, Mark>,
    ),
}

impl Builder<'_, '_> {
    fn run(mut self) {
        let mut parser = Parser::<StrInput<'_>>::new_from_str(self.chunk.text);
        while let Some(event) = parser.next_event() {
            match event {
                Ok((Event::StreamEnd, _)) => return,
                Ok((Event::DocumentStart(_), _)) => {
                    self.stack.clear();
                    (self.nodes, self.failed, self.problems) = (0, false, self.report.count());
                }
                Ok((event, span)) if !self.failed => self.event(event, span),
                Ok(_) => {}
                Err(error) => {
                    let at = Mark {
                        line: error.marker().line(),
                        column: error.marker().col() + 1,
                    };
                    self.report.tell_kind(
                        ProblemKind::Syntax,
                        self.place(at),
                        "",
                        format!("no YAML: {}", error.info()),
                        None,
                    );
                    return;
                }
            }
        }
    }

    fn event(&mut self, event: Event<'_>, span: Span) {
        let mark = self.place(Mark {
            line: span.start.line(),
            column: span.start.col() + 1,
        });
        match event {
            Event::Alias(_) => self.fail(mark, "aliases are not taken", "write the value out"),
            Event::Scalar(_, _, 1.., _)
            | Event::SequenceStart(1.., _)
            | Event::MappingStart(1.., _) => {
                self.fail(mark, "anchors are not taken", "write the value out");
            }
            Event::Scalar(_, _, _, Some(_))
            | Event::SequenceStart(_, Some(_))
            | Event::MappingStart(_, Some(_)) => {
                self.fail(
                    mark,
                    "tags are not taken",
                    "a text that looks like a number is written in quotes",
                );
            }
            Event::Scalar(text, style, _, None) => {
                self.scalar(mark, text.into_owned(), style == ScalarStyle::Plain)
            }
            Event::SequenceStart(_, None) => self.open(mark, Frame::List(mark, Vec::new())),
            Event::MappingStart(_, None) => {
                self.open(mark, Frame::Map(mark, Vec::new(), None, HashMap::new()))
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => {}
        }
    }

    fn place(&self, mark: Mark) -> Mark {
        Mark {
            line: mark.line + self.chunk.first_line - 1,
            ..mark
        }
    }

    fn scalar(&mut self, mark: Mark, text: String, plain: bool) {
        if let Some(Frame::Map(_, _, key @ None, places)) = self.stack.last_mut() {
            if text.len() > KEY_LEN_MAX {
                return self.fail(
                    mark,
                    &format!("a key has more than {KEY_LEN_MAX} bytes"),
                    "no key of ours is so long",
                );
            }
            let first = places.get(&text).copied();
            places.entry(text.clone()).or_insert(mark);
            *key = Some((text, mark));
            if let Some(first) = first {
                let message = format!(
                    "the key stands twice, first at {}:{}",
                    first.line, first.column
                );
                self.report.tell(mark, &self.path(), message, None);
            }
            return;
        }
        let value = if plain {
            resolve(text)
        } else {
            Value::Text(text)
        };
        self.put(Node { mark, value });
    }

    fn open(&mut self, mark: Mark, frame: Frame) {
        if let Some(Frame::Map(_, _, None, _)) = self.stack.last() {
            return self.fail(
                mark,
                "a key must be a text",
                "braces in a value are written in quotes",
            );
        }
        if self.stack.len() >= DEPTH_MAX {
            return self.fail(
                mark,
                &format!("more than {DEPTH_MAX} levels"),
                "no document of ours needs so many",
            );
        }
        self.stack.push(frame);
    }

    fn close(&mut self) {
        match self.stack.pop() {
            Some(Frame::List(mark, items)) => self.put(Node {
                mark,
                value: Value::List(items),
            }),
            Some(Frame::Map(mark, entries, _, _)) => self.put(Node {
                mark,
                value: Value::Map(entries),
            }),
            None => {}
        }
    }

    fn put(&mut self, node: Node) {
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            return self.fail(
                node.mark,
                &format!("the document holds more than {NODES_MAX} values"),
                "split it",
            );
        }
        match self.stack.last_mut() {
            Some(Frame::List(_, items)) => items.push(node),
            Some(Frame::Map(_, entries, key, _)) => {
                if let Some((key, mark)) = key.take() {
                    entries.push(Entry {
                        key,
                        mark,
                        value: node,
                    });
                }
            }
            None if matches!(node.value, Value::Null) => {}
            None => self.roots.push(Root {
                node,
                sound: self.report.count() == self.problems,
            }),
        }
    }

    fn fail(&mut self, mark: Mark, message: &str, hint: &str) {
        self.report.tell(
            mark,
            &self.path(),
            message.to_owned(),
            Some(hint.to_owned()),
        );
        self.failed = true;
        self.stack.clear();
    }

    fn path(&self) -> String {
        self.stack
            .iter()
            .fold(String::new(), |path, frame| match frame {
                Frame::List(_, items) => index_path(&path, items.len()),
                Frame::Map(_, _, Some((key, _)), _) => child_path(&path, key),
                Frame::Map(_, _, None, _) => path,
            })
    }
}

/// The core schema of YAML 1.2.
fn resolve(text: String) -> Value {
    match text.as_str() {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ if is_number(&text) => Value::Number(text),
        _ => Value::Text(text),
    }
}

fn is_number(text: &str) -> bool {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let prefixed = |prefix, digits: fn(&u8) -> bool| {
        text.strip_prefix(prefix)
            .is_some_and(|rest| !rest.is_empty() && rest.as_bytes().iter().all(digits))
    };
    let float = unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && unsigned.contains(|c: char| c.is_ascii_digit())
        && unsigned
            .bytes()
            .all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b))
        && unsigned.parse::<f64>().is_ok();
    float
        || matches!(unsigned, ".inf" | ".Inf" | ".INF")
        || matches!(text, ".nan" | ".NaN" | ".NAN")
        || prefixed("0x", u8::is_ascii_hexdigit)
        || prefixed("0o", |b| (b'0'..=b'7').contains(b))
}

/// What kind of value it is, and a scalar itself.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("nothing"),
            Self::Bool(value) => write!(f, "the truth value `{value}`"),
            Self::Number(text) => write!(f, "the number {}", quoted(text)),
            Self::Text(text) => write!(f, "the text {}", quoted(text)),
            Self::List(_) => f.write_str("a list"),
            Self::Map(_) => f.write_str("a mapping"),
        }
    }
}
