//! A request that becomes a call: first what its path and query say, then its body.

use crate::json::{self, Bad};
use crate::query;
use crate::schema::{Field, Kind, Shape};
use crate::status::{INVALID_ARGUMENT, NOT_FOUND, RESOURCE_EXHAUSTED, Status};
use crate::table::{Body, Table, has_text};
use crate::wire::{self, Records, Value};

/// What a request is to the table.
#[derive(Debug)]
pub enum Came {
    Call(Call),
    /// Not ours: it goes on as it came.
    Other,
}

/// A call without its body yet.
#[derive(Debug)]
pub struct Call {
    /// Its place among the table's bindings.
    pub binding: usize,
    /// What path and query say, in wire format.
    bound: Vec<u8>,
    /// Numbers of the singular fields that they say, and whether the path does.
    paths: Vec<Vec<u32>>,
}

/// Why a request can't be made a call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("no method is bound to {method} {path}")]
    Unknown { method: String, path: String },
    #[error("`{name}` is no query parameter of this method")]
    Parameter { name: String },
    #[error("`{value}` is no value for `{name}`")]
    Value { name: String, value: String },
    #[error("`{0}` is said twice")]
    Twice(String),
    #[error("more than {PARAMETERS_MAX} query parameters")]
    Parameters,
    #[error("the body: {0}")]
    Body(#[from] Bad),
    #[error("the body says of `{0}` something else than path or query")]
    Collision(String),
    #[error("a message of more than {MESSAGE_MAX} bytes")]
    TooLarge,
    #[error("a body with a content-encoding")]
    Encoded,
}

impl Refused {
    pub fn status(&self) -> Status {
        let code = match self {
            Self::Unknown { .. } => NOT_FOUND,
            Self::TooLarge => RESOURCE_EXHAUSTED,
            _ => INVALID_ARGUMENT,
        };
        Status::new(code, self.to_string())
    }

    pub fn http(&self) -> u16 {
        match self {
            Self::TooLarge => 413,
            Self::Encoded => 415,
            other => other.status().http(),
        }
    }
}

/// Reads path and query of a request.
///
/// # Errors
/// [`Refused`], where the table's options want that instead of [`Came::Other`].
pub fn begin(
    table: &Table,
    method: &str,
    path: &str,
    query: Option<&str>,
) -> Result<Came, Refused> {
    let Some(found) = table.find(method, path) else {
        return match table.options.validation.reject_unknown_method {
            false => Ok(Came::Other),
            true => Err(Refused::Unknown {
                method: method.to_owned(),
                path: path.to_owned(),
            }),
        };
    };
    let mut call = Call {
        binding: found.place,
        bound: Vec::new(),
        paths: Vec::new(),
    };
    let input = found.binding.input;
    for (names, value) in found.captured() {
        let fields = table.schema.resolve(input, names).unwrap_or_default();
        call.bind(table, &fields, &names.join("."), &value)?;
    }
    let plus = table.options.query_param_unescape_plus;
    for (count, (name, value)) in query::pairs(query.unwrap_or_default(), plus).enumerate() {
        if count >= PARAMETERS_MAX {
            return Err(Refused::Parameters);
        }
        let name = String::from_utf8_lossy(&name).into_owned();
        if table.options.ignored_query_parameters.contains(&name) {
            continue;
        }
        let fields = table.schema.resolve(input, name.split('.'));
        let last = fields.as_ref().and_then(|fields| fields.last());
        let fits = last.is_some_and(|last| {
            has_text(&table.schema, last) && table.schema.map_of(last).is_none()
        });
        let (Some(fields), true) = (fields, fits) else {
            if table.options.ignore_unknown_query_parameters {
                continue;
            }
            return match table.options.validation.reject_unknown_query_parameters {
                true => Err(Refused::Parameter { name }),
                false => Ok(Came::Other),
            };
        };
        let value = String::from_utf8_lossy(&value).into_owned();
        call.bind(table, &fields, &name, &value)?;
    }
    Ok(Came::Call(call))
}

impl Call {
    fn bind(
        &mut self,
        table: &Table,
        fields: &[&Field],
        name: &str,
        value: &str,
    ) -> Result<(), Refused> {
        let no_value = || Refused::Value {
            name: name.to_owned(),
            value: value.chars().take(VALUE_SHOWN).collect(),
        };
        let (last, outer) = fields.split_last().ok_or_else(no_value)?;
        let path: Vec<u32> = fields.iter().map(|field| field.number).collect();
        if !last.repeated {
            if self.paths.contains(&path) {
                return Err(Refused::Twice(name.to_owned()));
            }
            self.paths.push(path);
        }
        let begun: Vec<usize> = outer
            .iter()
            .map(|field| wire::begin(&mut self.bound, field.number))
            .collect();
        let any_case = table.options.case_insensitive_enum_parsing;
        json::put_text(&table.schema, any_case, last, value, &mut self.bound)
            .ok_or_else(no_value)?;
        for begun in begun.into_iter().rev() {
            wire::end(&mut self.bound, begun);
        }
        Ok(())
    }

