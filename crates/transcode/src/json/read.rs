//! JSON into wire format, by the schema of a message. Fields that the schema lacks are passed over, as Envoy does.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::DEPTH_MAX;
use super::lexer::{Bad, Lexer, TOO_DEEP, Token};
use crate::schema::{Field, Kind, Message, MessageId, Schema, Shape};
use crate::text;
use crate::wire;

/// Appends the message that `json` is to `out`.
///
/// # Errors
/// [`Bad`]: it is no JSON, or not of this message.
pub fn read_message(
    schema: &Schema,
    any_case: bool,
    id: MessageId,
    json: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), Bad> {
    let mut reader = Reader::try_new(schema, any_case, json)?;
    reader.message(id, out)?;
    reader.json.finish()
}

/// The same for one field of a message.
///
/// # Errors
/// [`Bad`].
pub fn read_field(
    schema: &Schema,
    any_case: bool,
    field: &Field,
    json: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), Bad> {
    let mut reader = Reader::try_new(schema, any_case, json)?;
    reader.field(field, out)?;
    reader.json.finish()
}

/// Several messages, in an array or one after the other; `each` takes them in turn.
///
/// # Errors
/// [`Bad`].
pub fn read_stream<E: From<Bad>>(
    schema: &Schema,
    any_case: bool,
    id: MessageId,
    json: &[u8],
    mut each: impl FnMut(Vec<u8>) -> Result<(), E>,
) -> Result<(), E> {
    let mut reader = Reader::try_new(schema, any_case, json)?;
    let mut one = |reader: &mut Reader<'_, '_>| -> Result<(), E> {
        let mut out = Vec::new();
        reader.message(id, &mut out)?;
        each(out)
    };
    if reader.json.take(b'[') {
        let mut first = true;
        while reader.json.more(&mut first, b']')? {
            one(&mut reader)?;
        }
        return Ok(reader.json.finish()?);
    }
    while reader.json.peek().is_some() {
        one(&mut reader)?;
    }
    Ok(())
}

/// A field's value from a path or query. None: `value` is no such thing, or the field has no such form.
#[must_use]
pub fn put_text(
    schema: &Schema,
    any_case: bool,
    field: &Field,
    value: &str,
    out: &mut Vec<u8>,
) -> Option<()> {
    if let Kind::Message(id) = field.kind {
        let message = schema.message(id)?;
        let shape = message.shape;
        let begun = wire::begin(out, field.number);
        match shape {
            Shape::Wrapper => {
                let boxed = message.numbered(1)?;
                scalar(
                    schema,
                    boxed.kind,
                    &text_token(boxed.kind, value)?,
                    any_case,
                )?
                .put(out, 1);
            }
            Shape::Value => Scalar::Bytes(value.as_bytes().to_vec()).put(out, 3),
            _ => well_known(shape, value, out)?,
        }
        wire::end(out, begun);
        return Some(());
    }
    let token = text_token(field.kind, value)?;
    scalar(schema, field.kind, &token, any_case)?.put(out, field.number);
    Some(())
}

fn text_token(kind: Kind, value: &str) -> Option<Token<'_>> {
    Some(match (kind, value) {
        (Kind::Bool, "true") => Token::Bool(true),
        (Kind::Bool, "false") => Token::Bool(false),
        (Kind::Bool, _) => return None,
        _ => Token::Text(value.into()),
    })
}

struct Reader<'s, 'j> {
    schema: &'s Schema,
    any_case: bool,
    json: Lexer<'j>,
    depth: usize,
    /// `Any` within `Any`: each is looked through for its type first.
    anys: usize,
}

impl<'s, 'j> Reader<'s, 'j> {
    fn try_new(schema: &'s Schema, any_case: bool, json: &'j [u8]) -> Result<Self, Bad> {
        Ok(Self {
            schema,
            any_case,
            json: Lexer::try_new(json)?,
            depth: 0,
            anys: 0,
        })
    }

