//! Service and EndpointSlice: Kubernetes' own, as `kubectl get -o yaml` prints them.

use std::collections::HashSet;
use std::net::IpAddr;

use super::cursor::{At, Fields};
use super::report::quoted;
use super::tree::Value;
use super::value::{is_label_value, labels};
use crate::document::{
    EndpointSlice, Meta, Service, ServicePort, SliceEndpoint, SlicePort, TargetPort,
};
use crate::instance::{Labels, Protocol, is_callable};
use crate::name::{ServiceName, check_label};

/// The label of an EndpointSlice that names its Service.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// The label that says that its endpoints take mutual TLS: `mutual`.
const TLS_LABEL: &str = "phalanx.dev/tls";
const PORTS_MAX: usize = 100;
/// Kubernetes' bounds of a slice.
const ENDPOINTS_MAX: usize = 1000;
const ADDRESSES_MAX: usize = 100;

pub(super) fn service(spec: &At<'_>, meta: Meta) -> Option<Service> {
    let mut fields = spec.fields()?;
    fields.ignore(&["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"]);
    only(
        &mut fields,
        "type",
        "ClusterIP",
        &["NodePort", "LoadBalancer", "ExternalName"],
    );
    only(&mut fields, "sessionAffinity", "None", &["ClientIP"]);
    only(&mut fields, "internalTrafficPolicy", "Cluster", &["Local"]);
    fields.later(&[
        "sessionAffinityConfig",
        "externalName",
        "externalIPs",
        "externalTrafficPolicy",
        "loadBalancerIP",
        "loadBalancerClass",
        "loadBalancerSourceRanges",
        "allocateLoadBalancerNodePorts",
        "healthCheckNodePort",
        "publishNotReadyAddresses",
        "trafficDistribution",
    ]);
    let selector = fields
        .get("selector")
        .map_or_else(Labels::new, |at| labels(&at));
    let items = fields.need("ports").map_or_else(Vec::new, |at| {
        let items = at.items(PORTS_MAX);
        at.check(!items.is_empty(), "a Service has at least one port");
        items
    });
    let ports: Vec<ServicePort> = items
        .iter()
        .filter_map(|at| service_port(at, items.len() > 1))
        .collect();
    unique(
        &items,
        ports.iter().map(|port| port.port),
        ports.len(),
        "port, over TCP and UDP together,",
    );
    unique(
        &items,
        ports.iter().map(|port| &port.name),
        ports.len(),
        "name",
    );
    Some(Service {
        meta,
        selector,
        ports,
    })
}

fn service_port(at: &At<'_>, must_be_named: bool) -> Option<ServicePort> {
    let mut fields = at.fields()?;
    fields.later(&["nodePort"]);
    let name = if must_be_named {
        fields.need("name")
    } else {
        fields.get("name")
    };
    let name = name.map_or(Some(String::new()), |at| at.dns_label());
    let protocol = protocol(&mut fields);
    let port = fields.need("port").and_then(|at| at.port());
    let target = fields.get("targetPort");
    let target = target.map_or_else(|| port.map(TargetPort::Number), |at| target_port(&at));
    Some(ServicePort {
        name: name?,
        port: port?,
        target: target?,
        protocol: protocol?,
    })
}

fn target_port(at: &At<'_>) -> Option<TargetPort> {
    if let Value::Number(_) = at.node.value {
        return at.port().map(TargetPort::Number);
    }
    let name = at.text()?;
    let named = name.len() <= 15
        && check_label(name).is_ok()
        && name.contains(|c: char| c.is_ascii_lowercase())
        && !name.contains("--");
    at.check(
        named,
        "is neither a port nor a port's name (at most 15 of a-z, 0-9 and -)",
    )?;
    Some(TargetPort::Name(name.to_owned()))
}

/// `protocol` and `appProtocol`. Left out means Auto: what a port's name suggests is not decided here. `appProtocol: udp`
/// alone is enough.
fn protocol(fields: &mut Fields<'_>) -> Option<Protocol> {
    let transports = [("TCP", false), ("UDP", true)];
    let is_udp = fields
        .get("protocol")
        .map(|at| at.choose(&transports, &["SCTP"]));
    let choices = [
        Protocol::Http1,
        Protocol::H2c,
        Protocol::Grpc,
        Protocol::Tcp,
        Protocol::Udp,
    ]
    .map(|p| (p.as_str(), p));
    // Protocols that we pass on unread go by their own names, too.
    let unread = ["redis", "mysql"].map(|name| (name, Protocol::Tcp));
    let choices: Vec<_> = choices.into_iter().chain(unread).collect();
    let later = ["https", "tls", "kubernetes.io/ws", "kubernetes.io/wss"];
    let at = fields.get("appProtocol");
    let app = at.as_ref().map(|at| at.choose(&choices, &later));
    match (is_udp.map_or(Some(None), |udp| udp.map(Some))?, app) {
        (Some(true), None) => Some(Protocol::Udp),
        (_, None) => Some(Protocol::Auto),
        (Some(is_udp), Some(Some(app))) if is_udp != (app == Protocol::Udp) => {
            let protocol = if is_udp { "UDP" } else { "TCP" };
            at?.refuse_with(
                format!("{} is not spoken over {protocol}", quoted(app.as_str())),
                "leave one of `protocol` and `appProtocol` out",
            )
        }
        (_, Some(app)) => app,
    }
}

