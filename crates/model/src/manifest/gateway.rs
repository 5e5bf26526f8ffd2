//! Gateway of the Gateway API. Bounds are those of its CRD; what can't stand together on a port is refused here, since all of
//! a Gateway's listeners are in one document.

use std::net::IpAddr;

use super::cursor::{At, Fields};
use super::report::quoted;
use super::value::is_dns_name;
use crate::document::{
    AllowedNamespaces, Gateway, GatewayListener, GatewayProtocol, GatewayRef, Kind, Meta,
};
use crate::name::ServiceName;

/// The class that is ours.
const CLASS: &str = "phalanx";
pub(super) const GROUP: &str = "gateway.networking.k8s.io";
const LISTENERS_MAX: usize = 64;
const ADDRESSES_MAX: usize = 16;
const CERTIFICATES_MAX: usize = 64;
const KINDS_MAX: usize = 8;
const HOSTNAMES_MAX: usize = 16;

pub(super) fn gateway(spec: &At<'_>, meta: Meta) -> Option<Gateway> {
    let mut fields = spec.fields()?;
    fields.later(&[
        "allowedListeners",
        "backendTLS",
        "defaultScope",
        "infrastructure",
        "tls",
    ]);
    if let Some(class) = fields.need("gatewayClassName")
        && class.text()? != CLASS
    {
        class.refuse_with::<()>(
            format!("{} is another's class", quoted(class.text()?)),
            format!("write `{CLASS}`"),
        );
    }
    let addresses = fields.list("addresses", ADDRESSES_MAX);
    let addresses: Vec<IpAddr> = addresses.iter().filter_map(address).collect();
    let items = fields.need("listeners").map_or_else(Vec::new, |at| {
        let items = at.items(LISTENERS_MAX);
        at.check(!items.is_empty(), "a Gateway has at least one listener");
        items
    });
    let mut listeners: Vec<GatewayListener> = Vec::new();
    for at in &items {
        let Some(listener) = listener(at) else {
            continue;
        };
        if let Some(why) = listeners.iter().find_map(|other| clash(other, &listener)) {
            at.refuse::<()>(why);
        }
        listeners.push(listener);
    }
    Some(Gateway {
        meta,
        listeners,
        addresses,
    })
}

/// Why two listeners can't stand side by side.
fn clash(one: &GatewayListener, other: &GatewayListener) -> Option<String> {
    let name = quoted(&one.name);
    if one.name == other.name {
        return Some(format!("another listener is called {name}"));
    }
    let is_udp = |listener: &GatewayListener| listener.protocol == GatewayProtocol::Udp;
    if one.port != other.port || is_udp(one) != is_udp(other) {
        return None;
    }
    let same = one.protocol.is_tls() && other.protocol.is_tls()
        || (one.protocol == GatewayProtocol::Http && other.protocol == GatewayProtocol::Http);
    match (same, one.hostname == other.hostname) {
        (false, _) => Some(format!(
            "listener {name} has port {} already, and speaks {}",
            one.port,
            one.protocol.as_str()
        )),
        (true, true) => Some(format!(
            "listener {name} has this port and hostname already"
        )),
        (true, false) => None,
    }
}

fn address(at: &At<'_>) -> Option<IpAddr> {
    let mut fields = at.fields()?;
    if let Some(kind) = fields.get("type") {
        kind.choose(&[("IPAddress", ())], &["Hostname", "NamedAddress"]);
    }
    let value = fields.need("value")?;
    let text = value.text()?;
    let parsed = text.parse().ok();
    parsed.or_else(|| value.refuse(format!("{} is no IP address", quoted(text))))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Terminate,
    Passthrough,
}