    fn enter(&mut self) -> Result<(), Bad> {
        self.depth += 1;
        match self.depth > DEPTH_MAX {
            true => self.json.bad(TOO_DEEP),
            false => Ok(()),
        }
    }

    fn message(&mut self, id: MessageId, out: &mut Vec<u8>) -> Result<(), Bad> {
        let Some(message) = self.schema.message(id) else {
            return self.json.bad("a message that is not in the schema");
        };
        self.enter()?;
        match message.shape {
            Shape::Object | Shape::HttpBody => self.object(message, false, out)?,
            Shape::Wrapper => {
                if let Some(boxed) = message.numbered(1) {
                    self.value(boxed, out)?;
                }
            }
            Shape::Timestamp | Shape::Duration | Shape::FieldMask => {
                let value = self.json.string()?;
                if well_known(message.shape, &value, out).is_none() {
                    return self.json.bad(format!("no {}", message.name));
                }
            }
            Shape::Struct => self.structure(out)?,
            Shape::Value => self.any_value(out)?,
            Shape::ListValue => self.list(out)?,
            Shape::Any => self.any(out)?,
        }
        self.depth -= 1;
        Ok(())
    }

    fn object(&mut self, message: &Message, typed: bool, out: &mut Vec<u8>) -> Result<(), Bad> {
        self.json.expect(b'{')?;
        let mut seen = vec![0u64; message.fields.len() / 64 + 1];
        let mut oneofs: Vec<u32> = Vec::new();
        let mut first = true;
        while let Some(key) = self.json.key(&mut first)? {
            let place = match typed && key == "@type" {
                true => None,
                false => message.place(&key),
            };
            let Some((place, field)) = place.zip(place.and_then(|p| message.fields.get(p))) else {
                self.json.skip()?;
                continue;
            };
            if let Some(bits) = seen.get_mut(place / 64) {
                if *bits >> (place % 64) & 1 == 1 {
                    return self.json.bad(format!("`{key}` stands twice"));
                }
                *bits |= 1 << (place % 64);
            }
            let wrote = self.field(field, out)?;
            if let Some(oneof) = field.oneof.filter(|_| wrote) {
                if oneofs.contains(&oneof) {
                    return self.json.bad(format!("`{key}` and another excluding it"));
                }
                oneofs.push(oneof);
            }
        }
        Ok(())
    }

    /// Tells whether it was more than `null`.
    fn field(&mut self, field: &Field, out: &mut Vec<u8>) -> Result<bool, Bad> {
        if self.json.peek() == Some(b'n') && (field.repeated || !self.takes_null(field)) {
            return match self.json.token()? {
                Token::Null => Ok(false),
                _ => Ok(true),
            };
        }
        if let Some((key, value)) = self.schema.map_of(field) {
            self.map(field.number, key, value, out)?;
        } else if field.repeated {
            self.array(field, out)?;
        } else {
            self.value(field, out)?;
        }
        Ok(true)
    }

    fn takes_null(&self, field: &Field) -> bool {
        match field.kind {
            Kind::Message(id) => {
                let message = self.schema.message(id);
                message.is_some_and(|message| message.shape == Shape::Value)
            }
            Kind::Enum(id) => self.schema.enumeration(id).is_some_and(|e| e.is_null),
            _ => false,
        }
    }

    fn map(
        &mut self,
        number: u32,
        key: &Field,
        value: &Field,
        out: &mut Vec<u8>,
    ) -> Result<(), Bad> {
        self.enter()?;
        self.json.expect(b'{')?;
        let mut first = true;
        while let Some(name) = self.json.key(&mut first)? {
            let token = text_token(key.kind, &name);
            let token = token.and_then(|token| scalar(self.schema, key.kind, &token, false));
            let Some(read) = token else {
                return self.json.bad(format!("`{name}` is no key of this map"));
            };
            let begun = wire::begin(out, number);
            read.put(out, 1);
            self.value(value, out)?;
            wire::end(out, begun);
        }
        self.depth -= 1;
        Ok(())
    }

