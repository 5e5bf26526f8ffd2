//! A cursor over the tree: knows its path and place, tells problems instead of failing, and refuses every key that
//! nobody asked for, so that no field is ever ignored by oversight.

use std::ops::RangeInclusive;

use super::report::{Mark, QUOTE_LEN_MAX, Report, child_path, index_path, quoted};
use super::tree::{Entry, Node, Value};

/// One value and its place.
#[derive(Clone)]
pub(super) struct At<'a> {
    pub node: &'a Node,
    pub mark: Mark,
    pub path: String,
    report: &'a Report<'a>,
}

impl<'a> At<'a> {
    pub fn root(node: &'a Node, report: &'a Report<'a>) -> Self {
        Self {
            node,
            mark: node.mark,
            path: String::new(),
            report,
        }
    }

    fn child(&self, entry: &'a Entry) -> Self {
        Self {
            node: &entry.value,
            mark: entry.value.mark,
            path: child_path(&self.path, &entry.key),
            report: self.report,
        }
    }

    /// Tells a problem of this value. Always none, so that it can end a chain.
    pub fn refuse<T>(&self, message: impl Into<String>) -> Option<T> {
        self.report
            .tell(self.mark, &self.path, message.into(), None);
        None
    }

    pub fn refuse_with<T>(&self, message: impl Into<String>, hint: impl Into<String>) -> Option<T> {
        self.report
            .tell(self.mark, &self.path, message.into(), Some(hint.into()));
        None
    }

    pub fn refuse_later<T>(&self, what: &str) -> Option<T> {
        self.refuse(format!("{} is not supported by this version", quoted(what)))
    }

    /// `good`, or the problem that the value `is …`.
    pub fn check(&self, good: bool, complaint: &str) -> Option<()> {
        if good {
            Some(())
        } else {
            self.refuse(complaint)
        }
    }

    pub fn wrong_type<T>(&self, expected: &str) -> Option<T> {
        let message = format!("expected {expected}, found {}", self.node.value);
        match &self.node.value {
            Value::Bool(_) | Value::Number(_) if expected == "a text" => {
                self.refuse_with(message, "write it in quotes")
            }
            Value::Text(text) if expected.ends_with("number") && text.parse::<i64>().is_ok() => {
                self.refuse_with(message, "write it without quotes")
            }
            _ => self.refuse(message),
        }
    }

    pub fn text(&self) -> Option<&'a str> {
        match &self.node.value {
            Value::Text(text) => Some(text),
            _ => self.wrong_type("a text"),
        }
    }

    pub fn boolean(&self) -> Option<bool> {
        match &self.node.value {
            Value::Bool(value) => Some(*value),
            _ => self.wrong_type("true or false"),
        }
    }

    /// A whole number in plain decimal digits.
    pub fn number(&self, range: RangeInclusive<u32>) -> Option<u32> {
        let Value::Number(text) = &self.node.value else {
            return self.wrong_type("a whole number");
        };
        let digits = text.strip_prefix('-').unwrap_or(text);
        if !digits.bytes().all(|b| b.is_ascii_digit())
            || (digits.len() > 1 && digits.starts_with('0'))
        {
            return self.wrong_type("a whole number");
        }
        let number = text.parse().ok().filter(|number| range.contains(number));
        let outside = || {
            format!(
                "{} is not within {} to {}",
                quoted(text),
                range.start(),
                range.end()
            )
        };
        number.or_else(|| self.refuse(outside()))
    }

    /// A number with up to three decimal places, as thousandths; the range is of those.
    pub fn thousandths(&self, range: RangeInclusive<u32>) -> Option<u32> {
        let Value::Number(text) = &self.node.value else {
            return self.wrong_type("a number");
        };
        let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(part) || part.len() > 3 {
            return self.refuse(format!(
                "{} is no number with up to three decimal places",
                quoted(text)
            ));
        }
        let number = format!("{whole}{part:0<3}").parse().ok();
        let outside = || {
            let shown = |thousandths: u32| f64::from(thousandths) / 1000.0;
            format!(
                "{} is not within {} to {}",
                quoted(text),
                shown(*range.start()),
                shown(*range.end())
            )
        };
        number
            .filter(|number| range.contains(number))
            .or_else(|| self.refuse(outside()))
    }

    /// One of `choices`; those in `later` are known, but not built yet.
    pub fn choose<T: Clone>(&self, choices: &[(&str, T)], later: &[&str]) -> Option<T> {
        let text = self.text()?;
        if let Some((_, value)) = choices.iter().find(|(name, _)| *name == text) {
            return Some(value.clone());
        }
        if later.contains(&text) {
            return self.refuse_later(text);
        }
        let message = format!("unknown value {}", quoted(text));
        let near = nearest(text, choices.iter().map(|(name, _)| *name));
        let names = || {
            choices
                .iter()
                .map(|(name, _)| quoted(name))
                .collect::<Vec<_>>()
                .join(", ")
        };
        self.refuse_with(
            message,
            near.map_or_else(|| format!("known: {}", names()), did_you_mean),
        )
    }

    /// Items of a list; none and a problem when it is no list or has more than `max`.
    pub fn items(&self, max: usize) -> Vec<At<'a>> {
        let Value::List(items) = &self.node.value else {
            return self.wrong_type("a list").unwrap_or_default();
        };
        if items.len() > max {
            self.refuse::<()>(format!("{} items, at most {max} are taken", items.len()));
        }
        let item = |(i, node): (usize, &'a Node)| At {
            node,
            mark: node.mark,
            path: index_path(&self.path, i),
            report: self.report,
        };
        items.iter().take(max).enumerate().map(item).collect()
    }

    /// Keys and values of a mapping whose keys are the user's.
    pub fn entries(&self) -> Vec<(&'a str, At<'a>)> {
        match &self.node.value {
            Value::Map(entries) => entries
                .iter()
                .map(|entry| (entry.key.as_str(), self.child(entry)))
                .collect(),
            _ => self.wrong_type("a mapping").unwrap_or_default(),
        }
    }

    /// Fields of a mapping whose keys are ours.
    pub fn fields(&self) -> Option<Fields<'a>> {
        match &self.node.value {
            Value::Map(entries) => Some(Fields {
                at: self.clone(),
                entries,
                known: Vec::new(),
                skipped: false,
            }),
            _ => self.wrong_type("a mapping"),
        }
    }

    /// A look ahead, without problems.
    pub fn field_text(&self, key: &str) -> Option<&'a str> {
        let Value::Map(entries) = &self.node.value else {
            return None;
        };
        match &entries.iter().find(|entry| entry.key == key)?.value.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// Fields asked for one by one; when dropped, whatever was not asked for is refused.
