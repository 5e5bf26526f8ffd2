//! `phalanx.dev/v1alpha1` TranscodingPolicy.

use std::sync::Arc;

use super::Meta;
use crate::name::ServiceName;
use crate::resource::Transcoding;

/// gRPC services that can be called with JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TranscodingPolicy {
    pub meta: Meta,
    /// In their own namespace; at least one.
    pub targets: Vec<ServiceName>,
    /// Its descriptors were compiled: the table can be made of it.
    pub transcoding: Arc<Transcoding>,
}
