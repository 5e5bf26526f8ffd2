//! TCPRoute, TLSRoute and UDPRoute of the Gateway API, attached to Gateways; UDPRoute to Services, too.

use super::cursor::At;
use super::gateway::{hostnames, is_gateway, push};
use super::report::quoted;
use super::route::push_parent;
use super::value::service_ref;
use crate::document::{GatewayRef, Kind, Meta, ParentRef, StreamBackend, StreamRoute};

const PARENTS_MAX: usize = 32;
const BACKENDS_MAX: usize = 16;
const WEIGHT_MAX: u32 = 1_000_000;

pub(super) fn route(spec: &At<'_>, meta: Meta, kind: Kind) -> Option<StreamRoute> {
    let mut fields = spec.fields()?;
    fields.later(&["useDefaultGateways"]);
    let mut gateways: Vec<GatewayRef> = Vec::new();
    let mut parents: Vec<ParentRef> = Vec::new();
    if let Some(at) = fields.need("parentRefs") {
        let items = at.items(PARENTS_MAX);
        at.check(!items.is_empty(), "a route has at least one parent");
        for (index, at) in items.iter().enumerate() {
            match kind {
                Kind::UdpRoute if !is_gateway(at) => push_parent(&mut parents, at, &meta),
                _ => parent(&mut gateways, at, &meta, index, kind),
            }
        }
    }
    let names = match kind {
        Kind::TlsRoute => hostnames(&mut fields),
        _ => Vec::new(),
    };
    let mut backends = Vec::new();
    if let Some(at) = fields.need("rules") {
        let rules = at.items(usize::from(u8::MAX));
        // Without matches a second one could never be met.
        at.check(
            rules.len() == 1,
            "a route of streams or datagrams has one rule",
        );
        backends = rules
            .first()
            .and_then(|at| rule(at, &meta))
            .unwrap_or_default();
    }
    Some(StreamRoute {
        meta,
        kind,
        gateways,
        parents,
        hostnames: names,
        backends,
    })
}

fn parent(gateways: &mut Vec<GatewayRef>, at: &At<'_>, meta: &Meta, index: usize, kind: Kind) {
    if is_gateway(at) {
        return push(gateways, at, meta, index);
    }
    let found = at.field_text("kind").unwrap_or_default();
    at.refuse_with::<()>(
        format!(
            "a {} of a {} is not supported by this version",
            kind.as_str(),
            quoted(found)
        ),
        "write `kind: Gateway`; inside the mesh `--tcp LISTEN=SERVICE:PORT` of a sidecar leads to a service",
    );
}

fn rule(at: &At<'_>, meta: &Meta) -> Option<Vec<StreamBackend>> {
    let mut fields = at.fields()?;
    if let Some(name) = fields.get("name") {
        name.dns_name();
    }
    fields.later(&["filters"]);
    let items = fields.need("backendRefs")?.items(BACKENDS_MAX);
    Some(items.iter().filter_map(|at| backend(at, meta)).collect())
}

fn backend(at: &At<'_>, meta: &Meta) -> Option<StreamBackend> {
    let mut fields = at.fields()?;
    let service = service_ref(&mut fields, meta, "Service");
    let port = fields.need("port").and_then(|at| at.port());
    let weight = fields.number("weight", 0..=WEIGHT_MAX, 1);
    Some(StreamBackend {
        service: service?,
        port: port?,
        weight,
    })
}