/// A field that may only hold the value that is its default.
fn only(fields: &mut Fields<'_>, key: &'static str, value: &str, later: &[&str]) {
    if let Some(at) = fields.get(key) {
        at.choose(&[(value, ())], later);
    }
}

/// Tells which item repeats an earlier one. `count` differs from the number of items when some had problems of their
/// own; then their places are not known, and the repetition is told next time.
fn unique<T: std::hash::Hash + Eq>(
    items: &[At<'_>],
    keys: impl Iterator<Item = T>,
    count: usize,
    what: &str,
) {
    let mut seen = HashSet::new();
    for (key, at) in keys.zip(items) {
        if !seen.insert(key) && count == items.len() {
            at.refuse::<()>(format!("the {what} stands twice in this list"));
        }
    }
}

/// Reads the fields beside `metadata`, for here is no `spec`.
pub(super) fn endpoint_slice(fields: &mut Fields<'_>, meta: Option<Meta>) -> Option<EndpointSlice> {
    let family = fields
        .need("addressType")
        .and_then(|at| at.choose(&[("IPv4", false), ("IPv6", true)], &["FQDN"]));
    let port_items = fields.list("ports", PORTS_MAX);
    let ports: Vec<SlicePort> = port_items.iter().filter_map(slice_port).collect();
    unique(
        &port_items,
        ports.iter().map(|port| &port.name),
        ports.len(),
        "name",
    );
    let endpoints = fields
        .list("endpoints", ENDPOINTS_MAX)
        .iter()
        .filter_map(|at| slice_endpoint(at, family))
        .collect();
    let meta = meta?;
    let service = match meta
        .labels
        .get(SERVICE_NAME_LABEL)
        .map(|name| ServiceName::parse(&meta.namespace, name))
    {
        Some(Ok(service)) => service,
        Some(Err(error)) => {
            return fields
                .at
                .refuse(format!("label {SERVICE_NAME_LABEL}: {error}"));
        }
        None => {
            return fields.at.refuse_with(
                "the slice belongs to no Service",
                format!("give it the label {SERVICE_NAME_LABEL}"),
            );
        }
    };
    let mutual_tls = match meta.labels.get(TLS_LABEL).map(String::as_str) {
        None => false,
        Some("mutual") => true,
        Some(_) => {
            return fields.at.refuse_with(
                format!("label {TLS_LABEL}: the only value is `mutual`"),
                "leave it out where plain text is spoken",
            );
        }
    };
    Some(EndpointSlice {
        meta,
        service,
        mutual_tls,
        ports,
        endpoints,
    })
}

fn slice_port(at: &At<'_>) -> Option<SlicePort> {
    let mut fields = at.fields()?;
    let name = fields
        .get("name")
        .filter(|at| at.text() != Some(""))
        .map_or(Some(String::new()), |at| at.dns_label());
    let protocol = protocol(&mut fields);
    let port = fields.need("port").and_then(|at| at.port());
    Some(SlicePort {
        name: name?,
        port: port?,
        protocol: protocol?,
    })
}

/// `ipv6` is none when the slice's family is itself wrong.
fn slice_endpoint(at: &At<'_>, ipv6: Option<bool>) -> Option<SliceEndpoint> {
    let mut fields = at.fields()?;
    fields.ignore(&["nodeName", "targetRef"]); // say where a pod runs, not how to reach it
    fields.later(&["hostname", "hints", "deprecatedTopology"]);
    let addresses = fields.need("addresses");
    let zone = fields.get("zone").map_or(Some(""), |at| {
        at.text().filter(|zone| {
            at.check(is_label_value(zone), "is no zone's name")
                .is_some()
        })
    });
    let (ready, terminating) = fields
        .get("conditions")
        .map_or(Some((true, false)), |at| conditions(&at))?;
    let addresses = addresses.as_ref()?;
    let items = addresses.items(ADDRESSES_MAX);
    addresses.check(!items.is_empty(), "an endpoint has at least one address");
    let addresses = items.iter().filter_map(|at| address(at, ipv6)).collect();
    Some(SliceEndpoint {
        addresses,
        ready,
        terminating,
        zone: zone?.to_owned(),
    })
}

/// (ready, serving and terminating)
fn conditions(at: &At<'_>) -> Option<(bool, bool)> {
    let mut fields = at.fields()?;
    let mut flag = |key| fields.get(key).and_then(|at| at.boolean());
    let (ready, serving, terminating) = (flag("ready"), flag("serving"), flag("terminating"));
    let ready = ready.unwrap_or(true);
    Some((
        ready,
        serving.unwrap_or(ready) && terminating.unwrap_or(false),
    ))
}

fn address(at: &At<'_>, ipv6: Option<bool>) -> Option<IpAddr> {
    let text = at.text()?;
    let address: Option<IpAddr> = text
        .parse()
        .ok()
        .filter(|ip: &IpAddr| ipv6.is_none_or(|ipv6| ip.is_ipv6() == ipv6));
    let Some(address) = address else {
        let family = ipv6.map_or("IP", |ipv6| if ipv6 { "IPv6" } else { "IPv4" });
        return at.refuse(format!("{} is no {family} address", quoted(text)));
    };
    at.check(is_callable(address), "the address is no endpoint's")?;
    Some(address)
}
