//! The HTTP bindings of some services, found by method and path.

use std::collections::HashMap;

use crate::options::Options;
use crate::schema::{Field, HttpRule, Kind, MessageId, Method, Problem, Schema, Shape};
use crate::template::{Segment, Template, Variable};

#[derive(Debug)]
pub struct Table {
    pub schema: Schema,
    pub options: Options,
    bindings: Vec<Binding>,
    root: Node,
}

/// One way to call one method.
#[derive(Debug)]
pub struct Binding {
    /// Upper case; `*` for all of them.
    pub method: String,
    /// As written.
    pub template: String,
    /// `/<package>.<Service>/<Method>`.
    pub call: String,
    pub input: MessageId,
    pub output: MessageId,
    pub client_streaming: bool,
    pub server_streaming: bool,
    pub body: Body,
    /// The one field that is the answer.
    pub response_body: Option<String>,
    pub variables: Vec<Variable>,
}

/// What the body of a request is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    Nothing,
    Message,
    /// A field, by the names that lead to it.
    Field(Vec<String>),
}

/// A path that a binding matches.
#[derive(Clone, Copy, Debug)]
pub struct Found<'t, 'p> {
    pub place: usize,
    pub binding: &'t Binding,
    path: &'p str,
    /// Where the path ends, the verb left out.
    end: usize,
}

#[derive(Debug, Default)]
struct Node {
    literals: HashMap<String, Node>,
    one: Option<Box<Node>>,
    /// Literals that may follow any number of segments, and what they lead to.
    rest: Vec<(Vec<String>, Leaves)>,
    leaves: Leaves,
}

/// By verb and method.
type Leaves = Vec<(Option<String>, String, usize)>;

impl Table {
    /// The bindings of `services`.
    ///
    /// # Errors
    /// All problems of the set and of the bindings.
    pub fn try_new(
        descriptors: &[u8],
        services: &[String],
        options: Options,
    ) -> Result<Self, Vec<Problem>> {
        let schema = Schema::read(descriptors)?;
        let mut table = Self {
            schema,
            options,
            bindings: Vec::new(),
            root: Node::default(),
        };
        let (mut problems, mut bindings) = (Vec::new(), Vec::new());
        for name in services {
            let Some(service) = table.schema.service(name) else {
                let known = table.schema.services().iter();
                problems.push(Problem::NoService {
                    name: name.clone(),
                    known: known.map(|service| service.name.to_string()).collect(),
                });
                continue;
            };
            for method in &service.methods {
                let call = format!("/{}/{}", service.name, method.name);
                let auto = HttpRule {
                    method: "POST".into(),
                    path: call.clone(),
                    body: "*".into(),
                    response_body: String::new(),
                };
                let rules = match method.rules.is_empty() && table.options.auto_mapping {
                    true => std::slice::from_ref(&auto),
                    false => &method.rules,
                };
                for rule in rules {
                    match binding(&table.schema, method, &call, rule) {
                        Ok(made) => bindings.push(made),
                        Err(problem) => problems.push(problem),
                    }
                }
            }
        }
        for (binding, template) in bindings {
            if let Err(problem) = table.add(binding, template) {
                problems.push(problem);
            }
        }
        if problems.is_empty() && table.bindings.is_empty() {
            problems.push(Problem::NoBinding);
        }
        match problems.is_empty() {
            true => Ok(table),
            false => Err(problems),
        }
    }

    pub fn bindings(&self) -> &[Binding] {
        &self.bindings
    }

    pub fn binding(&self, place: usize) -> Option<&Binding> {
        self.bindings.get(place)
    }

    /// The binding of a request. A literal goes before `*`, that before `**`; the method itself before any.
    pub fn find<'t, 'p>(&'t self, method: &str, path: &'p str) -> Option<Found<'t, 'p>> {
        let colon = path.rfind(':');
        let verb = colon.filter(|at| path.rfind('/').is_none_or(|slash| slash < *at));
        let verb = verb.and_then(|at| Some((at, path.get(at + 1..)?)));
        let with = verb.and_then(|(at, verb)| {
            let place = self.look_up(method, path.get(..at)?, Some(verb))?;
            Some((place, at))
        });
        let (place, end) = with.or_else(|| {
            let place = self.look_up(method, path, None)?;
            Some((place, path.len()))
        })?;
        Some(Found {
            place,
            binding: self.bindings.get(place)?,
            path,
            end,
        })
    }

