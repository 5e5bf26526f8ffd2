//! The Prometheus text format (0.0.4): families in, one text out. Whoever counts declares a [`Family`] beside the
//! counter and writes its samples into an [`Exposition`]; labels come from configuration, never from a request.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};

/// The media type of [`Exposition::finish`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Name, meaning and kind of a group of samples. Counters end in `_total` (histograms and gauges don't).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    pub name: &'static str,
    pub help: &'static str,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Family {
    pub const fn counter(name: &'static str, help: &'static str) -> Self {
        Self {
            name,
            help,
            kind: Kind::Counter,
        }
    }

    pub const fn gauge(name: &'static str, help: &'static str) -> Self {
        Self {
            name,
            help,
            kind: Kind::Gauge,
        }
    }

    pub const fn histogram(name: &'static str, help: &'static str) -> Self {
        Self {
            name,
            help,
            kind: Kind::Histogram,
        }
    }
}

/// A count that only grows, for code off the request path (relaxed, shared).
#[derive(Debug)]
pub struct Counter {
    family: Family,
    value: AtomicU64,
}

impl Counter {
    pub const fn new(name: &'static str, help: &'static str) -> Self {
        Self {
            family: Family::counter(name, help),
            value: AtomicU64::new(0),
        }
    }

    pub fn add(&self, more: u64) {
        self.value.fetch_add(more, Ordering::Relaxed);
    }

    pub fn value(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }

    pub fn write(&self, out: &mut Exposition) {
        out.family(&self.family).sample(&[], self.value());
    }
}

/// A level that goes up and down, for code off the request path.
#[derive(Debug)]
pub struct Gauge {
    family: Family,
    value: AtomicU64,
}

impl Gauge {
    pub const fn new(name: &'static str, help: &'static str) -> Self {
        Self {
            family: Family::gauge(name, help),
            value: AtomicU64::new(0),
        }
    }

    pub fn set(&self, level: u64) {
        self.value.store(level, Ordering::Relaxed);
    }

    pub fn value(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }

    pub fn write(&self, out: &mut Exposition) {
        out.family(&self.family).sample(&[], self.value());
    }
}

/// A text being written: family by family, each once, its samples together.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
    families: BTreeSet<&'static str>,
}

pub type Label<'a> = (&'a str, &'a str);

impl Exposition {
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a family; its samples follow through what is returned.
    pub fn family(&mut self, family: &Family) -> Samples<'_> {
        debug_assert!(
            self.families.insert(family.name),
            "family {} is written twice",
            family.name
        );
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        self.text.push_str("# HELP ");
        self.text.push_str(family.name);
        self.text.push(' ');
        escape(&mut self.text, family.help, false);
        self.text.push_str("\n# TYPE ");
        self.text.push_str(family.name);
        self.text.push(' ');
        self.text.push_str(kind);
        self.text.push('\n');
        Samples {
            text: &mut self.text,
            name: family.name,
        }
    }

    pub fn finish(self) -> String {
        self.text
    }
}

/// Writes the samples of one family.
#[derive(Debug)]
pub struct Samples<'a> {
    text: &'a mut String,
    name: &'static str,
}

impl Samples<'_> {
    pub fn sample(&mut self, labels: &[Label<'_>], value: impl Value) -> &mut Self {
        self.line("", labels, None, value);
        self
    }

    /// `bounds` are ascending upper bounds, in the unit of the family's name; `counts` has one entry more, the last for
    /// what is above every bound; entries are counts of their own bucket, not cumulative.
    pub fn histogram(
        &mut self,
        labels: &[Label<'_>],
        bounds: &[f64],
        counts: &[u64],
        sum: f64,
    ) -> &mut Self {
        debug_assert_eq!(bounds.len() + 1, counts.len());
        let mut total = 0;
        for (bound, count) in bounds.iter().zip(counts) {
            total += count;
            self.line("_bucket", labels, Some(*bound), total);
        }
        total += counts.get(bounds.len()).copied().unwrap_or_default();
        self.line("_bucket", labels, Some(f64::INFINITY), total);
        self.line("_sum", labels, None, sum);
        self.line("_count", labels, None, total);
        self
    }

    fn line(&mut self, suffix: &str, labels: &[Label<'_>], bound: Option<f64>, value: impl Value) {
        self.text.push_str(self.name);
        self.text.push_str(suffix);
        if !labels.is_empty() || bound.is_some() {
            self.text.push('{');
            for (at, (name, value)) in labels.iter().enumerate() {
                if at > 0 {
                    self.text.push(',');
                }
                self.text.push_str(name);
                self.text.push_str("=\"");
                escape(self.text, value, true);
                self.text.push('"');
            }
            if let Some(bound) = bound {
                self.text
                    .push_str(if labels.is_empty() { "le=\"" } else { ",le=\"" });
                bound.write(self.text);
                self.text.push('"');
            }
            self.text.push('}');
        }
        self.text.push(' ');
        value.write(self.text);
        self.text.push('\n');
    }
}

/// A number as the format writes it.
pub trait Value {
    fn write(&self, out: &mut String);
}

impl Value for u64 {
    fn write(&self, out: &mut String) {
        print(out, format_args!("{self}"));
    }
}

impl Value for f64 {
    fn write(&self, out: &mut String) {
        match *self {
            f64::INFINITY => out.push_str("+Inf"),
            f64::NEG_INFINITY => out.push_str("-Inf"),
            value if value.is_nan() => out.push_str("NaN"),
            value => print(out, format_args!("{value}")),
        }
    }
}

fn print(out: &mut String, text: fmt::Arguments<'_>) {
    // Writing to a String can't fail.
    let _ = out.write_fmt(text);
}

fn escape(out: &mut String, text: &str, quotes: bool) {
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' if quotes => out.push_str("\\\""),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests;