fn listener(at: &At<'_>) -> Option<GatewayListener> {
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Protocol {
        Http,
        Https,
        Tls,
        Tcp,
        Udp,
    }
    let mut fields = at.fields()?;
    let name = fields.need("name").and_then(|at| at.dns_name());
    let port = fields.need("port").and_then(|at| at.port());
    let choices = [
        ("HTTP", Protocol::Http),
        ("HTTPS", Protocol::Https),
        ("TLS", Protocol::Tls),
        ("TCP", Protocol::Tcp),
        ("UDP", Protocol::Udp),
    ];
    let protocol = fields
        .need("protocol")
        .and_then(|at| at.choose(&choices, &[]));
    let hostname_at = fields.get("hostname");
    let hostname = hostname_at.as_ref().map(|at| hostname(at));
    let tls_at = fields.get("tls");
    let tls = tls_at.as_ref().map(|at| tls(at));
    let allowed = fields.get("allowedRoutes");
    let allowed = allowed.map(|at| allowed_routes(&at));
    let protocol = match protocol? {
        Protocol::Http | Protocol::Tcp if tls_at.is_some() => {
            return tls_at?.refuse_with("this protocol has no TLS", "write HTTPS or TLS");
        }
        Protocol::Udp if tls_at.is_some() => {
            return tls_at?.refuse("DTLS is not ended here: datagrams are passed on as they are");
        }
        Protocol::Tcp if hostname_at.is_some() => {
            return hostname_at?.refuse("nothing in TCP tells a hostname");
        }
        Protocol::Udp if hostname_at.is_some() => {
            return hostname_at?.refuse("nothing in UDP tells a hostname");
        }
        Protocol::Udp => GatewayProtocol::Udp,
        Protocol::Http => GatewayProtocol::Http,
        Protocol::Tcp => GatewayProtocol::Tcp,
        Protocol::Https => match tls {
            Some(Some((Mode::Terminate, certificates))) => GatewayProtocol::Https { certificates },
            Some(Some((Mode::Passthrough, _))) => {
                return tls_at?.refuse_with("HTTPS ends here", "for Passthrough write TLS");
            }
            Some(None) => return None,
            None => {
                return at.refuse_with(
                    "HTTPS needs `tls`",
                    "write `tls: {certificateRefs: [{name: …}]}`",
                );
            }
        },
        Protocol::Tls => match tls {
            Some(Some((Mode::Passthrough, _))) => GatewayProtocol::Tls,
            Some(None) => return None,
            _ => {
                return at.refuse_with(
                    "TLS that ends here is supported for HTTPS only in this version",
                    "write `tls: {mode: Passthrough}`",
                );
            }
        },
    };
    let (namespaces, kinds) = allowed.unwrap_or_default();
    let fitting = protocol.kinds();
    let mut chosen = Vec::new();
    for (at, kind) in kinds {
        if fitting.contains(&kind) {
            chosen.push(kind);
        } else {
            let fitting: Vec<&str> = fitting.iter().map(|kind| kind.as_str()).collect();
            at.refuse::<()>(format!(
                "a listener of protocol {} takes {}",
                protocol.as_str(),
                fitting.join(" and ")
            ));
        }
    }
    if chosen.is_empty() {
        chosen = fitting.to_vec();
    }
    Some(GatewayListener {
        name: name?,
        hostname: hostname.map_or(Some(None), |hostname| hostname.map(Some))?,
        port: port?,
        protocol,
        namespaces,
        kinds: chosen,
    })
}

fn tls(at: &At<'_>) -> Option<(Mode, Vec<String>)> {
    let mut fields = at.fields()?;
    fields.later(&["frontendValidation", "options"]);
    let modes = [
        ("Terminate", Mode::Terminate),
        ("Passthrough", Mode::Passthrough),
    ];
    let mode = fields.get("mode");
    let mode = mode.map_or(Some(Mode::Terminate), |at| at.choose(&modes, &[]));
    let items = fields.list("certificateRefs", CERTIFICATES_MAX);
    let certificates: Vec<String> = items.iter().filter_map(certificate).collect();
    match mode? {
        Mode::Terminate if items.is_empty() => {
            at.refuse_with::<()>("no certificate", "write `certificateRefs: [{name: …}]`");
        }
        Mode::Passthrough if !items.is_empty() => {
            at.refuse::<()>("what is passed through needs no certificate here");
        }
        _ => {}
    }
    Some((mode?, certificates))
}

/// By name, in the folder that the data plane was given.
fn certificate(at: &At<'_>) -> Option<String> {
    let mut fields = at.fields()?;
    if let Some(group) = fields.get("group") {
        group.choose(&[("", ())], &[]);
    }
    if let Some(kind) = fields.get("kind") {
        kind.choose(&[("Secret", ())], &[]);
    }
    fields.later(&["namespace"]);
    fields.need("name")?.dns_name()
}

