//! Wire format into JSON, by the schema of a message. What stands in it out of order, or in pieces, is put together.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::DEPTH_MAX;
use crate::options::Print;
use crate::schema::{Field, Kind, Message, MessageId, Schema, Shape};
use crate::status::Status;
use crate::text;
use crate::wire::{Malformed, Records, Value, fixed, varint};

/// Why a message has no JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unwritable {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    #[error("a message nested too deep")]
    Deep,
    #[error("a timestamp or duration out of range")]
    Range,
    #[error("a type that is not in the schema")]
    Type,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("JSON of more than {0} bytes")]
pub struct TooLarge(usize);

/// Appends a message as JSON to `out`, which it lets grow to `max` bytes.
///
/// # Errors
/// [`Unwritable`]; `out` then ends anywhere.
pub fn write_message(
    schema: &Schema,
    print: Print,
    id: MessageId,
    message: &[u8],
    max: usize,
    out: &mut Vec<u8>,
) -> Result<(), Unwritable> {
    let mut writer = Writer::new(schema, print, max, out);
    writer.message(id, message)?;
    writer.check()
}

/// `google.rpc.Status`. Details whose type the schema lacks keep their bytes, in base64.
///
/// # Errors
/// [`Unwritable`].
pub fn write_status(
    schema: &Schema,
    print: Print,
    status: &Status,
    max: usize,
    out: &mut Vec<u8>,
) -> Result<(), Unwritable> {
    let mut writer = Writer::new(schema, print, max, out);
    let mut first = true;
    writer.out.push(b'{');
    writer.level += 1;
    writer.key(&mut first, "code");
    writer.raw(&status.code.to_string());
    if !status.message.is_empty() || print.always_print_primitive_fields {
        writer.key(&mut first, "message");
        writer.string(status.message.as_bytes());
    }
    if !status.details.is_empty() || print.always_print_primitive_fields {
        writer.key(&mut first, "details");
        writer.list(&status.details, |writer, any| writer.any(any))?;
    }
    writer.close(first, b'}');
    writer.check()
}

struct Writer<'s, 'o> {
    schema: &'s Schema,
    print: Print,
    max: usize,
    out: &'o mut Vec<u8>,
    depth: usize,
    /// Of indentation.
    level: usize,
}

/// Where the records of a message begin, by number.
struct Index(Vec<(u32, u32)>);

impl Index {
    fn new(message: &[u8]) -> Result<Self, Malformed> {
        let (mut records, mut index) = (Records::new(message), Vec::new());
        let mut sorted = true;
        loop {
            let at = message.len() - records.left();
            let Some((number, _)) = records.read()? else {
                break;
            };
            sorted &= index.last().is_none_or(|(last, _)| *last <= number);
            index.push((number, u32::try_from(at).map_err(|_| Malformed::Short)?));
        }
        if !sorted {
            index.sort_by_key(|(number, _)| *number); // stable
        }
        Ok(Self(index))
    }

    fn of(&self, number: u32) -> &[(u32, u32)] {
        let start = self.0.partition_point(|(other, _)| *other < number);
        let rest = self.0.get(start..).unwrap_or_default();
        let len = rest.partition_point(|(other, _)| *other == number);
        rest.get(..len).unwrap_or_default()
    }

    fn last(&self, number: u32) -> Option<u32> {
        self.of(number).last().map(|(_, at)| *at)
    }
}

fn record(message: &[u8], at: u32) -> Result<Value<'_>, Malformed> {
    let rest = message.get(at as usize..).unwrap_or_default();
    let read = Records::new(rest).read()?;
    read.map(|(_, value)| value).ok_or(Malformed::Short)
}

impl<'s, 'o> Writer<'s, 'o> {
    fn new(schema: &'s Schema, print: Print, max: usize, out: &'o mut Vec<u8>) -> Self {
        Self {
            schema,
            print,
            max,
            out,
            depth: 0,
            level: 0,
        }
    }

    fn check(&self) -> Result<(), Unwritable> {
        match self.out.len() > self.max {
            true => Err(TooLarge(self.max).into()),
            false => Ok(()),
        }
    }

