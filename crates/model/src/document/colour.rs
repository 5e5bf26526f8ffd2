//! ColourPolicy: who gives requests from outside their colour, and the lanes that colours lead to.

use crate::instance::Labels;
use crate::name::ServiceName;
use crate::resource::colour::EdgeColours;

use super::Meta;

/// `phalanx.dev/v1alpha1` ColourPolicy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColourPolicy {
    pub meta: Meta,
    /// Gateways of its namespace. None: every trust edge of its namespace, or of the whole mesh if that is
    /// [`crate::identity::SYSTEM_NAMESPACE`].
    pub gateways: Vec<ServiceName>,
    /// What those give; none: it says nothing about edges.
    pub edge: Option<EdgeColours>,
    /// Of the services of its namespace, or of the whole mesh as above.
    pub lanes: Vec<Lane>,
}

/// Instances that take the requests of one colour, wherever a service has some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lane {
    pub colour: String,
    /// Over instance labels; never empty. What it selects takes no other requests.
    pub selector: Labels,
    pub fallback: Fallback,
    /// Of its namespace. Services that have this lane even while no instance of it is there; only where it refuses.
    pub services: Vec<ServiceName>,
}

/// Who takes a lane's requests where none of its instances works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fallback {
    #[default]
    Baseline,
    /// Nobody: 503 `no_healthy_upstream`.
    Refuse,
}