type Kinds<'a> = Vec<(At<'a>, Kind)>;

fn allowed_routes<'a>(at: &At<'a>) -> (AllowedNamespaces, Kinds<'a>) {
    let Some(mut fields) = at.fields() else {
        return Default::default();
    };
    let namespaces = fields.get("namespaces").and_then(|at| {
        let mut fields = at.fields()?;
        fields.later(&["selector"]);
        let choices = [
            ("Same", AllowedNamespaces::Same),
            ("All", AllowedNamespaces::All),
            ("None", AllowedNamespaces::None),
        ];
        fields.get("from")?.choose(&choices, &["Selector"])
    });
    let kinds = fields.list("kinds", KINDS_MAX);
    let kinds = kinds.into_iter().filter_map(|at| {
        let kind = kind(&at)?;
        Some((at, kind))
    });
    (namespaces.unwrap_or_default(), kinds.collect())
}

fn kind(at: &At<'_>) -> Option<Kind> {
    let mut fields = at.fields()?;
    if let Some(group) = fields.get("group") {
        group.choose(&[(GROUP, ())], &[]);
    }
    let routes = [
        Kind::HttpRoute,
        Kind::GrpcRoute,
        Kind::TlsRoute,
        Kind::TcpRoute,
        Kind::UdpRoute,
    ];
    let choices = routes.map(|kind| (kind.as_str(), kind));
    fields.need("kind")?.choose(&choices, &[])
}

/// Exact or `*.suffix`, in lower case, and no address.
pub(super) fn hostname(at: &At<'_>) -> Option<String> {
    let text = at.text()?;
    let name = text.strip_prefix("*.").unwrap_or(text);
    if is_dns_name(name) && text.parse::<IpAddr>().is_err() {
        return Some(text.to_owned());
    }
    at.refuse_with(
        format!("{} is no hostname", quoted(text)),
        "lower-case labels with dots between, like `play.example.com` or `*.example.com`",
    )
}

/// `hostnames` of a route.
pub(super) fn hostnames(fields: &mut Fields<'_>) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for at in fields.list("hostnames", HOSTNAMES_MAX) {
        let Some(name) = hostname(&at) else { continue };
        if names.contains(&name) {
            at.refuse::<()>("the hostname stands twice in this list");
        }
        names.push(name);
    }
    names
}

/// Whether an item of `parentRefs` means a Gateway, as it does unless it says otherwise.
pub(super) fn is_gateway(at: &At<'_>) -> bool {
    let is = |key, text: &str| at.field_text(key).is_none_or(|found| found == text);
    is("kind", "Gateway") && is("group", GROUP)
}

/// An item of `parentRefs` that means a Gateway.
pub(super) fn gateway_ref(at: &At<'_>, meta: &Meta, index: usize) -> Option<GatewayRef> {
    let mut fields = at.fields()?;
    fields.ignore(&["kind", "group"]); // which are what made it one
    let name = fields.need("name").and_then(|at| at.dns_label());
    let namespace = fields.get("namespace");
    let namespace = namespace.map_or_else(|| Some(meta.namespace.clone()), |at| at.dns_label());
    let section = fields.get("sectionName");
    let section = section.map_or(Some(None), |at| at.dns_name().map(Some));
    let port = fields.get("port");
    let port = port.map_or(Some(None), |at| at.port().map(Some));
    Some(GatewayRef {
        gateway: ServiceName::new(namespace?, name?),
        section: section?,
        port: port?,
        index,
    })
}

/// The same, once each.
pub(super) fn push(gateways: &mut Vec<GatewayRef>, at: &At<'_>, meta: &Meta, index: usize) {
    let Some(parent) = gateway_ref(at, meta, index) else {
        return;
    };
    let is_same = |known: &GatewayRef| {
        GatewayRef {
            index,
            ..known.clone()
        } == parent
    };
    if gateways.iter().any(is_same) {
        at.refuse::<()>("the parent stands twice in this list");
    }
    gateways.push(parent);
}