    fn message(&mut self, id: MessageId, bytes: &[u8]) -> Result<(), Unwritable> {
        let message = self.schema.message(id).ok_or(Unwritable::Type)?;
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(Unwritable::Deep);
        }
        match message.shape {
            Shape::Object | Shape::HttpBody => self.object(message, None, bytes)?,
            Shape::Wrapper => {
                if let Some(boxed) = message.numbered(1) {
                    let index = Index::new(bytes)?;
                    match index.of(1) {
                        [] => self.default(boxed),
                        found => self.field(boxed, bytes, found)?,
                    }
                }
            }
            Shape::Timestamp | Shape::Duration => {
                let (seconds, nanos) = seconds_and_nanos(bytes)?;
                let text = match message.shape {
                    Shape::Timestamp => text::format_timestamp(seconds, nanos),
                    _ => text::format_duration(seconds, nanos),
                };
                self.string(text.ok_or(Unwritable::Range)?.as_bytes());
            }
            Shape::FieldMask => {
                let paths = all_bytes(bytes, 1)?;
                let paths = paths.iter().map(|path| String::from_utf8_lossy(path));
                let paths: Vec<String> = paths.map(|path| text::camel(&path)).collect();
                self.string(paths.join(",").as_bytes());
            }
            Shape::Struct => self.structure(bytes)?,
            Shape::Value => self.value(bytes)?,
            Shape::ListValue => {
                let values = all_bytes(bytes, 1)?;
                self.list(&values, |writer, value| writer.nested(value, Self::value))?;
            }
            Shape::Any => self.any(bytes)?,
        }
        self.depth -= 1;
        Ok(())
    }

    fn nested(
        &mut self,
        bytes: &[u8],
        write: impl FnOnce(&mut Self, &[u8]) -> Result<(), Unwritable>,
    ) -> Result<(), Unwritable> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(Unwritable::Deep);
        }
        write(self, bytes)?;
        self.depth -= 1;
        Ok(())
    }

    fn object(
        &mut self,
        message: &Message,
        url: Option<&[u8]>,
        bytes: &[u8],
    ) -> Result<(), Unwritable> {
        let index = Index::new(bytes)?;
        let mut first = true;
        self.out.push(b'{');
        self.level += 1;
        if let Some(url) = url {
            self.key(&mut first, "@type");
            self.string(url);
        }
        for field in &message.fields {
            let found = index.of(field.number);
            let is_there = match found.last() {
                None => false,
                Some((_, at)) => self.is_there(message, field, bytes, &index, *at)?,
            };
            let name = match self.print.preserve_proto_field_names {
                true => &field.name,
                false => &field.json,
            };
            if is_there {
                self.key(&mut first, name);
                self.field(field, bytes, found)?;
                self.check()?;
            } else if self.print.always_print_primitive_fields && !field.presence {
                self.key(&mut first, name);
                self.default(field);
            }
        }
        self.close(first, b'}');
        self.check()
    }

    /// Whether what the record at `at` says stands: of a oneof the last does, and a default that is no presence doesn't.
    fn is_there(
        &self,
        message: &Message,
        field: &Field,
        bytes: &[u8],
        index: &Index,
        at: u32,
    ) -> Result<bool, Malformed> {
        if field.oneof.is_some() {
            let others = message
                .fields
                .iter()
                .filter(|other| other.oneof == field.oneof);
            let mut ends = others.filter_map(|other| index.last(other.number));
            return Ok(ends.all(|end| end <= at));
        }
        if field.repeated || field.presence {
            return Ok(true);
        }
        Ok(match record(bytes, at)? {
            Value::Varint(value) | Value::Fixed64(value) => value != 0,
            Value::Fixed32(value) => value != 0,
            Value::Bytes(bytes) => !bytes.is_empty(),
        })
    }

    /// The value of a field, from its records.
    fn field(
        &mut self,
        field: &Field,
        bytes: &[u8],
        found: &[(u32, u32)],
    ) -> Result<(), Unwritable> {
        if let Some((key, value)) = self.schema.map_of(field) {
            return self.map(key, value, bytes, found);
        }
        if field.repeated {
            return self.array(field, bytes, found);
        }
        if let Kind::Message(id) = field.kind {
            // In pieces it is what all of them say, one after the other.
            let mut whole = Vec::new();
            for (_, at) in found {
                if let Value::Bytes(piece) = record(bytes, *at)? {
                    if found.len() == 1 {
                        return self.message(id, piece);
                    }
                    whole.extend_from_slice(piece);
                }
            }
            return self.message(id, &whole);
        }
        for (_, at) in found.iter().rev() {
            let value = record(bytes, *at)?;
            if self.scalar(field.kind, value) {
                return Ok(());
            }
            // Packed although there is to be one only: the last counts.
            if let (Value::Bytes(packed), true) = (value, field.kind.is_packable()) {
                let (mut rest, mut last) = (packed, None);
                while !rest.is_empty() {
                    last = Some(unpack(field.kind, &mut rest)?);
                }
                if last.is_some_and(|last| self.scalar(field.kind, last)) {
                    return Ok(());
                }
            }
        }
        self.default(field);
        Ok(())
    }

    fn array(
        &mut self,
        field: &Field,
        bytes: &[u8],
        found: &[(u32, u32)],
    ) -> Result<(), Unwritable> {
        let mut first = true;
        self.out.push(b'[');
        self.level += 1;
        for (_, at) in found {
            match (field.kind, record(bytes, *at)?) {
                (Kind::Message(id), Value::Bytes(piece)) => {
                    self.item(&mut first);
                    self.message(id, piece)?;
                }
                (Kind::Message(_), _) => {}
                (kind, Value::Bytes(packed)) if kind.is_packable() => {
                    let mut rest = packed;
                    while !rest.is_empty() {
                        let value = unpack(kind, &mut rest)?;
                        self.item(&mut first);
                        self.scalar(kind, value);
                        self.check()?;
                    }
                }
                (kind, value) => {
                    let (len, was_first) = (self.out.len(), first);
                    self.item(&mut first);
                    if !self.scalar(kind, value) {
                        self.out.truncate(len);
                        first = was_first;
                    }
                }
            }
            self.check()?;
        }
        self.close(first, b']');
        Ok(())
    }

    fn map(
        &mut self,
        key: &Field,
        value: &Field,
        bytes: &[u8],
        found: &[(u32, u32)],
    ) -> Result<(), Unwritable> {
        let mut entries: BTreeMap<Vec<u8>, (Index, &[u8])> = BTreeMap::new();
        for (_, at) in found {
            let Value::Bytes(entry) = record(bytes, *at)? else {
                continue;
            };
            let index = Index::new(entry)?;
            let mut name = Vec::new();
            let mut writer = Writer::new(self.schema, self.print, self.max, &mut name);
            match index.of(1) {
                [] => writer.default(key),
                found => writer.field(key, entry, found)?,
            }
            entries.insert(name, (index, entry));
        }
        let mut first = true;
        self.out.push(b'{');
        self.level += 1;
        for (name, (index, entry)) in entries {
            self.item(&mut first);
            // Keys are strings, whatever they are in the proto.
            match name.first() {
                Some(b'"') => self.out.extend_from_slice(&name),
                _ => self.string(&name),
            }
            self.colon();
            match index.of(2) {
                [] => match value.kind {
                    Kind::Message(id) => self.message(id, b"")?,
                    _ => self.default(value),
                },
                found => self.field(value, entry, found)?,
            }
            self.check()?;
        }
        self.close(first, b'}');
        Ok(())
    }

    /// False where the value is of another wire type, and nothing was written.
    fn scalar(&mut self, kind: Kind, value: Value<'_>) -> bool {
        match (kind, value) {
            (Kind::Int32, Value::Varint(v)) => self.raw(&(v as i32).to_string()),
            (Kind::Sfixed32, Value::Fixed32(v)) => self.raw(&(v as i32).to_string()),
            (Kind::Uint32, Value::Varint(v)) => self.raw(&(v as u32).to_string()),
            (Kind::Fixed32, Value::Fixed32(v)) => self.raw(&v.to_string()),
            (Kind::Sint32, Value::Varint(v)) => {
                let v = v as u32;
                self.raw(&((v >> 1) as i32 ^ -((v & 1) as i32)).to_string());
            }
            (Kind::Int64, Value::Varint(v)) | (Kind::Sfixed64, Value::Fixed64(v)) => {
                self.raw(&format!("\"{}\"", v as i64));
            }
            (Kind::Uint64, Value::Varint(v)) | (Kind::Fixed64, Value::Fixed64(v)) => {
                self.raw(&format!("\"{v}\""));
            }
            (Kind::Sint64, Value::Varint(v)) => {
                self.raw(&format!("\"{}\"", (v >> 1) as i64 ^ -((v & 1) as i64)));
            }
            (Kind::Double, Value::Fixed64(bits)) => self.double(f64::from_bits(bits)),
            (Kind::Float, Value::Fixed32(bits)) => {
                let value = f32::from_bits(bits);
                match value.is_finite() {
                    true if is_plain(f64::from(value)) => self.raw(&value.to_string()),
                    true => self.raw(&format!("{value:e}")),
                    false => self.double(f64::from(value)),
                }
            }
            (Kind::Bool, Value::Varint(v)) => self.raw(if v != 0 { "true" } else { "false" }),
            (Kind::String, Value::Bytes(bytes)) => self.string(bytes),
            (Kind::Bytes, Value::Bytes(bytes)) => {
                self.raw("\"");
                self.raw(&STANDARD.encode(bytes));
                self.raw("\"");
            }
            (Kind::Enum(id), Value::Varint(v)) => {
                let number = v as i32;
                let known = self.schema.enumeration(id);
                let name = known.and_then(|known| known.name_of(number));
                match name {
                    _ if known.is_some_and(|known| known.is_null) => self.raw("null"),
                    Some(name) if !self.print.always_print_enums_as_ints => {
                        self.string(name.as_bytes());
                    }
                    _ => self.raw(&number.to_string()),
                }
            }
            _ => return false,
        }
        true
    }

    fn double(&mut self, value: f64) {
        match value {
            _ if value.is_nan() => self.raw("\"NaN\""),
            f64::INFINITY => self.raw("\"Infinity\""),
            f64::NEG_INFINITY => self.raw("\"-Infinity\""),
            _ if is_plain(value) => self.raw(&value.to_string()),
            _ => self.raw(&format!("{value:e}")),
        }
    }

    /// What a field is that is not there.
    fn default(&mut self, field: &Field) {
        match field.kind {
            _ if self.schema.map_of(field).is_some() => self.raw("{}"),
            _ if field.repeated => self.raw("[]"),
            Kind::Message(_) => self.raw("{}"),
            Kind::String | Kind::Bytes => self.raw("\"\""),
            Kind::Double => self.raw("0"),
            Kind::Float => self.raw("0"),
            Kind::Sfixed32 | Kind::Fixed32 => drop(self.scalar(field.kind, Value::Fixed32(0))),
            Kind::Sfixed64 | Kind::Fixed64 => drop(self.scalar(field.kind, Value::Fixed64(0))),
            // proto2's first value may be another than 0.
            Kind::Enum(id) => {
                let first = self.schema.enumeration(id).and_then(|e| e.values.first());
                let number = first.map_or(0, |(_, number)| *number);
                self.scalar(field.kind, Value::Varint(i64::from(number) as u64));
            }
            kind => drop(self.scalar(kind, Value::Varint(0))),
        }
    }

    fn structure(&mut self, bytes: &[u8]) -> Result<(), Unwritable> {
        let mut fields: BTreeMap<Vec<u8>, &[u8]> = BTreeMap::new();
        for entry in all_bytes(bytes, 1)? {
            let name = all_bytes(entry, 1)?.last().copied().unwrap_or_default();
            let value = all_bytes(entry, 2)?.last().copied().unwrap_or_default();
            fields.insert(name.to_vec(), value);
        }
        let mut first = true;
        self.out.push(b'{');
        self.level += 1;
        for (name, value) in fields {
            self.item(&mut first);
            self.string(&name);
            self.colon();
            self.nested(value, Self::value)?;
            self.check()?;
        }
        self.close(first, b'}');
        Ok(())
    }

    /// `google.protobuf.Value`: its last record counts.
    fn value(&mut self, bytes: &[u8]) -> Result<(), Unwritable> {
        let (mut records, mut last) = (Records::new(bytes), None);
        while let Some(record) = records.read()? {
            last = Some(record);
        }
        match last {
            Some((2, Value::Fixed64(bits))) => self.double(f64::from_bits(bits)),
            Some((3, Value::Bytes(text))) => self.string(text),
            Some((4, Value::Varint(value))) => {
                self.raw(if value != 0 { "true" } else { "false" });
            }
            Some((5, Value::Bytes(fields))) => self.nested(fields, Self::structure)?,
            Some((6, Value::Bytes(list))) => {
                let values = all_bytes(list, 1)?;
                self.list(&values, |writer, value| writer.nested(value, Self::value))?;
            }
            _ => self.raw("null"),
        }
        Ok(())
    }

    fn any(&mut self, bytes: &[u8]) -> Result<(), Unwritable> {
        let url = all_bytes(bytes, 1)?.last().copied().unwrap_or_default();
        let value = all_bytes(bytes, 2)?.last().copied().unwrap_or_default();
        if url.is_empty() && value.is_empty() {
            self.raw("{}");
            return Ok(());
        }
        let name = url.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let name = std::str::from_utf8(name).unwrap_or_default();
        let id = self.schema.message_named(name);
        let known = id.and_then(|id| self.schema.message(id));
        if let Some(message) = known.filter(|message| message.shape == Shape::Object) {
            return self.nested(value, |writer, value| {
                writer.object(message, Some(url), value)
            });
        }
        let mut first = true;
        self.out.push(b'{');
        self.level += 1;
        self.key(&mut first, "@type");
        self.string(url);
        self.key(&mut first, "value");
        match id {
            Some(id) => self.message(id, value)?,
            None => drop(self.scalar(Kind::Bytes, Value::Bytes(value))),
        }
        self.close(first, b'}');
        Ok(())
    }

    fn list<T: AsRef<[u8]>>(
        &mut self,
        items: &[T],
        mut write: impl FnMut(&mut Self, &[u8]) -> Result<(), Unwritable>,
    ) -> Result<(), Unwritable> {
        let mut first = true;
        self.out.push(b'[');
        self.level += 1;
        for item in items {
            self.item(&mut first);
            write(self, item.as_ref())?;
            self.check()?;
        }
        self.close(first, b']');
        Ok(())
    }

    fn raw(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }

    fn line(&mut self) {
        if self.print.add_whitespace {
            self.out.push(b'\n');
            self.out.resize(self.out.len() + self.level, b' ');
        }
    }

    fn item(&mut self, first: &mut bool) {
        if !std::mem::take(first) {
            self.out.push(b',');
        }
        self.line();
    }

    fn key(&mut self, first: &mut bool, name: &str) {
        self.item(first);
        self.string(name.as_bytes());
        self.colon();
    }

    fn colon(&mut self) {
        self.raw(if self.print.add_whitespace { ": " } else { ":" });
    }

    fn close(&mut self, empty: bool, end: u8) {
        self.level -= 1;
        if !empty {
            self.line();
        }
        self.out.push(end);
    }

    fn string(&mut self, bytes: &[u8]) {
        self.out.push(b'"');
        for char in String::from_utf8_lossy(bytes).chars() {
            match char {
                '"' => self.raw("\\\""),
                '\\' => self.raw("\\\\"),
                '\n' => self.raw("\\n"),
                '\r' => self.raw("\\r"),
                '\t' => self.raw("\\t"),
                // What a page could take for markup, as protobuf does.
                '\0'..' ' | '<' | '>' | '\u{7f}' | '\u{2028}' | '\u{2029}' => {
                    self.raw(&format!("\\u{:04x}", u32::from(char)));
                }
                _ => self.raw(char.encode_utf8(&mut [0; 4])),
            }
        }
        self.out.push(b'"');
    }
}

