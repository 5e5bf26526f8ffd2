//! What is allowed but probably not meant, each remark at its place in the file.

use std::collections::{BTreeMap, HashMap};

use phalanx_client::api::{File, Problem};
use phalanx_model::ServiceName;
use phalanx_model::document::{
    AuthorizationPolicy, Document, DocumentId, GatewayRef, Kind, PeerAuthentication, StreamBackend,
};
use phalanx_model::manifest::Places;

use super::{Admitted, Step};
use crate::snapshot::Mesh;

/// What the changed documents would not do in the world as it would be.
pub fn warnings(mesh: &Mesh, steps: &[Step], files: &[File]) -> Vec<Problem> {
    let mut of_compile: HashMap<&DocumentId, Vec<&str>> = HashMap::new();
    for finding in mesh.findings.iter() {
        let messages = of_compile.entry(&finding.document).or_default();
        messages.push(&finding.message);
    }
    let mut places = BTreeMap::new();
    let mut warnings = Vec::new();
    for after in steps.iter().filter_map(|step| step.after.as_ref()) {
        let id = after.document.id();
        let found = of_compile.get(&id).into_iter().flatten();
        let found = found.map(|message| (path_of(&after.document, message), (*message).to_owned()));
        for (path, message) in found.chain(missing_backends(&after.document, mesh)) {
            let mut warning = after.problem(format!("{id}: {message}"));
            if let Some((line, column)) = place(&mut places, files, after, &path) {
                (warning.line, warning.column) = (line as u32, column as u32);
            }
            warning.path = path;
            warnings.push(warning);
        }
    }
    warnings
}

/// Trees are built for files with warnings only, once each.
fn place(
    places: &mut BTreeMap<String, Option<Places>>,
    files: &[File],
    after: &Admitted,
    path: &str,
) -> Option<(usize, usize)> {
    let of_file = || {
        let file = files.iter().find(|file| file.name == after.file)?;
        Some(Places::of(&file.text))
    };
    let places = places.entry(after.file.clone()).or_insert_with(of_file);
    places.as_ref()?.find(after.line as usize, path)
}

/// The field that a finding speaks of, by the Service it names.
fn path_of(document: &Document, message: &str) -> String {
    let names =
        |service: &phalanx_model::ServiceName| message.contains(&format!("Service {service} "));
    let indexed = |list: &str, index: Option<usize>| {
        index.map_or_else(
            || "metadata.name".to_owned(),
            |i| format!("spec.{list}[{i}]"),
        )
    };
    match document {
        Document::Route(route) => {
            let at_gateways: Vec<usize> = route.gateways.iter().map(|p| p.index).collect();
            let services = (0..).filter(|index| !at_gateways.contains(index));
            let mut services = route.parents.iter().zip(services);
            let service = services.find(|(p, _)| names(&p.service));
            let index = service.map(|(_, index)| index);
            indexed(
                "parentRefs",
                index.or_else(|| parent(&route.gateways, message)),
            )
        }
        Document::StreamRoute(route) => {
            let backend = |b: &StreamBackend| names(&b.service) && message.contains("backend ");
            if let Some(index) = route.backends.iter().position(backend) {
                return format!("spec.rules[0].backendRefs[{index}]");
            }
            let at_gateways: Vec<usize> = route.gateways.iter().map(|p| p.index).collect();
            let services = (0..).filter(|index| !at_gateways.contains(index));
            let mut services = route.parents.iter().zip(services);
            let service = services.find(|(p, _)| names(&p.service));
            let index = service.map(|(_, index)| index);
            indexed(
                "parentRefs",
                index.or_else(|| parent(&route.gateways, message)),
            )
        }
        Document::BackendPolicy(policy) => {
            let index = policy
                .targets
                .iter()
                .position(|target| message.ends_with(&format!("Service {target}")));
            indexed("targetRefs", index)
        }
        Document::AuthorizationPolicy(AuthorizationPolicy { targets, .. })
        | Document::PeerAuthentication(PeerAuthentication { targets, .. }) => {
            let named = |target: &ServiceName| {
                names(target) || message.ends_with(&format!("Service {target}"))
            };
            indexed("targetRefs", targets.iter().position(named))
        }
        Document::TranscodingPolicy(policy) => {
            indexed("targetRefs", policy.targets.iter().position(names))
        }
        _ => "metadata.name".to_owned(),
    }
}

/// The parent that is a Gateway which a finding speaks of.
fn parent(gateways: &[GatewayRef], message: &str) -> Option<usize> {
    let named = |p: &&GatewayRef| message.contains(&format!("Gateway {} ", p.gateway));
    gateways.iter().find(named).map(|p| p.index)
}

/// None where there is such a port.
fn lacks(mesh: &Mesh, service: &ServiceName, port: u16) -> Option<String> {
    if mesh.catalog.port(service, port).is_some() {
        return None;
    }
    Some(match mesh.catalog.services.contains_key(service) {
        true => format!("backend Service {service} has no port {port}"),
        false => format!("backend Service {service} does not exist (yet)"),
    })
}

/// Each missing port of a Service once.
fn missing_backends(document: &Document, mesh: &Mesh) -> Vec<(String, String)> {
    let mut missing = BTreeMap::new();
    if let Document::StreamRoute(route) = document {
        for (index, backend) in route.backends.iter().enumerate() {
            let (service, port) = (&backend.service, backend.port);
            if let Some(lacks) = lacks(mesh, service, port) {
                let path = format!("spec.rules[0].backendRefs[{index}]");
                let text = match route.kind {
                    Kind::UdpRoute => format!("{lacks}: its share of datagrams is dropped"),
                    _ => format!("{lacks}: its share of connections is closed"),
                };
                missing.entry((service, port)).or_insert((path, text));
            }
        }
    }
    let Document::Route(route) = document else {
        return missing.into_values().collect();
    };
    for (rule, of_rule) in route.rules.iter().enumerate() {
        for (index, backend) in of_rule.backends.iter().enumerate() {
            let (service, port) = (&backend.service, backend.port);
            let Some(lacks) = lacks(mesh, service, port) else {
                continue;
            };
            let path = format!("spec.rules[{rule}].backendRefs[{index}]");
            let text = format!("{lacks}: its share is answered with 500 `invalid_backend`");
            missing.entry((service, port)).or_insert((path, text));
        }
    }
    missing.into_values().collect()
}
