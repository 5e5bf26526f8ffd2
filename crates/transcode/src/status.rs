//! How a call ended: gRPC's code, what it is in HTTP, and `google.rpc.Status`.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::wire::{Records, Value};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    pub code: u32,
    pub message: String,
    /// Each a `google.protobuf.Any` in wire format.
    pub details: Vec<Vec<u8>>,
}

impl Status {
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Self {
            code: u32::from(code),
            message: message.into(),
            details: Vec::new(),
        }
    }

    /// From gRPC's fields as they stand in trailers. None without a code that is one: the call did not end well-formed.
    pub fn parse(
        status: Option<&[u8]>,
        message: Option<&[u8]>,
        details: Option<&[u8]>,
    ) -> Option<Self> {
        let code = std::str::from_utf8(status?).ok()?.parse::<u8>().ok()?;
        let told = details.and_then(|told| BASE64.decode(told).ok());
        if let Some(told) = told.and_then(|told| Self::read(&told))
            && told.code == u32::from(code)
        {
            return Some(told);
        }
        let message = message.map(unescape).unwrap_or_default();
        Some(Self::new(code, message))
    }

    /// `google.rpc.Status` in wire format.
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut status = Self::default();
        let mut records = Records::new(bytes);
        while let Some((number, value)) = records.read().ok()? {
            match (number, value) {
                (1, Value::Varint(code)) => status.code = u32::try_from(code).ok()?,
                (2, Value::Bytes(text)) => {
                    status.message = String::from_utf8_lossy(text).into_owned();
                }
                (3, Value::Bytes(any)) if status.details.len() < DETAILS_MAX => {
                    status.details.push(any.to_vec());
                }
                _ => {}
            }
        }
        Some(status)
    }

    pub fn is_ok(&self) -> bool {
        self.code == 0
    }

    pub fn http(&self) -> u16 {
        http_status(self.code)
    }
}

/// google.rpc.Code's own table.
pub fn http_status(code: u32) -> u16 {
    match code {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}

pub const INVALID_ARGUMENT: u8 = 3;
pub const NOT_FOUND: u8 = 5;
pub const RESOURCE_EXHAUSTED: u8 = 8;
pub const INTERNAL: u8 = 13;
pub const UNAVAILABLE: u8 = 14;

/// `grpc-message`: UTF-8, percent-encoded where it is not printable ASCII.
fn unescape(raw: &[u8]) -> String {
    String::from_utf8_lossy(&crate::query::unescape(raw, |_| true)).into_owned()
}

/// With padding or without, as gRPC wants it read.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
const DETAILS_MAX: usize = 64;