/// Written out, and not with an exponent.
fn is_plain(value: f64) -> bool {
    value == 0.0 || (1e-5..1e16).contains(&value.abs())
}

fn unpack<'b>(kind: Kind, rest: &mut &'b [u8]) -> Result<Value<'b>, Malformed> {
    Ok(match kind {
        Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => {
            Value::Fixed64(u64::from_le_bytes(fixed(rest)?))
        }
        Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => {
            Value::Fixed32(u32::from_le_bytes(fixed(rest)?))
        }
        _ => Value::Varint(varint(rest)?),
    })
}

fn all_bytes(message: &[u8], wanted: u32) -> Result<Vec<&[u8]>, Malformed> {
    let (mut records, mut found) = (Records::new(message), Vec::new());
    while let Some((number, value)) = records.read()? {
        if let (true, Value::Bytes(bytes)) = (number == wanted, value) {
            found.push(bytes);
        }
    }
    Ok(found)
}

fn seconds_and_nanos(message: &[u8]) -> Result<(i64, i64), Malformed> {
    let (mut records, mut seconds, mut nanos) = (Records::new(message), 0, 0);
    while let Some((number, value)) = records.read()? {
        match (number, value) {
            (1, Value::Varint(value)) => seconds = value as i64,
            (2, Value::Varint(value)) => nanos = i64::from(value as i32),
            _ => {}
        }
    }
    Ok((seconds, nanos))
}
