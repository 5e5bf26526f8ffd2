//! A `FileDescriptorSet`, read in two passes: names first, then what refers to them.

use std::collections::HashSet;

use super::*;
use crate::wire::{Malformed, Records, Value};

/// What is wrong with a descriptor set, or with a policy over one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("no descriptor set: {0}")]
    Malformed(#[from] Malformed),
    #[error("no descriptor set: there is no file in it")]
    Empty,
    #[error("a descriptor set has {DESCRIPTORS_MAX} bytes at most")]
    Large,
    #[error("`{0}` stands twice in the set")]
    Twice(String),
    #[error("`{0}` is nested too deep")]
    Deep(String),
    #[error("`{of}` needs `{name}`, which is not in the set (protoc: --include_imports)")]
    Missing { of: String, name: String },
    #[error("`{0}` is a group, which has no JSON")]
    Group(String),
    #[error("the set has more than {TYPES_MAX} types, or {FIELDS_MAX} fields")]
    Many,
    #[error("there is no service `{name}` in the set{}", near(.known))]
    NoService { name: String, known: Vec<String> },
    #[error("`{method}`: `{path}`: {problem}")]
    Template {
        method: String,
        path: String,
        problem: crate::template::BadTemplate,
    },
    #[error("`{method}`: `{path}`: {problem}")]
    Binding {
        method: String,
        path: String,
        problem: String,
    },
    #[error("no method of the services has an HTTP binding (`autoMapping: true` gives each one)")]
    NoBinding,
}

fn near(known: &[String]) -> String {
    match known {
        [] => String::new(),
        known => format!(" (there are: {})", known.join(", ")),
    }
}

pub const DESCRIPTORS_MAX: usize = 1 << 20;
const TYPES_MAX: usize = 20_000;
const FIELDS_MAX: usize = 200_000;
const NESTED_MAX: usize = 32;

pub(super) fn read(set: &[u8]) -> Result<Schema, Vec<Problem>> {
    if set.len() > DESCRIPTORS_MAX {
        return Err(vec![Problem::Large]);
    }
    let mut reader = Reader::default();
    if let Err(malformed) = reader.declare(set) {
        return Err(vec![malformed.into()]);
    }
    if reader.problems.is_empty() && reader.files == 0 {
        reader.problems.push(Problem::Empty);
    }
    if reader.problems.is_empty()
        && let Err(malformed) = reader.define()
    {
        reader.problems.push(malformed.into());
    }
    match reader.problems.is_empty() {
        true => Ok(reader.schema),
        false => Err(reader.problems),
    }
}

#[derive(Default)]
struct Reader<'b> {
    schema: Schema,
    problems: Vec<Problem>,
    files: usize,
    fields: usize,
    messages: Vec<Raw<'b>>,
    services: Vec<(String, &'b [u8])>,
}

/// A message that was named and not read yet.
struct Raw<'b> {
    id: MessageId,
    name: String,
    bytes: &'b [u8],
    /// What holds for fields that say nothing of it.
    presence: bool,
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn under(scope: &str, name: &str) -> String {
    match scope.is_empty() {
        true => name.to_owned(),
        false => format!("{scope}.{name}"),
    }
}

/// The last record of this number that holds bytes.
fn bytes_of(message: &[u8], wanted: u32) -> Result<Option<&[u8]>, Malformed> {
    let (mut records, mut found) = (Records::new(message), None);
    while let Some((number, value)) = records.read()? {
        if let (true, Value::Bytes(bytes)) = (number == wanted, value) {
            found = Some(bytes);
        }
    }
    Ok(found)
}

fn text_of(message: &[u8], wanted: u32) -> Result<String, Malformed> {
    Ok(bytes_of(message, wanted)?.map(text).unwrap_or_default())
}

fn varint_of(message: &[u8], wanted: u32) -> Result<Option<u64>, Malformed> {
    let (mut records, mut found) = (Records::new(message), None);
    while let Some((number, value)) = records.read()? {
        if let (true, Value::Varint(value)) = (number == wanted, value) {
            found = Some(value);
        }
    }
    Ok(found)
}

