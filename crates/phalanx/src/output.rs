//! What people and programs read: aligned tables, JSON, YAML, colours on a terminal only.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use serde::Serialize;
use serde_json::Value;

use crate::exit::{Failure, Outcome};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    #[default]
    Table,
    Json,
    Yaml,
}

/// Prints to standard output; a closed pipe is no error.
pub fn print(text: &str) -> Outcome {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::defect(format!("cannot write: {error}")))
        }
        _ => Ok(()),
    }
}

/// Prints a line to standard error; whoever closed it does not want to know.
pub fn tell(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// What others wrote, as it may stand on a terminal: control and direction characters are shown, not obeyed.
pub fn plain(text: &str) -> String {
    let acts = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match acts(c) {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    shown
}

/// Columns of a terminal: ideographs and their like take two, combining marks none.
fn width(text: &str) -> usize {
    let columns = |c: char| match c as u32 {
        0x300..=0x36f | 0x200b..=0x200d | 0xfe00..=0xfe0f => 0,
        0x1100..=0x115f | 0x2e80..=0x303e | 0x3041..=0xa4cf | 0xac00..=0xd7a3 => 2,
        0xf900..=0xfaff | 0xfe30..=0xfe4f | 0xff00..=0xff60 | 0xffe0..=0xffe6 => 2,
        0x1f300..=0x1f64f | 0x1f680..=0x1f6ff | 0x1f900..=0x1f9ff | 0x2_0000..=0x3_fffd => 2,
        _ => 1,
    };
    text.chars().map(columns).sum()
}

/// The value as JSON or YAML, or else the table.
pub fn show<T: Serialize>(format: Format, value: &T, table: impl FnOnce() -> String) -> Outcome {
    let json =
        || serde_json::to_value(value).map_err(|e| Failure::defect(format!("cannot print: {e}")));
    match format {
        Format::Table => print(&table()),
        Format::Json => print(&format!("{:#}\n", json()?)),
        Format::Yaml => print(&yaml(&json()?)),
    }
}

/// Columns as wide as their widest cell; numbers to the right.
pub struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(header: &[&'static str]) -> Self {
        Self {
            header: header.to_vec(),
            rows: Vec::new(),
        }
    }

    pub fn row(&mut self, cells: Vec<String>) {
        self.rows
            .push(cells.iter().map(|cell| plain(cell)).collect());
    }

    pub fn render(&self, style: Style) -> String {
        let widest = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            let cells = cells.map(|cell| width(cell));
            cells.chain([width(self.header[column])]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.header.len()).map(widest).collect();
        let right: Vec<bool> = (0..self.header.len()).map(|c| self.is_numeric(c)).collect();
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            let mut text = String::new();
            for (column, cell) in cells.enumerate() {
                let gap = " ".repeat(widths[column].saturating_sub(width(cell)));
                let (before, after) = if right[column] {
                    (gap.as_str(), "")
                } else {
                    ("", gap.as_str())
                };
                text.push_str(&format!(
                    "{}{before}{cell}{after}",
                    if column > 0 { "  " } else { "" }
                ));
            }
            text.trim_end().to_owned()
        };
        let head = style.bold(&line(&mut self.header.iter().copied()));
        let body = self
            .rows
            .iter()
            .map(|row| line(&mut row.iter().map(String::as_str)));
        std::iter::once(head)
            .chain(body)
            .map(|l| l + "\n")
            .collect()
    }

    fn is_numeric(&self, column: usize) -> bool {
        let digit = |cell: &String| cell == "-" || cell.starts_with(|c: char| c.is_ascii_digit());
        let plain = |cell: &String| {
            cell.chars().all(|c| {
                c.is_ascii_digit()
                    || "-.,%".contains(c)
                    || c.is_ascii_alphabetic() && cell.len() < 12
            })
        };
        !self.rows.is_empty()
            && self
                .rows
                .iter()
                .filter_map(|r| r.get(column))
                .all(|c| digit(c) && plain(c))
    }
}

/// Escape codes, or none.
#[derive(Clone, Copy)]
pub struct Style {
    coloured: bool,
}

pub fn stdout_style() -> Style {
    Style {
        coloured: io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
    }
}

pub fn stderr_style() -> Style {
    Style {
        coloured: io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
    }
}

impl Style {
    pub fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }

    pub fn dim(self, text: &str) -> String {
        self.wrap("2", text)
    }

    pub fn good(self, text: &str) -> String {
        self.wrap("32", text)
    }

    pub fn warn(self, text: &str) -> String {
        self.wrap("33", text)
    }

    pub fn error(self, text: &str) -> String {
        self.wrap("31;1", text)
    }

    fn wrap(self, code: &str, text: &str) -> String {
        if self.coloured {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// `1.2s ago`-like ages: the largest unit, as kubectl shows them.
pub fn age(then_ms: u64, now_ms: u64) -> String {
    let seconds = now_ms.saturating_sub(then_ms) / 1000;
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

pub fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// Block YAML that reads back as the same value.
pub fn yaml(value: &Value) -> String {
    let mut text = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => write_map(&mut text, map, 0),
        Value::Array(items) if !items.is_empty() => write_items(&mut text, items, 0),
        scalar => text = format!("{}\n", write_scalar(scalar)),
    }
    text
}

fn write_map(text: &mut String, map: &serde_json::Map<String, Value>, depth: usize) {
    for (index, (key, value)) in map.iter().enumerate() {
        // The first key of a list item stands behind its dash.
        if index > 0 || !text.ends_with("- ") {
            text.push_str(&"  ".repeat(depth));
        }
        text.push_str(&write_scalar(&Value::String(key.clone())));
        text.push(':');
        write_child(text, value, depth);
    }
}

fn write_items(text: &mut String, items: &[Value], depth: usize) {
    for item in items {
        text.push_str(&"  ".repeat(depth));
        text.push_str("- ");
        match item {
            Value::Object(map) if !map.is_empty() => write_map(text, map, depth + 1),
            Value::Array(_) => text.push_str(&format!("{item}\n")),
            scalar => text.push_str(&format!("{}\n", write_scalar(scalar))),
        }
    }
}

fn write_child(text: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            text.push('\n');
            write_map(text, map, depth + 1);
        }
        Value::Array(items) if !items.is_empty() => {
            text.push('\n');
            write_items(text, items, depth);
        }
        scalar => text.push_str(&format!(" {}\n", write_scalar(scalar))),
    }
}

/// Plain where no reader can take it for something else, quoted as JSON otherwise.
fn write_scalar(value: &Value) -> String {
    let Value::String(text) = value else {
        return value.to_string();
    };
    let safe = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    let word =
        text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/') && text.chars().all(safe);
    let reserved = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"]
        .contains(&text.to_ascii_lowercase().as_str());
    if word && !reserved {
        text.clone()
    } else {
        value.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align_and_numbers_stand_right() {
        let mut table = Table::new(&["NAME", "COUNT"]);
        table.row(vec!["a".into(), "5".into()]);
        table.row(vec!["longer".into(), "1234567".into()]);
        let text = table.render(Style { coloured: false });
        assert_eq!(text, "NAME      COUNT\na             5\nlonger  1234567\n");
    }

    #[test]
    fn ideographs_take_two_columns_and_nothing_that_others_wrote_acts() {
        let mut table = Table::new(&["AUTHOR", "MESSAGE"]);
        table.row(vec!["王小明".into(), "换端口".into()]);
        table.row(vec!["ann".into(), "\x1b[2J\u{202e}x\ny".into()]);
        assert_eq!(
            table.render(Style { coloured: false }),
            "AUTHOR  MESSAGE\n王小明  换端口\nann     \\u{1b}[2J\\u{202e}x\\ny\n"
        );
    }

    #[test]
    fn yaml_is_blocks_and_quotes_what_could_be_misread() {
        let value = serde_json::json!({"kind": "Service", "spec": {"ports": [{"port": 80, "name": "yes"}], "v": "1.5", "e": {}, "l": []}});
        assert_eq!(
            yaml(&value),
            "kind: Service\nspec:\n  e: {}\n  l: []\n  ports:\n  - name: \"yes\"\n    port: 80\n  v: \"1.5\"\n"
        );
    }
}