pub(super) struct Fields<'a> {
    pub at: At<'a>,
    entries: &'a [Entry],
    known: Vec<&'static str>,
    skipped: bool,
}

impl<'a> Fields<'a> {
    /// The value of a field, unless it is left out or null.
    pub fn get(&mut self, key: &'static str) -> Option<At<'a>> {
        self.known.push(key);
        let entry = self.entries.iter().find(|entry| entry.key == key)?;
        if matches!(entry.value.value, Value::Null) {
            None
        } else {
            Some(self.at.child(entry))
        }
    }

    /// Like [`Fields::get`], but its absence is a problem.
    pub fn need(&mut self, key: &'static str) -> Option<At<'a>> {
        let found = self.get(key);
        if found.is_none() {
            let path = child_path(&self.at.path, key);
            self.at
                .report
                .tell(self.at.mark, &path, "the field is missing".to_owned(), None);
        }
        found
    }

    /// Items of a list, none when it is left out.
    pub fn list(&mut self, key: &'static str, max: usize) -> Vec<At<'a>> {
        self.get(key).map_or_else(Vec::new, |at| at.items(max))
    }

    /// A number, `default` when it is left out (or wrong, which is told).
    pub fn number(&mut self, key: &'static str, range: RangeInclusive<u32>, default: u32) -> u32 {
        self.get(key)
            .and_then(|at| at.number(range))
            .unwrap_or(default)
    }

    /// Fields that are taken and mean nothing here.
    pub fn ignore(&mut self, keys: &[&'static str]) {
        self.known.extend_from_slice(keys);
    }

    /// Fields that exist, but not in this version.
    pub fn later(&mut self, keys: &[&'static str]) {
        for key in keys.iter().copied() {
            self.known.push(key);
            let entry = self.entries.iter().find(|entry| entry.key == key);
            if let Some(entry) = entry.filter(|entry| !matches!(entry.value.value, Value::Null)) {
                At {
                    mark: entry.mark,
                    ..self.at.child(entry)
                }
                .refuse_later::<()>(key);
            }
        }
    }

    /// Leaves the other fields unread.
    pub fn skip(mut self) {
        self.skipped = true;
    }
}

impl Drop for Fields<'_> {
    fn drop(&mut self) {
        if self.skipped {
            return;
        }
        for entry in self
            .entries
            .iter()
            .filter(|entry| !self.known.contains(&entry.key.as_str()))
        {
            let path = child_path(&self.at.path, &entry.key);
            let hint = if self.at.report.is_full() {
                None
            } else {
                nearest(&entry.key, self.known.iter().copied()).map(did_you_mean)
            };
            self.at
                .report
                .tell(entry.mark, &path, "unknown field".to_owned(), hint);
        }
    }
}

fn did_you_mean(name: &str) -> String {
    format!("did you mean `{name}`?")
}

/// The candidate nearest to `text`, if it is near: a third of its characters may differ, case not counted. Else one that
/// holds it whole (`Prefix`, `PathPrefix`).
pub(super) fn nearest<'n>(
    text: &str,
    candidates: impl Iterator<Item = &'n str>,
) -> Option<&'n str> {
    if text.len() > QUOTE_LEN_MAX {
        return None;
    }
    let text = text.to_ascii_lowercase();
    let lower: Vec<(String, &str)> = candidates
        .map(|name| (name.to_ascii_lowercase(), name))
        .collect();
    let (distance, name) = lower
        .iter()
        .map(|(lower, name)| (distance(&text, lower), *name))
        .min_by_key(|(distance, _)| *distance)?;
    if distance <= (name.len().max(text.len()) / 3).max(1) && distance < name.len() {
        return Some(name);
    }
    let longer = lower
        .iter()
        .find(|(lower, _)| text.len() >= 4 && lower.contains(&text));
    longer.map(|(_, name)| *name)
}

/// Optimal string alignment: insertions, deletions, changes and swaps of neighbours.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut before = vec![0; b.len() + 1];
    let mut above: Vec<usize> = (0..=b.len()).collect();
    let mut last_a = None;
    for (i, ca) in a.chars().enumerate() {
        let mut row = vec![i + 1];
        for (j, cb) in b.iter().enumerate() {
            let at = |row: &[usize], j: usize| row.get(j).copied().unwrap_or(usize::MAX - 1);
            let mut best = (at(&above, j + 1) + 1)
                .min(at(&row, j) + 1)
                .min(at(&above, j) + usize::from(ca != *cb));
            if j > 0 && last_a == Some(*cb) && b.get(j - 1) == Some(&ca) {
                best = best.min(at(&before, j - 1) + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
        last_a = Some(ca);
    }
    above.last().copied().unwrap_or_default()
}
