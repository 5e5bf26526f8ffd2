//! The vocabulary of the mesh: names, instances, documents as users write them, and the resources a data plane receives.
//!
//! Text enters through [`manifest`] and leaves as checked documents; [`matching`] decides which rule a request meets.
//! No I/O, no async, no clock and no wire format may live here.
//!
//! Module order (a module imports only later ones): manifest, matching, document, resource, instance, identity,
//! reason, name, shared.

pub mod document;
pub mod identity;
pub mod instance;
pub mod manifest;
pub mod matching;
pub mod name;
pub mod reason;
pub mod resource;
pub mod shared;

pub use instance::{Instance, InstanceId, InstancePort, Labels};
pub use name::{ClusterName, ServiceName};
pub use reason::Reason;
pub use shared::SharedMap;
