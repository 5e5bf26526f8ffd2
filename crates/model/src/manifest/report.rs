//! Problems and their places: what is told of a file, and how foreign text looks within it.

use std::cell::{Cell, RefCell};
use std::fmt;

/// Problems told of one file.
pub const PROBLEMS_MAX: usize = 100;
/// Longest piece of foreign text in a message, in characters.
pub(super) const QUOTE_LEN_MAX: usize = 60;

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub kind: ProblemKind,
    /// As handed to [`parse`].
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// `spec.rules[2].backendRefs[0].weight`; empty for a whole document.
    pub path: String,
    /// Lower case, without full stop.
    pub message: String,
    pub hint: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProblemKind {
    /// The text is no YAML.
    Syntax,
    /// The text is YAML, but no document we take.
    Document,
}

/// `file:line:column: path: message (hint)`
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file, self.line, self.column)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        self.hint
            .as_ref()
            .map_or(Ok(()), |hint| write!(f, " ({hint})"))
    }
}

/// Both from 1, the column in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub line: usize,
    pub column: usize,
}

/// Collects the problems of one file.
pub(super) struct Report<'a> {
    file: &'a str,
    problems: RefCell<Vec<Problem>>,
    count: Cell<usize>,
}

impl<'a> Report<'a> {
    pub fn new(file: &'a str) -> Self {
        Self {
            file,
            problems: RefCell::default(),
            count: Cell::new(0),
        }
    }

    pub fn tell(&self, mark: Mark, path: &str, message: String, hint: Option<String>) {
        self.tell_kind(ProblemKind::Document, mark, path, message, hint);
    }

    pub fn tell_kind(
        &self,
        kind: ProblemKind,
        mark: Mark,
        path: &str,
        message: String,
        hint: Option<String>,
    ) {
        self.count.set(self.count.get() + 1);
        let mut problems = self.problems.borrow_mut();
        if problems.len() < PROBLEMS_MAX {
            let (file, path) = (self.file.to_owned(), path.to_owned());
            problems.push(Problem {
                kind,
                file,
                line: mark.line,
                column: mark.column,
                path,
                message,
                hint,
            });
        }
    }

    /// Whether a further problem would not be shown.
    pub fn is_full(&self) -> bool {
        self.count.get() >= PROBLEMS_MAX
    }

    /// How many were told, those beyond the bound included.
    pub fn count(&self) -> usize {
        self.count.get()
    }

    pub fn into_problems(self) -> Vec<Problem> {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|problem| (problem.line, problem.column));
        let untold = self.count.get() - problems.len();
        if let Some(last) = problems.last().filter(|_| untold > 0) {
            let message = format!("{untold} further problems are not shown");
            problems.push(Problem {
                path: String::new(),
                message,
                hint: None,
                ..last.clone()
            });
        }
        problems
    }
}

pub(super) fn child_path(parent: &str, key: &str) -> String {
    let plain = !key.is_empty()
        && key.len() <= QUOTE_LEN_MAX
        && key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    match (plain, parent.is_empty()) {
        (false, _) => format!("{parent}[{}]", quoted(key).replace('`', "\"")),
        (true, true) => key.to_owned(),
        (true, false) => format!("{parent}.{key}"),
    }
}

pub(super) fn index_path(parent: &str, index: usize) -> String {
    format!("{parent}[{index}]")
}

/// Foreign text within a message: shortened, control characters escaped.
pub(super) fn quoted(text: &str) -> String {
    let short: String = text
        .chars()
        .take(QUOTE_LEN_MAX)
        .flat_map(char::escape_debug)
        .collect();
    let plain = short
        .replace("\\'", "'")
        .replace("\\\"", "\"")
        .replace("\\\\", "\\");
    format!(
        "`{plain}{}`",
        if text.chars().nth(QUOTE_LEN_MAX).is_some() {
            "…"
        } else {
            ""
        }
    )
}