    fn array(&mut self, field: &Field, out: &mut Vec<u8>) -> Result<(), Bad> {
        self.enter()?;
        self.json.expect(b'[')?;
        let mut first = true;
        if field.kind.is_packable() {
            let start = out.len();
            let begun = wire::begin(out, field.number);
            while self.json.more(&mut first, b']')? {
                self.scalar(field)?.put_bare(out);
            }
            match out.len() == begun {
                true => out.truncate(start),
                false => wire::end(out, begun),
            }
        } else {
            while self.json.more(&mut first, b']')? {
                self.value(field, out)?;
            }
        }
        self.depth -= 1;
        Ok(())
    }

    /// One value of a field.
    fn value(&mut self, field: &Field, out: &mut Vec<u8>) -> Result<(), Bad> {
        let Kind::Message(id) = field.kind else {
            self.scalar(field)?.put(out, field.number);
            return Ok(());
        };
        let begun = wire::begin(out, field.number);
        self.message(id, out)?;
        wire::end(out, begun);
        Ok(())
    }

    fn scalar(&mut self, field: &Field) -> Result<Scalar, Bad> {
        let token = self.json.token()?;
        match scalar(self.schema, field.kind, &token, self.any_case) {
            Some(scalar) => Ok(scalar),
            None => self.json.bad(format!("no value for `{}`", field.name)),
        }
    }

    fn structure(&mut self, out: &mut Vec<u8>) -> Result<(), Bad> {
        self.json.expect(b'{')?;
        let mut first = true;
        while let Some(name) = self.json.key(&mut first)? {
            let entry = wire::begin(out, 1);
            wire::put_bytes(out, 1, name.as_bytes());
            let value = wire::begin(out, 2);
            self.enter()?;
            self.any_value(out)?;
            self.depth -= 1;
            wire::end(out, value);
            wire::end(out, entry);
        }
        Ok(())
    }

    fn list(&mut self, out: &mut Vec<u8>) -> Result<(), Bad> {
        self.json.expect(b'[')?;
        let mut first = true;
        while self.json.more(&mut first, b']')? {
            let value = wire::begin(out, 1);
            self.enter()?;
            self.any_value(out)?;
            self.depth -= 1;
            wire::end(out, value);
        }
        Ok(())
    }

    /// `google.protobuf.Value`.
    fn any_value(&mut self, out: &mut Vec<u8>) -> Result<(), Bad> {
        match self.json.peek() {
            Some(b'{') => {
                let begun = wire::begin(out, 5);
                self.structure(out)?;
                wire::end(out, begun);
            }
            Some(b'[') => {
                let begun = wire::begin(out, 6);
                self.list(out)?;
                wire::end(out, begun);
            }
            _ => match self.json.token()? {
                Token::Null => Scalar::Varint(0).put(out, 1),
                Token::Number(number) => match number.parse::<f64>() {
                    Ok(number) if number.is_finite() => {
                        Scalar::Fixed64(number.to_bits()).put(out, 2);
                    }
                    _ => return self.json.bad("a number out of range"),
                },
                Token::Text(text) => wire::put_bytes(out, 3, text.as_bytes()),
                Token::Bool(value) => Scalar::Varint(value.into()).put(out, 4),
            },
        }
        Ok(())
    }

