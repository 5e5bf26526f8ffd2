//! What of a request is the key of its session, and whose directory has it.

use phalanx_model::name::ServiceName;
use phalanx_model::resource::sessions::{Missing, SessionDirectory, SessionKey};
use phalanx_relay::{Field, HeaderList};

use super::key::cookie;

pub struct DirectoryPlan {
    pub service: ServiceName,
    pub missing: Missing,
    /// The header itself, or `cookie`; with no value.
    field: Field,
    /// The cookie's name; empty: the whole header is the key.
    cookie: Box<[u8]>,
}

impl DirectoryPlan {
    /// None: a name that no header can have, which no request has either.
    pub(super) fn new(directory: &SessionDirectory) -> Option<Self> {
        let (header, cookie) = match &directory.key {
            SessionKey::Header(name) => (name.as_str(), ""),
            SessionKey::Cookie(name) => ("cookie", name.as_str()),
        };
        Some(Self {
            service: directory.service.clone(),
            missing: directory.missing,
            field: Field::new(header, "").ok()?,
            cookie: cookie.as_bytes().into(),
        })
    }

    /// The key of the session that a request belongs to; none where it says nothing.
    pub fn key<'h>(&self, headers: &'h HeaderList) -> Option<&'h [u8]> {
        let key = match self.cookie.is_empty() {
            true => headers.get(self.field.name()),
            false => headers
                .get_all(self.field.name())
                .find_map(|field| cookie(field, &self.cookie)),
        };
        key.filter(|key| !key.is_empty())
    }
}
