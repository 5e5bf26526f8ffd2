//! Messages, enums and services of a descriptor set, as far as JSON and HTTP bindings need them.

mod read;

use std::collections::HashMap;

pub use self::read::{DESCRIPTORS_MAX, Problem};

/// Places in [`Schema`]'s tables.
pub type MessageId = usize;
pub type EnumId = usize;

#[derive(Debug, Default)]
pub struct Schema {
    messages: Vec<Message>,
    enums: Vec<Enum>,
    services: Vec<Service>,
    types: HashMap<Box<str>, Type>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Message(MessageId),
    Enum(EnumId),
}

#[derive(Debug)]
pub struct Message {
    /// With its package, without a leading dot.
    pub name: Box<str>,
    pub shape: Shape,
    /// By number.
    pub fields: Vec<Field>,
    /// By name in the proto and in JSON.
    names: HashMap<Box<str>, usize>,
    pub is_map_entry: bool,
}

/// What a message is in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Object,
    Timestamp,
    Duration,
    FieldMask,
    /// A scalar in a box.
    Wrapper,
    Struct,
    Value,
    ListValue,
    Any,
    /// `google.api.HttpBody`: no JSON at all where it stands for the whole body.
    HttpBody,
}

#[derive(Debug)]
pub struct Field {
    pub number: u32,
    pub name: Box<str>,
    pub json: Box<str>,
    pub kind: Kind,
    pub repeated: bool,
    /// Absent and default are two things.
    pub presence: bool,
    /// Of several in this group one at most is there.
    pub oneof: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Double,
    Float,
    Int32,
    Int64,
    Uint32,
    Uint64,
    Sint32,
    Sint64,
    Fixed32,
    Fixed64,
    Sfixed32,
    Sfixed64,
    Bool,
    String,
    Bytes,
    Enum(EnumId),
    Message(MessageId),
}

impl Kind {
    /// Whether several of them may stand in one record.
    pub fn is_packable(self) -> bool {
        !matches!(self, Self::String | Self::Bytes | Self::Message(_))
    }
}

#[derive(Debug)]
pub struct Enum {
    pub name: Box<str>,
    /// In the order of the file.
    pub values: Vec<(Box<str>, i32)>,
    pub is_null: bool,
}

impl Enum {
    pub fn name_of(&self, number: i32) -> Option<&str> {
        let mut values = self.values.iter();
        let (name, _) = values.find(|(_, value)| *value == number)?;
        Some(name)
    }

    pub fn number_of(&self, name: &str, any_case: bool) -> Option<i32> {
        let named = |(known, _): &&(Box<str>, i32)| match any_case {
            true => known.eq_ignore_ascii_case(name),
            false => **known == *name,
        };
        let exact = self.values.iter().find(|(known, _)| **known == *name);
        let found = exact.or_else(|| self.values.iter().find(named));
        found.map(|(_, number)| *number)
    }
}

#[derive(Debug)]
pub struct Service {
    /// With its package.
    pub name: Box<str>,
    pub methods: Vec<Method>,
}

#[derive(Debug)]
pub struct Method {
    pub name: Box<str>,
    pub input: MessageId,
    pub output: MessageId,
    pub client_streaming: bool,
    pub server_streaming: bool,
    pub rules: Vec<HttpRule>,
}

/// One binding of `google.api.http`, as it was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpRule {
    /// Upper case; `*` for all of them.
    pub method: String,
    pub path: String,
    /// Empty: none.
    pub body: String,
    pub response_body: String,
}

impl Schema {
    /// # Errors
    /// All problems of the set.
    pub fn read(descriptors: &[u8]) -> Result<Self, Vec<Problem>> {
        read::read(descriptors)
    }

    pub fn message(&self, id: MessageId) -> Option<&Message> {
        self.messages.get(id)
    }

    pub fn enumeration(&self, id: EnumId) -> Option<&Enum> {
        self.enums.get(id)
    }

    pub fn services(&self) -> &[Service] {
        &self.services
    }

    pub fn service(&self, name: &str) -> Option<&Service> {
        self.services.iter().find(|service| *service.name == *name)
    }

    pub fn message_named(&self, name: &str) -> Option<MessageId> {
        match self.types.get(name)? {
            Type::Message(id) => Some(*id),
            Type::Enum(_) => None,
        }
    }

    /// The field that a path of names leads to, from `root` inwards, and those on the way.
    pub fn resolve(
        &self,
        root: MessageId,
        path: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Option<Vec<&Field>> {
        let mut fields: Vec<&Field> = Vec::new();
        let mut message = self.message(root)?;
        for name in path {
            if let Some(last) = fields.last() {
                message = match last.kind {
                    Kind::Message(id) if !last.repeated => self.message(id)?,
                    _ => return None,
                };
            }
            if fields.len() == PATH_MAX {
                return None;
            }
            fields.push(message.named(name.as_ref())?);
        }
        (!fields.is_empty()).then_some(fields)
    }

    /// Whether a field is a map, and the entry's key and value.
    pub fn map_of<'s>(&'s self, field: &Field) -> Option<(&'s Field, &'s Field)> {
        let Kind::Message(id) = field.kind else {
            return None;
        };
        let entry = self.message(id).filter(|entry| entry.is_map_entry)?;
        entry.numbered(1).zip(entry.numbered(2))
    }
}

impl Message {
    pub fn named(&self, name: &str) -> Option<&Field> {
        self.fields.get(*self.names.get(name)?)
    }

    /// Its place among the fields.
    pub fn place(&self, name: &str) -> Option<usize> {
        self.names.get(name).copied()
    }

    pub fn numbered(&self, number: u32) -> Option<&Field> {
        let place = self
            .fields
            .binary_search_by_key(&number, |field| field.number);
        self.fields.get(place.ok()?)
    }
}

/// Names in one path.
const PATH_MAX: usize = 32;
