//! Path templates of `google.api.http`: `/v1/{name=shelves/*}/books/**:verb`.

/// One segment of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    Literal(String),
    /// One segment, whatever it is.
    One,
    /// Any number of them.
    Rest,
}

/// What a template captures: `segments.start..segments.end`, counted after the path has been split; with [`Segment::Rest`]
/// in it, `end` is counted from the path's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    /// Names, from the request message inwards.
    pub path: Vec<String>,
    pub start: usize,
    pub end: usize,
    pub open: bool,
    /// More than one segment, or could be.
    pub several: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    pub segments: Vec<Segment>,
    pub verb: Option<String>,
    pub variables: Vec<Variable>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTemplate {
    #[error("a path template begins with `/`")]
    Root,
    #[error("byte {0}: a segment is `*`, `**`, a literal or `{{field=…}}`")]
    Segment(usize),
    #[error("byte {0}: a variable within a variable")]
    Nested(usize),
    #[error("byte {0}: a variable is `{{field.path}}` or `{{field.path=segments}}`")]
    Variable(usize),
    #[error("after `**` there may be literals only")]
    AfterRest,
    #[error("variable `{0}` stands in it twice")]
    Twice(String),
    #[error("more than {SEGMENTS_MAX} segments")]
    Long,
    #[error("byte {0}: a verb is `:` and a literal, at the end")]
    Verb(usize),
}

pub const SEGMENTS_MAX: usize = 64;

impl Template {
    /// # Errors
    /// [`BadTemplate`], with the byte where it went wrong.
    pub fn parse(text: &str) -> Result<Self, BadTemplate> {
        if !text.starts_with('/') {
            return Err(BadTemplate::Root);
        }
        let mut parser = Parser {
            text,
            at: 1,
            template: Self {
                segments: Vec::new(),
                verb: None,
                variables: Vec::new(),
            },
        };
        if text.len() > 1 {
            parser.segments(false)?;
        }
        if parser.take(b':') {
            let at = parser.at;
            let verb = parser.literal().filter(|verb| !verb.is_empty());
            parser.template.verb = Some(verb.ok_or(BadTemplate::Verb(at))?.to_owned());
        }
        if parser.at < text.len() {
            return Err(BadTemplate::Segment(parser.at));
        }
        parser.finish()
    }
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
    template: Template,
}

impl<'t> Parser<'t> {
    fn take(&mut self, byte: u8) -> bool {
        let is_there = self.text.as_bytes().get(self.at) == Some(&byte);
        self.at += usize::from(is_there);
        is_there
    }

    fn literal(&mut self) -> Option<&'t str> {
        let rest = self.text.get(self.at..)?;
        let end = rest.find(['/', ':', '{', '}', '=', '*', '?', '#', ' ']);
        let literal = rest.get(..end.unwrap_or(rest.len()))?;
        self.at += literal.len();
        Some(literal)
    }

    fn segments(&mut self, inside: bool) -> Result<(), BadTemplate> {
        loop {
            self.segment(inside)?;
            if self.template.segments.len() > SEGMENTS_MAX {
                return Err(BadTemplate::Long);
            }
            if !self.take(b'/') {
                return Ok(());
            }
        }
    }

    fn segment(&mut self, inside: bool) -> Result<(), BadTemplate> {
        let at = self.at;
        let segment = if self.take(b'*') {
            match self.take(b'*') {
                true => Segment::Rest,
                false => Segment::One,
            }
        } else if self.take(b'{') {
            return match inside {
                true => Err(BadTemplate::Nested(at)),
                false => self.variable(at),
            };
        } else {
            match self.literal() {
                Some(literal) if !literal.is_empty() => Segment::Literal(literal.to_owned()),
                _ => return Err(BadTemplate::Segment(at)),
            }
        };
        self.template.segments.push(segment);
        Ok(())
    }

    fn variable(&mut self, at: usize) -> Result<(), BadTemplate> {
        let name = self.literal().unwrap_or_default();
        let path: Vec<String> = name.split('.').map(str::to_owned).collect();
        if path.iter().any(String::is_empty) {
            return Err(BadTemplate::Variable(at));
        }
        let start = self.template.segments.len();
        match self.take(b'=') {
            true => self.segments(true)?,
            false => self.template.segments.push(Segment::One),
        }
        if !self.take(b'}') {
            return Err(BadTemplate::Variable(at));
        }
        if self
            .template
            .variables
            .iter()
            .any(|known| known.path == path)
        {
            return Err(BadTemplate::Twice(name.to_owned()));
        }
        let end = self.template.segments.len();
        self.template.variables.push(Variable {
            path,
            start,
            end,
            open: false,
            several: end - start > 1,
        });
        Ok(())
    }

    /// Where `**` is, what lies behind it is counted from the end.
    fn finish(mut self) -> Result<Template, BadTemplate> {
        let template = &mut self.template;
        let rest = template.segments.iter().position(|s| *s == Segment::Rest);
        let Some(rest) = rest else {
            return Ok(self.template);
        };
        let after = template.segments.iter().skip(rest + 1);
        if !after.clone().all(|s| matches!(s, Segment::Literal(_))) {
            return Err(BadTemplate::AfterRest);
        }
        let len = template.segments.len();
        for variable in &mut template.variables {
            if variable.start > rest {
                return Err(BadTemplate::AfterRest);
            }
            if variable.end > rest {
                variable.open = true;
                variable.several = true;
                variable.end = len - variable.end;
            }
        }
        Ok(self.template)
    }
}