    fn any(&mut self, out: &mut Vec<u8>) -> Result<(), Bad> {
        self.anys += 1;
        if self.anys > ANYS_MAX {
            return self.json.bad(TOO_DEEP);
        }
        let (mut ahead, mut first) = (self.json.clone(), true);
        ahead.expect(b'{')?;
        let (mut url, mut any, mut value) = (None, false, None);
        while let Some(key) = ahead.key(&mut first)? {
            any = true;
            match &*key {
                "@type" => url = Some(ahead.string()?),
                "value" => {
                    value = Some(ahead.clone());
                    ahead.skip()?;
                }
                _ => ahead.skip()?,
            }
        }
        let Some(url) = url else {
            self.json = ahead;
            self.anys -= 1;
            return match any {
                true => self.json.bad("an object without `@type`"),
                false => Ok(()),
            };
        };
        let name = url.rsplit('/').next().unwrap_or_default();
        let id = self.schema.message_named(name);
        let Some((id, message)) = id.zip(id.and_then(|id| self.schema.message(id))) else {
            return self.json.bad(format!("`{url}` is not in the schema"));
        };
        wire::put_bytes(out, 1, url.as_bytes());
        let begun = wire::begin(out, 2);
        match message.shape {
            Shape::Object | Shape::HttpBody => self.object(message, true, out)?,
            _ => {
                let Some(value) = value else {
                    return self.json.bad("`value` is missing");
                };
                self.json = value;
                self.message(id, out)?;
                self.json = ahead;
            }
        }
        wire::end(out, begun);
        self.anys -= 1;
        Ok(())
    }
}

/// A scalar on its way to the wire.
enum Scalar {
    Varint(u64),
    Fixed32(u32),
    Fixed64(u64),
    Bytes(Vec<u8>),
}

impl Scalar {
    fn put(&self, out: &mut Vec<u8>, number: u32) {
        let wire_type = match self {
            Self::Varint(_) => 0,
            Self::Fixed64(_) => 1,
            Self::Bytes(bytes) => return wire::put_bytes(out, number, bytes),
            Self::Fixed32(_) => 5,
        };
        wire::put_tag(out, number, wire_type);
        self.put_bare(out);
    }

    fn put_bare(&self, out: &mut Vec<u8>) {
        match self {
            Self::Varint(value) => wire::put_varint(out, *value),
            Self::Fixed32(value) => out.extend_from_slice(&value.to_le_bytes()),
            Self::Fixed64(value) => out.extend_from_slice(&value.to_le_bytes()),
            Self::Bytes(bytes) => out.extend_from_slice(bytes),
        }
    }
}

fn scalar(schema: &Schema, kind: Kind, token: &Token<'_>, any_case: bool) -> Option<Scalar> {
    Some(match kind {
        Kind::Double => Scalar::Fixed64(double(token)?.to_bits()),
        Kind::Float => Scalar::Fixed32(float(token)?.to_bits()),
        Kind::Int32 => Scalar::Varint(i64::from(i32::try_from(integer(token)?).ok()?) as u64),
        Kind::Int64 => Scalar::Varint(i64::try_from(integer(token)?).ok()? as u64),
        Kind::Uint32 => Scalar::Varint(u32::try_from(integer(token)?).ok()?.into()),
        Kind::Uint64 => Scalar::Varint(u64::try_from(integer(token)?).ok()?),
        Kind::Sint32 => {
            let value = i32::try_from(integer(token)?).ok()?;
            Scalar::Varint(((value << 1) ^ (value >> 31)) as u32 as u64)
        }
        Kind::Sint64 => {
            let value = i64::try_from(integer(token)?).ok()?;
            Scalar::Varint(((value << 1) ^ (value >> 63)) as u64)
        }
        Kind::Fixed32 => Scalar::Fixed32(u32::try_from(integer(token)?).ok()?),
        Kind::Fixed64 => Scalar::Fixed64(u64::try_from(integer(token)?).ok()?),
        Kind::Sfixed32 => Scalar::Fixed32(i32::try_from(integer(token)?).ok()? as u32),
        Kind::Sfixed64 => Scalar::Fixed64(i64::try_from(integer(token)?).ok()? as u64),
        Kind::Bool => match token {
            Token::Bool(value) => Scalar::Varint((*value).into()),
            _ => return None,
        },
        Kind::String => match token {
            Token::Text(text) => Scalar::Bytes(text.as_bytes().to_vec()),
            _ => return None,
        },
        Kind::Bytes => match token {
            Token::Text(text) => Scalar::Bytes(base64(text)?),
            _ => return None,
        },
        Kind::Enum(id) => {
            let known = schema.enumeration(id)?;
            let number = match token {
                Token::Null if known.is_null => 0,
                Token::Text(name) => match known.number_of(name, any_case) {
                    Some(number) => number,
                    // A number as text, where it is one of the enum's.
                    None => {
                        let number = name.parse().ok()?;
                        known.name_of(number).map(|_| number)?
                    }
                },
                Token::Number(_) => i32::try_from(integer(token)?).ok()?,
                _ => return None,
            };
            Scalar::Varint(i64::from(number) as u64)
        }
        Kind::Message(_) => return None,
    })
}