    /// Whether it has to wait for a body.
    pub fn reads_body(&self, table: &Table) -> bool {
        let binding = table.binding(self.binding);
        binding.is_some_and(|binding| binding.body != Body::Nothing)
    }

    /// The messages of the call, framed as gRPC sends them.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn finish(
        &self,
        table: &Table,
        content_type: &[u8],
        body: &[u8],
    ) -> Result<Vec<u8>, Refused> {
        let mut out = Vec::new();
        let Some(binding) = table.binding(self.binding) else {
            return Ok(out);
        };
        let body = match binding.body {
            Body::Nothing => b"",
            _ => body,
        };
        let (schema, any_case) = (&table.schema, table.options.case_insensitive_enum_parsing);
        let blank = body.iter().all(u8::is_ascii_whitespace);
        let fields = match &binding.body {
            Body::Field(names) => schema.resolve(binding.input, names).unwrap_or_default(),
            _ => Vec::new(),
        };
        let target = match fields.last() {
            Some(field) => match field.kind {
                Kind::Message(id) if !field.repeated => Some(id),
                _ => None,
            },
            None => Some(binding.input),
        };
        let shape = target.and_then(|id| schema.message(id)).map(|m| m.shape);
        let raw = shape == Some(Shape::HttpBody) && binding.body != Body::Nothing;
        // What path and query say goes into the first.
        let mut bound = self.bound.as_slice();
        let mut send = |message| self.send(table, message, std::mem::take(&mut bound), &mut out);
        if raw {
            let mut message = Vec::with_capacity(body.len() + 64);
            if !content_type.is_empty() {
                wire::put_bytes(&mut message, 1, content_type);
            }
            if !body.is_empty() {
                wire::put_bytes(&mut message, 2, body);
            }
            send(within(&fields, message))?;
        } else if blank {
            // Nothing is a message without fields.
            send(match target {
                Some(_) => within(&fields, Vec::new()),
                None => Vec::new(),
            })?;
        } else if let (true, Some(id)) = (binding.client_streaming, target) {
            // One at a time: many small ones take no more than what is sent.
            json::read_stream(schema, any_case, id, body, |message| {
                send(within(&fields, message))
            })?;
        } else if let Some((last, outer)) = fields.split_last() {
            let mut message = Vec::new();
            json::read_field(schema, any_case, last, body, &mut message)?;
            send(within(outer, message))?;
        } else {
            let mut message = Vec::new();
            json::read_message(schema, any_case, binding.input, body, &mut message)?;
            send(message)?;
        }
        Ok(out)
    }

    /// Appends a message with what else is said of it.
    fn send(
        &self,
        table: &Table,
        mut message: Vec<u8>,
        bound: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), Refused> {
        let validation = &table.options.validation;
        if validation.reject_binding_body_field_collisions {
            self.collide(table, &message, bound)?;
        }
        message.extend_from_slice(bound);
        if message.len() > MESSAGE_MAX || out.len() + message.len() > CALL_MAX {
            return Err(Refused::TooLarge);
        }
        wire::put_frame(out, &message);
        Ok(())
    }

    fn collide(&self, table: &Table, message: &[u8], bound: &[u8]) -> Result<(), Refused> {
        if message.is_empty() || bound.is_empty() {
            return Ok(());
        }
        for path in &self.paths {
            let (said, wanted) = (look(message, path), look(bound, path));
            if said.is_some() && said != wanted {
                return Err(Refused::Collision(self.named(table, path)));
            }
        }
        Ok(())
    }
    /// `room.name`, of the numbers that lead there.
    fn named(&self, table: &Table, path: &[u32]) -> String {
        let mut names = Vec::new();
        let mut message = table.binding(self.binding).map(|binding| binding.input);
        for number in path {
            let message_of = message.and_then(|id| table.schema.message(id));
            let Some(field) = message_of.and_then(|m| m.numbered(*number)) else {
                break;
            };
            names.push(&*field.name);
            message = match field.kind {
                Kind::Message(id) => Some(id),
                _ => None,
            };
        }
        names.join(".")
    }
}

/// A message as the field that this path leads to.
fn within(path: &[&Field], mut message: Vec<u8>) -> Vec<u8> {
    for field in path.iter().rev() {
        let mut outer = Vec::with_capacity(message.len() + 8);
        wire::put_bytes(&mut outer, field.number, &message);
        message = outer;
    }
    message
}

/// What a message says of the field at a path of numbers, at last.
fn look<'m>(message: &'m [u8], path: &[u32]) -> Option<Value<'m>> {
    let (wanted, deeper) = path.split_first()?;
    let (mut records, mut found) = (Records::new(message), None);
    while let Ok(Some((number, value))) = records.read() {
        if number != *wanted {
            continue;
        }
        match (deeper, value) {
            ([], value) => found = Some(value),
            (deeper, Value::Bytes(inner)) => found = look(inner, deeper).or(found),
            _ => {}
        }
    }
    found
}

/// Of a message, as everywhere in the mesh.
pub const MESSAGE_MAX: usize = 4 << 20;
/// Of all messages of a call together.
const CALL_MAX: usize = 2 * MESSAGE_MAX;
const PARAMETERS_MAX: usize = 256;
const VALUE_SHOWN: usize = 64;
