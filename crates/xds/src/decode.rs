//! Envoy v3 → model: the inverse of [`crate::encode`], for bytes of any control plane.
//!
//! Every field of every message is named here: taken, checked against the one value that our sidecar has for it, or
//! refused by its path. So nothing is silently ignored that this build knows of. (Fields that are younger than the
//! generated types are dropped by protobuf, as in Envoy.) Linear in the size of the input.

mod access;
mod cluster;
mod endpoints;
mod field;
mod gateway;
pub(crate) mod hds;
mod inbound;
mod limits;
mod listener;
mod routes;
mod tls;
mod udp;

use phalanx_model::resource::{Assignment, Cluster, Listener, RouteTable};
use prost::{Message, Name};

use self::field::At;
use crate::kind::Kind;

/// Bytes of one resource.
pub const BODY_MAX: usize = 4 * 1024 * 1024;

#[derive(Clone, Debug, PartialEq)]
pub enum Resource {
    Listener(Listener),
    Routes(RouteTable),
    Cluster(Cluster),
    Endpoints(Assignment),
}

impl Resource {
    pub fn kind(&self) -> Kind {
        match self {
            Self::Listener(_) => Kind::Listener,
            Self::Routes(_) => Kind::Routes,
            Self::Cluster(_) => Kind::Cluster,
            Self::Endpoints(_) => Kind::Endpoints,
        }
    }

    pub fn name(&self) -> String {
        match self {
            Self::Listener(listener) => listener.name.clone(),
            Self::Routes(table) => table.name.clone(),
            Self::Cluster(cluster) => cluster.name.to_string(),
            Self::Endpoints(assignment) => assignment.cluster.to_string(),
        }
    }
}

/// Why a resource is refused; its text goes into the NACK.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("{size} bytes are more than a resource may have ({BODY_MAX})")]
    TooLarge { size: usize },
    #[error("{at}: no valid protobuf: {source}")]
    Malformed {
        at: String,
        source: prost::DecodeError,
    },
    #[error("{at}: not supported by this sidecar")]
    Unsupported { at: String },
    #[error("{at}: {why}")]
    Invalid { at: String, why: String },
    #[error("the resource calls itself `{found}`, not `{expected}`")]
    Name { expected: String, found: String },
}

/// # Errors
/// [`DecodeError`] for what is no such resource, or one that our sidecar can't honour.
pub fn decode(kind: Kind, body: &[u8]) -> Result<Resource, DecodeError> {
    Ok(match kind {
        Kind::Cluster => Resource::Cluster(cluster::resource(parse(body)?)?),
        Kind::Endpoints => Resource::Endpoints(endpoints::resource(parse(body)?)?),
        Kind::Listener => Resource::Listener(listener::resource(parse(body)?)?),
        Kind::Routes => Resource::Routes(routes::resource(parse(body)?)?),
        // Our sidecar makes its own keys and asks for no secrets.
        Kind::Secret => {
            return Err(DecodeError::Unsupported {
                at: "Secret".to_owned(),
            });
        }
    })
}

/// # Errors
/// As [`decode`], and where the body has another name.
pub fn listener(name: &str, body: &[u8]) -> Result<Listener, DecodeError> {
    let listener = listener::resource(parse(body)?)?;
    named(name, &listener.name).map(|()| listener)
}

/// # Errors
/// As [`decode`], and where the body has another name.
pub fn routes(name: &str, body: &[u8]) -> Result<RouteTable, DecodeError> {
    let table = routes::resource(parse(body)?)?;
    named(name, &table.name).map(|()| table)
}

/// # Errors
/// As [`decode`], and where the body has another name.
pub fn cluster(name: &str, body: &[u8]) -> Result<Cluster, DecodeError> {
    let cluster = cluster::resource(parse(body)?)?;
    named(name, &cluster.name.to_string()).map(|()| cluster)
}

/// # Errors
/// As [`decode`], and where the body has another name.
pub fn endpoints(name: &str, body: &[u8]) -> Result<Assignment, DecodeError> {
    let assignment = endpoints::resource(parse(body)?)?;
    named(name, &assignment.cluster.to_string()).map(|()| assignment)
}

fn parse<M: Message + Default + Name>(body: &[u8]) -> Result<M, DecodeError> {
    if body.len() > BODY_MAX {
        return Err(DecodeError::TooLarge { size: body.len() });
    }
    M::decode(body).map_err(|source| DecodeError::Malformed {
        at: At::Root(M::NAME).to_string(),
        source,
    })
}

fn named(expected: &str, found: &str) -> Result<(), DecodeError> {
    if expected == found {
        return Ok(());
    }
    Err(DecodeError::Name {
        expected: expected.to_owned(),
        found: field::short(found.to_owned()),
    })
}

#[cfg(test)]
mod tests;
