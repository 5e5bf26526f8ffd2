//! PeerAuthentication: whether those who call have to show who they are; of Services, of a namespace, or of the whole mesh.

use super::backend::{TARGETS_MAX, targets};
use super::cursor::At;
use crate::document::{Meta, PeerAuthentication};
use crate::identity::SYSTEM_NAMESPACE;
use crate::resource::MtlsMode;

const PORTS_MAX: usize = 32;

const MODES: [(&str, MtlsMode); 3] = [
    ("Strict", MtlsMode::Strict),
    ("Permissive", MtlsMode::Permissive),
    ("Off", MtlsMode::Off),
];

pub(super) fn policy(spec: &At<'_>, meta: Meta) -> Option<PeerAuthentication> {
    let mut fields = spec.fields()?;
    fields.later(&["selector"]);
    if let Some(at) = fields.get("portLevelMtls") {
        at.refuse_with::<()>(
            "Istio's `portLevelMtls` is not read",
            "write `ports: [{port: 9000, mode: Strict}]`",
        );
    }
    let targets = fields.get("targetRefs").map(|at| {
        let items = at.items(TARGETS_MAX);
        if items.is_empty() {
            at.refuse_with::<()>(
                "an empty list of targets",
                "leave it out for the whole namespace",
            );
        }
        if meta.namespace == SYSTEM_NAMESPACE {
            at.refuse_with::<()>(
                format!("in namespace `{SYSTEM_NAMESPACE}` it holds for the whole mesh"),
                "leave it out, or write it in the target's namespace",
            );
        }
        targets(&items, &meta)
    });
    let mtls = fields.get("mtls");
    let mode = mtls
        .as_ref()
        .and_then(|at| at.fields()?.need("mode"))
        .and_then(|at| mode(&at));
    let ports_at = fields.get("ports");
    if let Some(at) = ports_at.as_ref().filter(|_| targets.is_none()) {
        at.refuse_with::<()>(
            "ports are those of an application, so they need targets",
            "write `targetRefs: [{kind: Service, name: …}]`",
        );
    }
    if mtls.is_none() && ports_at.is_none() {
        spec.refuse_with::<()>(
            "it says nothing",
            "write `mtls: {mode: Strict}`, or `ports`",
        );
    }
    let mut ports = Vec::new();
    for at in ports_at.iter().flat_map(|at| at.items(PORTS_MAX)) {
        let Some((port, mode)) = port(&at) else {
            continue;
        };
        if ports.iter().any(|(known, _)| *known == port) {
            at.refuse::<()>(format!("port {port} stands twice in this list"));
        }
        ports.push((port, mode));
    }
    Some(PeerAuthentication {
        meta,
        targets: targets.unwrap_or_default(),
        mode,
        ports,
    })
}

fn port(at: &At<'_>) -> Option<(u16, MtlsMode)> {
    let mut fields = at.fields()?;
    let port = fields.need("port").and_then(|at| at.port());
    let mode = fields.need("mode").and_then(|at| mode(&at));
    port.zip(mode)
}

/// Istio's words are told apart by case only, so they get a hint by themselves; `DISABLE` and `UNSET` do not.
fn mode(at: &At<'_>) -> Option<MtlsMode> {
    match at.text()? {
        "DISABLE" | "Disable" | "Disabled" => {
            at.refuse_with("this mode is called `Off` here", "write `mode: Off`")
        }
        "UNSET" | "Unset" => at.refuse_with("what is not said is inherited", "leave it out"),
        _ => at.choose(&MODES, &[]),
    }
}
