//! Answers: JSON, errors with hints, and query parameters that are all known.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::RawQuery;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use phalanx_client::api::ErrorBody;

use crate::admit::AdmitError;

/// An answer that is no success.
#[derive(Debug)]
pub struct Failure {
    pub status: StatusCode,
    pub body: ErrorBody,
}

impl Failure {
    pub fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self {
            status,
            body: ErrorBody {
                error: error.into(),
                ..ErrorBody::default()
            },
        }
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.body.hint = Some(hint.into());
        self
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.status, Json(self.body)).into_response()
    }
}

impl From<AdmitError> for Failure {
    fn from(error: AdmitError) -> Self {
        let text = error.to_string();
        match error {
            AdmitError::Invalid { problems, .. } => {
                let mut failure = Self::new(StatusCode::UNPROCESSABLE_ENTITY, text);
                failure.body.problems = problems;
                failure
            }
            AdmitError::Conflict { revision, .. } => {
                let mut failure = Self::new(StatusCode::CONFLICT, text).hint("look at what changed (`phalanx history`), then try again with the new revision");
                failure.body.revision = Some(revision);
                failure
            }
            AdmitError::UnderWay { revision, .. } => {
                let mut failure = Self::new(StatusCode::CONFLICT, text).hint(
                    "`phalanx canary` shows how it goes; `phalanx canary promote` or `abort` decides it now",
                );
                failure.body.revision = Some(revision);
                failure
            }
            AdmitError::Overtaken { .. } => {
                Self::new(StatusCode::CONFLICT, text).hint("abort the canary and apply it again")
            }
            AdmitError::NoCanary => Self::new(StatusCode::NOT_FOUND, text)
                .hint("`phalanx history` tells how the last one ended"),
            AdmitError::Nobody => Self::new(StatusCode::UNPROCESSABLE_ENTITY, text)
                .hint("`phalanx ps` lists who is connected; apply it without --canary"),
            AdmitError::TooOld { .. } | AdmitError::Future { .. } => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, text)
                    .hint("`phalanx history` lists the revisions that can be restored; 0 is before all of them, without any document")
            }
            AdmitError::TooLarge { .. } => Self::new(StatusCode::PAYLOAD_TOO_LARGE, text)
                .hint("change fewer documents at once"),
            AdmitError::Defect => Self::new(StatusCode::INTERNAL_SERVER_ERROR, text)
                .hint("nothing was changed; please report it with the control plane's log"),
            AdmitError::Store(source) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, format!("{text}: {source}"))
                    .hint("what was stored before stays in force; see `phalanx status`")
            }
        }
    }
}

/// Query parameters; asking for one says that it is known.
pub struct Params(BTreeMap<String, String>);

impl Params {
    /// Takes a query with no other parameters than `known`.
    pub fn parse(RawQuery(query): RawQuery, known: &[&str]) -> Result<Self, Failure> {
        let mut params = BTreeMap::new();
        for pair in query
            .as_deref()
            .unwrap_or_default()
            .split('&')
            .filter(|pair| !pair.is_empty())
        {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            if !known.contains(&key) {
                let failure = Failure::new(
                    StatusCode::BAD_REQUEST,
                    format!("there is no parameter `{key}` here"),
                );
                return Err(if known.is_empty() {
                    failure
                } else {
                    failure.hint(format!("known are {}", known.join(", ")))
                });
            }
            let value = decode(value).ok_or_else(|| {
                Failure::new(
                    StatusCode::BAD_REQUEST,
                    format!("parameter `{key}` is badly encoded"),
                )
            })?;
            params.insert(key.to_owned(), value);
        }
        Ok(Self(params))
    }

    /// None when left out or empty.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.0
            .get(key)
            .map(String::as_str)
            .filter(|text| !text.is_empty())
    }

    pub fn number(&self, key: &str) -> Result<Option<u64>, Failure> {
        let parse = |text: &str| {
            text.parse().map_err(|_| {
                Failure::new(
                    StatusCode::BAD_REQUEST,
                    format!("parameter `{key}` is `{text}`, expected a whole number"),
                )
            })
        };
        self.text(key).map(parse).transpose()
    }
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |b: u8| (b as char).to_digit(16);
                (digit(rest.next()?)? * 16 + digit(rest.next()?)?) as u8
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_known_or_refused() {
        let query = |text: &str| RawQuery(Some(text.to_owned()));
        let params = Params::parse(
            query("kind=x%20y&limit=5&empty="),
            &["kind", "limit", "empty"],
        )
        .unwrap();
        assert_eq!(
            (
                params.text("kind"),
                params.number("limit").unwrap(),
                params.text("empty")
            ),
            (Some("x y"), Some(5), None)
        );
        assert!(Params::parse(query("kin=x"), &["kind"]).is_err());
        assert!(Params::parse(query("kind=%zz"), &["kind"]).is_err());
        assert!(
            Params::parse(query("kind=a"), &["kind"])
                .unwrap()
                .number("kind")
                .is_err()
        );
    }
}