impl<'b> Reader<'b> {
    /// First pass: every type and service has a name and a place.
    fn declare(&mut self, set: &'b [u8]) -> Result<(), Malformed> {
        let (mut files, mut names) = (Records::new(set), HashSet::new());
        while let Some((number, value)) = files.read()? {
            let (1, Value::Bytes(file)) = (number, value) else {
                continue;
            };
            self.files += 1;
            // The same file once more says nothing new: sets are put together of several.
            if let Some(name) = bytes_of(file, 1)?
                && !names.insert(name)
            {
                continue;
            }
            self.declare_file(file)?;
        }
        Ok(())
    }

    fn declare_file(&mut self, file: &'b [u8]) -> Result<(), Malformed> {
        let package = text_of(file, 2)?;
        let presence = match text_of(file, 12)?.as_str() {
            "proto3" => false,
            "editions" => presence_of(bytes_of(file, 8)?, 50)?.unwrap_or(true),
            _ => true,
        };
        let mut records = Records::new(file);
        while let Some((number, value)) = records.read()? {
            match (number, value) {
                (4, Value::Bytes(bytes)) => self.declare_message(&package, bytes, presence, 0)?,
                (5, Value::Bytes(bytes)) => self.declare_enum(&package, bytes)?,
                (6, Value::Bytes(bytes)) => {
                    let name = under(&package, &text_of(bytes, 1)?);
                    self.services.push((name, bytes));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn add(&mut self, name: &str, kind: Type) {
        if self.schema.types.len() >= TYPES_MAX {
            if !self.problems.contains(&Problem::Many) {
                self.problems.push(Problem::Many);
            }
        } else if self.schema.types.insert(name.into(), kind).is_some() {
            self.problem(Problem::Twice(name.into()));
        }
    }

    fn problem(&mut self, problem: Problem) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        }
    }

    fn declare_message(
        &mut self,
        scope: &str,
        bytes: &'b [u8],
        presence: bool,
        depth: usize,
    ) -> Result<(), Malformed> {
        let name = under(scope, &text_of(bytes, 1)?);
        if depth > NESTED_MAX {
            self.problem(Problem::Deep(name));
            return Ok(());
        }
        let options = bytes_of(bytes, 7)?;
        let id = self.schema.messages.len();
        self.add(&name, Type::Message(id));
        let presence = presence_of(options, 12)?.unwrap_or(presence);
        self.schema.messages.push(Message {
            name: name.as_str().into(),
            shape: Shape::of(&name),
            fields: Vec::new(),
            names: HashMap::new(),
            is_map_entry: varint_of(options.unwrap_or_default(), 7)? == Some(1),
        });
        self.messages.push(Raw {
            id,
            name: name.clone(),
            bytes,
            presence,
        });
        let mut records = Records::new(bytes);
        while let Some((number, value)) = records.read()? {
            match (number, value) {
                (3, Value::Bytes(bytes)) => {
                    self.declare_message(&name, bytes, presence, depth + 1)?;
                }
                (4, Value::Bytes(bytes)) => self.declare_enum(&name, bytes)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn declare_enum(&mut self, scope: &str, bytes: &'b [u8]) -> Result<(), Malformed> {
        let name = under(scope, &text_of(bytes, 1)?);
        let id = self.schema.enums.len();
        self.add(&name, Type::Enum(id));
        let (mut records, mut values) = (Records::new(bytes), Vec::new());
        while let Some((number, value)) = records.read()? {
            if let (2, Value::Bytes(value)) = (number, value) {
                let number = varint_of(value, 2)?.unwrap_or_default() as i32;
                values.push((text_of(value, 1)?.into(), number));
            }
        }
        self.schema.enums.push(Enum {
            is_null: name == "google.protobuf.NullValue",
            name: name.into(),
            values,
        });
        Ok(())
    }

    /// Second pass: fields and methods, whose types have places by now.
    fn define(&mut self) -> Result<(), Malformed> {
        for raw in std::mem::take(&mut self.messages) {
            self.define_message(&raw)?;
            if self.fields > FIELDS_MAX {
                self.problem(Problem::Many);
                return Ok(());
            }
        }
        for (name, bytes) in std::mem::take(&mut self.services) {
            let (mut records, mut methods) = (Records::new(bytes), Vec::new());
            while let Some((number, value)) = records.read()? {
                if let (2, Value::Bytes(bytes)) = (number, value)
                    && let Some(method) = self.method(&name, bytes)?
                {
                    methods.push(method);
                }
            }
            let name = name.into();
            self.schema.services.push(Service { name, methods });
        }
        Ok(())
    }

    fn define_message(&mut self, raw: &Raw<'_>) -> Result<(), Malformed> {
        let (mut records, mut fields) = (Records::new(raw.bytes), Vec::new());
        while let Some((number, value)) = records.read()? {
            if let (2, Value::Bytes(bytes)) = (number, value)
                && let Some(field) = self.field(raw, bytes)?
            {
                fields.push(field);
            }
        }
        self.fields += fields.len();
        fields.sort_by_key(|field| field.number);
        let is_twice = |pair: &[Field]| matches!(pair, [a, b] if a.number == b.number);
        if fields.windows(2).any(is_twice) {
            self.problem(Problem::Twice(format!("a field number of {}", raw.name)));
        }
        let mut names = HashMap::new();
        for (place, field) in fields.iter().enumerate() {
            names.insert(field.json.clone(), place);
        }
        for (place, field) in fields.iter().enumerate() {
            names.insert(field.name.clone(), place);
        }
        if let Some(message) = self.schema.messages.get_mut(raw.id) {
            message.fields = fields;
            message.names = names;
        }
        Ok(())
    }

    fn field(&mut self, of: &Raw<'_>, bytes: &[u8]) -> Result<Option<Field>, Malformed> {
        let name = text_of(bytes, 1)?;
        let full = under(&of.name, &name);
        let number = varint_of(bytes, 3)?.unwrap_or_default();
        let options = bytes_of(bytes, 8)?.unwrap_or_default();
        let features = bytes_of(options, 21)?.unwrap_or_default();
        let delimited = varint_of(features, 5)? == Some(2);
        let type_name = text_of(bytes, 6)?;
        let absolute = type_name.strip_prefix('.').unwrap_or_default();
        let found = self.schema.types.get(absolute).copied();
        let kind = match (varint_of(bytes, 5)?.unwrap_or_default(), found) {
            (1, _) => Kind::Double,
            (2, _) => Kind::Float,
            (3, _) => Kind::Int64,
            (4, _) => Kind::Uint64,
            (5, _) => Kind::Int32,
            (6, _) => Kind::Fixed64,
            (7, _) => Kind::Fixed32,
            (8, _) => Kind::Bool,
            (9, _) => Kind::String,
            (11, Some(Type::Message(id))) if !delimited => Kind::Message(id),
            (10 | 11, Some(Type::Message(_))) => {
                self.problem(Problem::Group(full));
                return Ok(None);
            }
            (12, _) => Kind::Bytes,
            (13, _) => Kind::Uint32,
            (14, Some(Type::Enum(id))) => Kind::Enum(id),
            (15, _) => Kind::Sfixed32,
            (16, _) => Kind::Sfixed64,
            (17, _) => Kind::Sint32,
            (18, _) => Kind::Sint64,
            _ => {
                let name = type_name.trim_start_matches('.').to_owned();
                self.problem(Problem::Missing { of: full, name });
                return Ok(None);
            }
        };
        let repeated = varint_of(bytes, 4)? == Some(3);
        let oneof = varint_of(bytes, 9)?.and_then(|index| u32::try_from(index).ok());
        let is_message = matches!(kind, Kind::Message(_));
        let explicit = presence_of(Some(options), 21)?.unwrap_or(of.presence);
        let json = bytes_of(bytes, 10)?.map(text);
        Ok(Some(Field {
            number: u32::try_from(number).unwrap_or_default(),
            json: json.unwrap_or_else(|| crate::text::camel(&name)).into(),
            name: name.into(),
            kind,
            repeated,
            presence: !repeated && (is_message || oneof.is_some() || explicit),
            oneof,
        }))
    }

    fn method(&mut self, service: &str, bytes: &[u8]) -> Result<Option<Method>, Malformed> {
        let name = text_of(bytes, 1)?;
        let mut types = [None, None];
        for (place, number) in types.iter_mut().zip([2, 3]) {
            let wanted = text_of(bytes, number)?;
            let wanted = wanted.trim_start_matches('.');
            *place = self.schema.message_named(wanted);
            if place.is_none() {
                self.problem(Problem::Missing {
                    of: under(service, &name),
                    name: wanted.to_owned(),
                });
            }
        }
        let [Some(input), Some(output)] = types else {
            return Ok(None);
        };
        let options = bytes_of(bytes, 4)?.unwrap_or_default();
        let mut rules = Vec::new();
        if let Some(rule) = bytes_of(options, HTTP)? {
            read_rule(rule, &mut rules, 0)?;
        }
        Ok(Some(Method {
            name: name.into(),
            input,
            output,
            client_streaming: varint_of(bytes, 5)? == Some(1),
            server_streaming: varint_of(bytes, 6)? == Some(1),
            rules,
        }))
    }
}

/// `google.api.HttpRule`, and those beside it.
fn read_rule(bytes: &[u8], rules: &mut Vec<HttpRule>, depth: usize) -> Result<(), Malformed> {
    let place = rules.len();
    rules.push(HttpRule::default());
    let mut rule = HttpRule::default();
    let mut records = Records::new(bytes);
    while let Some((number, value)) = records.read()? {
        let Value::Bytes(bytes) = value else {
            continue;
        };
        let method = match number {
            2 => "GET",
            3 => "PUT",
            4 => "POST",
            5 => "DELETE",
            6 => "PATCH",
            7 => {
                rule.body = text(bytes);
                continue;
            }
            8 => {
                rule.method = text_of(bytes, 1)?;
                rule.path = text_of(bytes, 2)?;
                continue;
            }
            // Nothing may be nested deeper.
            11 if depth == 0 && rules.len() < RULES_MAX => {
                read_rule(bytes, rules, depth + 1)?;
                continue;
            }
            12 => {
                rule.response_body = text(bytes);
                continue;
            }
            _ => continue,
        };
        rule.method = method.to_owned();
        rule.path = text(bytes);
    }
    if let Some(first) = rules.get_mut(place) {
        *first = rule;
    }
    Ok(())
}

/// `features.field_presence` of options: EXPLICIT and LEGACY_REQUIRED are presence, IMPLICIT is none.
fn presence_of(options: Option<&[u8]>, features: u32) -> Result<Option<bool>, Malformed> {
    let Some(features) = bytes_of(options.unwrap_or_default(), features)? else {
        return Ok(None);
    };
    Ok(varint_of(features, 1)?.map(|presence| presence != 2))
}

impl Shape {
    fn of(name: &str) -> Self {
        match name {
            "google.protobuf.Timestamp" => Self::Timestamp,
            "google.protobuf.Duration" => Self::Duration,
            "google.protobuf.FieldMask" => Self::FieldMask,
            "google.protobuf.Struct" => Self::Struct,
            "google.protobuf.Value" => Self::Value,
            "google.protobuf.ListValue" => Self::ListValue,
            "google.protobuf.Any" => Self::Any,
            "google.api.HttpBody" => Self::HttpBody,
            "google.protobuf.DoubleValue"
            | "google.protobuf.FloatValue"
            | "google.protobuf.Int64Value"
            | "google.protobuf.UInt64Value"
            | "google.protobuf.Int32Value"
            | "google.protobuf.UInt32Value"
            | "google.protobuf.BoolValue"
            | "google.protobuf.StringValue"
            | "google.protobuf.BytesValue" => Self::Wrapper,
            _ => Self::Object,
        }
    }
}

/// Extension `google.api.http` of MethodOptions.
const HTTP: u32 = 72_295_728;
const RULES_MAX: usize = 64;
const PROBLEMS_MAX: usize = 100;