/// `1`, `"1"`, `1.0` and `1e0` are the same.
fn integer(token: &Token<'_>) -> Option<i128> {
    let text: &str = match token {
        Token::Number(text) => text,
        Token::Text(text) => text,
        _ => return None,
    };
    if text.len() > NUMBER_MAX || text.starts_with('+') {
        return None;
    }
    if let Ok(value) = text.parse() {
        return Some(value);
    }
    let value: f64 = text.parse().ok()?;
    (value.fract() == 0.0 && value.abs() < 1.9e19).then_some(value as i128)
}

fn double(token: &Token<'_>) -> Option<f64> {
    let text: &str = match token {
        Token::Number(text) => text,
        Token::Text(text) => match &**text {
            "NaN" => return Some(f64::NAN),
            "Infinity" => return Some(f64::INFINITY),
            "-Infinity" => return Some(f64::NEG_INFINITY),
            text => text,
        },
        _ => return None,
    };
    numeric(text)?
        .parse()
        .ok()
        .filter(|value: &f64| value.is_finite())
}

fn float(token: &Token<'_>) -> Option<f32> {
    let wide = double(token)?;
    if !wide.is_finite() {
        return Some(wide as f32);
    }
    let text: &str = match token {
        Token::Number(text) => text,
        Token::Text(text) => text,
        _ => return None,
    };
    text.parse().ok().filter(|value: &f32| value.is_finite())
}

/// Rust also reads words.
fn numeric(text: &str) -> Option<&str> {
    let may = |byte: u8| byte.is_ascii_digit() || b"+-.eE".contains(&byte);
    (text.len() <= NUMBER_MAX && text.bytes().all(may)).then_some(text)
}

/// Either alphabet, padded or not.
fn base64(text: &str) -> Option<Vec<u8>> {
    let plain = text.bytes().map(|byte| match byte {
        b'-' => b'+',
        b'_' => b'/',
        other => other,
    });
    BASE64.decode(plain.collect::<Vec<u8>>()).ok()
}

fn well_known(shape: Shape, value: &str, out: &mut Vec<u8>) -> Option<()> {
    match shape {
        Shape::Timestamp => {
            let (seconds, nanos) = text::parse_timestamp(value)?;
            Scalar::Varint(seconds as u64).put(out, 1);
            Scalar::Varint(nanos.into()).put(out, 2);
        }
        Shape::Duration => {
            let (seconds, nanos) = text::parse_duration(value)?;
            Scalar::Varint(seconds as u64).put(out, 1);
            Scalar::Varint(i64::from(nanos) as u64).put(out, 2);
        }
        Shape::FieldMask => {
            for path in value.split(',').filter(|path| !path.is_empty()) {
                wire::put_bytes(out, 1, text::snake(path).as_bytes());
            }
        }
        _ => return None,
    }
    Some(())
}

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);
const ANYS_MAX: usize = 8;
/// Digits of a number; JSON sets no limit, reading them does.
const NUMBER_MAX: usize = 400;