    fn look_up(&self, method: &str, path: &str, verb: Option<&str>) -> Option<usize> {
        let parts: Vec<&str> = split(path).take(PARTS_MAX + 1).collect();
        if parts.len() > PARTS_MAX {
            return None;
        }
        self.root.find(&parts, method, verb)
    }

    fn add(&mut self, binding: Binding, template: Template) -> Result<(), Problem> {
        let place = self.bindings.len();
        let mut node = &mut self.root;
        let mut segments = template.segments.iter();
        let mut tail: Option<Vec<String>> = None;
        for segment in &mut segments {
            node = match segment {
                Segment::Literal(literal) => node.literals.entry(literal.clone()).or_default(),
                Segment::One => &mut **node.one.get_or_insert_default(),
                Segment::Rest => {
                    tail = Some(Vec::new());
                    break;
                }
            };
        }
        let leaves = match &mut tail {
            None => &mut node.leaves,
            Some(tail) => {
                tail.extend(segments.filter_map(|segment| match segment {
                    Segment::Literal(literal) => Some(literal.clone()),
                    _ => None,
                }));
                let known = node.rest.iter().position(|(known, _)| known == tail);
                let at = known.unwrap_or_else(|| {
                    node.rest.push((tail.clone(), Leaves::new()));
                    node.rest.len() - 1
                });
                match node.rest.get_mut(at) {
                    Some((_, leaves)) => leaves,
                    None => return Ok(()), // there is one
                }
            }
        };
        let same = |(verb, method, _): &&(Option<String>, String, usize)| {
            *verb == template.verb && *method == binding.method
        };
        if let Some((_, _, other)) = leaves.iter().find(same) {
            let other = self.bindings.get(*other).map(|other| other.call.as_str());
            return Err(Problem::Binding {
                method: binding.call.clone(),
                path: format!("{} {}", binding.method, binding.template),
                problem: format!("`{}` is bound to the same", other.unwrap_or_default()),
            });
        }
        leaves.push((template.verb, binding.method.clone(), place));
        node.rest
            .sort_by_key(|(tail, _)| std::cmp::Reverse(tail.len()));
        self.bindings.push(binding);
        Ok(())
    }
}

impl Node {
    /// Each node is looked at once per lookup, however many there are.
    fn find(&self, parts: &[&str], method: &str, verb: Option<&str>) -> Option<usize> {
        let below = match parts.split_first() {
            None => leaf(&self.leaves, method, verb),
            Some((part, parts)) => {
                let literal = self.literals.get(*part);
                let literal = literal.and_then(|node| node.find(parts, method, verb));
                let one = || self.one.as_ref()?.find(parts, method, verb);
                literal.or_else(one)
            }
        };
        below.or_else(|| {
            let mut rest = self.rest.iter().filter(|(tail, _)| ends(parts, tail));
            rest.find_map(|(_, leaves)| leaf(leaves, method, verb))
        })
    }
}

fn ends(parts: &[&str], tail: &[String]) -> bool {
    let from = parts.len().checked_sub(tail.len());
    let end = from.and_then(|from| parts.get(from..));
    end.is_some_and(|end| end.iter().zip(tail).all(|(part, literal)| part == literal))
}

fn leaf(leaves: &Leaves, method: &str, verb: Option<&str>) -> Option<usize> {
    let of = |wanted: &str| {
        let mut leaves = leaves.iter();
        let found = leaves.find(|(v, m, _)| v.as_deref() == verb && m == wanted)?;
        Some(found.2)
    };
    of(method).or_else(|| of("*"))
}

/// The segments of a path; a slash at the end adds none.
fn split(path: &str) -> impl Iterator<Item = &str> {
    let inner = path.strip_prefix('/').unwrap_or(path);
    let inner = inner.trim_end_matches('/');
    inner.split('/').filter(move |_| !inner.is_empty())
}

impl<'t> Found<'t, '_> {
    /// What the path says of fields, unescaped.
    pub fn captured(&self) -> Vec<(&'t [String], String)> {
        let path = self.path.get(..self.end).unwrap_or_default();
        let parts: Vec<&str> = split(path).collect();
        let variables = self.binding.variables.iter();
        let read = |variable: &'t Variable| {
            let end = match variable.open {
                true => parts.len().saturating_sub(variable.end),
                false => variable.end,
            };
            let taken = parts.get(variable.start..end).unwrap_or_default().join("/");
            let decode = |byte| !variable.several || !crate::query::is_reserved(byte);
            let value = crate::query::unescape(taken.as_bytes(), decode);
            let value = String::from_utf8_lossy(&value).into_owned();
            (variable.path.as_slice(), value)
        };
        variables.map(read).collect()
    }
}

/// A rule, checked against the method's messages.
fn binding(
    schema: &Schema,
    method: &Method,
    call: &str,
    rule: &HttpRule,
) -> Result<(Binding, Template), Problem> {
    let method_name = call.trim_start_matches('/').to_owned();
    let bad = |problem: String| Problem::Binding {
        method: method_name.clone(),
        path: rule.path.clone(),
        problem,
    };
    if rule.method.is_empty() {
        return Err(bad(
            "the rule has no get, put, post, delete, patch or custom".into(),
        ));
    }
    let template = Template::parse(&rule.path).map_err(|problem| Problem::Template {
        method: method_name.clone(),
        path: rule.path.clone(),
        problem,
    })?;
    let resolve = |path: &[String]| schema.resolve(method.input, path);
    for variable in &template.variables {
        let name = variable.path.join(".");
        let found = resolve(&variable.path);
        let Some(field) = found.as_ref().and_then(|path| path.last()) else {
            return Err(bad(format!("the request has no field `{name}`")));
        };
        if field.repeated || !has_text(schema, field) {
            return Err(bad(format!("`{name}` has no form that a path could hold")));
        }
    }
    let body = match rule.body.as_str() {
        "" => Body::Nothing,
        "*" => Body::Message,
        field => {
            let path: Vec<String> = field.split('.').map(str::to_owned).collect();
            let found = resolve(&path);
            let Some(last) = found.as_ref().and_then(|path| path.last()) else {
                return Err(bad(format!(
                    "the request has no field `{field}` for its body"
                )));
            };
            if method.client_streaming && (last.repeated || !matches!(last.kind, Kind::Message(_)))
            {
                return Err(bad(format!("`{field}` of a client's stream is no message")));
            }
            Body::Field(path)
        }
    };
    let response_body = Some(&rule.response_body).filter(|name| !name.is_empty());
    if let Some(name) = response_body {
        let found = schema.resolve(method.output, [name]);
        let Some(field) = found.as_ref().and_then(|path| path.last()) else {
            return Err(bad(format!("the answer has no field `{name}`")));
        };
        let shape = match field.kind {
            Kind::Message(id) if !field.repeated => schema.message(id).map(|m| m.shape),
            _ => None,
        };
        // Envoy knows no others, and would refuse all routes of the table.
        if shape != Some(Shape::HttpBody) {
            return Err(bad(format!(
                "response_body `{name}` is no google.api.HttpBody"
            )));
        }
    }
    let binding = Binding {
        method: rule.method.to_ascii_uppercase(),
        template: rule.path.clone(),
        call: call.to_owned(),
        input: method.input,
        output: method.output,
        client_streaming: method.client_streaming,
        server_streaming: method.server_streaming,
        body,
        response_body: response_body.cloned(),
        variables: template.variables.clone(),
    };
    Ok((binding, template))
}

/// Whether a field can be said in a path or query.
pub(crate) fn has_text(schema: &Schema, field: &Field) -> bool {
    let Kind::Message(id) = field.kind else {
        return true;
    };
    let shape = schema.message(id).map(|message| message.shape);
    matches!(
        shape,
        Some(Shape::Timestamp | Shape::Duration | Shape::FieldMask | Shape::Wrapper | Shape::Value)
    )
}

/// Segments of a path; a template has fewer.
const PARTS_MAX: usize = 1_024;
