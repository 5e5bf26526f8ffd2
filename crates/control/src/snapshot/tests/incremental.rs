//! Whatever changes, a mesh that followed the changes is the mesh that is compiled from nothing.

use std::collections::BTreeMap;

use phalanx_xds::Kind;
use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::world::record::{document_key, instance_key};
use crate::world::rollout::{MirrorShare, Overlay, RolloutRecord, rollout_key, subject};
use crate::world::{Fold, Stored};

/// What is put or deleted, by small numbers that name services, versions and places.
#[derive(Clone, Debug)]
pub enum Step {
    Service {
        name: u8,
        selector: u8,
        ports: u8,
    },
    Slice {
        name: u8,
        service: u8,
        ready: bool,
    },
    Route {
        name: u8,
        grpc: bool,
        parents: BTreeMap<u8, bool>,
        backends: Vec<u8>,
        created: u64,
    },
    Policy {
        name: u8,
        targets: Vec<u8>,
        created: u64,
    },
    Instance {
        service: u8,
        id: u8,
        app: u8,
        version: u8,
        zone: u8,
        tcp: bool,
        mutual: bool,
    },
    Guard {
        name: u8,
        targets: Vec<u8>,
        from: u8,
    },
    /// Of a namespace without targets; of the mesh where it is the third.
    Peers {
        name: u8,
        targets: Vec<u8>,
        mode: u8,
        port: bool,
        created: u64,
    },
    /// Of the mesh where it is the third.
    Colours {
        name: u8,
        colour: u8,
        selector: u8,
        refuses: bool,
        edge: bool,
        created: u64,
    },
    Rollout {
        name: u8,
        route: u8,
        grpc: bool,
        stable: u8,
        canary: u8,
        matches: bool,
        created: u64,
    },
    /// How far such a Rollout is.
    Led {
        of: Box<Step>,
        weight: u32,
        mirror: bool,
        lane: bool,
    },
    /// Of what one of these put, if it did.
    Delete(Box<Step>),
    Damage(Box<Step>),
}

const NAMESPACES: [&str; 2] = ["default", "other"];

/// `(namespace, name)`
fn named(number: u8) -> (&'static str, String) {
    (
        NAMESPACES[usize::from(number % 2)],
        format!("s{}", number / 2),
    )
}

pub fn step() -> impl Strategy<Value = Step> {
    let created = || 1..4_u64;
    let put = prop_oneof![
        2 => (0..6_u8, 0..5_u8, 0..4_u8)
            .prop_map(|(name, selector, ports)| Step::Service { name, selector, ports }),
        1 => (0..3_u8, 0..6_u8, any::<bool>())
            .prop_map(|(name, service, ready)| Step::Slice { name, service, ready }),
        2 => (0..4_u8, any::<bool>(), prop::collection::btree_map(0..6_u8, any::<bool>(), 1..3), prop::collection::vec(0..6_u8, 1..3), created())
            .prop_map(|(name, grpc, parents, backends, created)| Step::Route { name, grpc, parents, backends, created }),
        1 => (0..4_u8, prop::collection::vec(0..6_u8, 1..3), created())
            .prop_map(|(name, targets, created)| Step::Policy { name, targets, created }),
        4 => (0..6_u8, 0..4_u8, 0..3_u8, 0..3_u8, 0..3_u8, any::<bool>(), any::<bool>())
            .prop_map(|(service, id, app, version, zone, tcp, mutual)| Step::Instance { service, id, app, version, zone, tcp, mutual }),
        1 => (0..4_u8, prop::collection::vec(0..6_u8, 1..3), 0..6_u8)
            .prop_map(|(name, targets, from)| Step::Guard { name, targets, from }),
        2 => (0..6_u8, prop::collection::vec(0..6_u8, 0..3), 0..3_u8, any::<bool>(), created())
            .prop_map(|(name, targets, mode, port, created)| Step::Peers { name, targets, mode, port, created }),
        1 => (0..6_u8, 0..2_u8, 0..3_u8, any::<bool>(), any::<bool>(), created())
            .prop_map(|(name, colour, selector, refuses, edge, created)| Step::Colours { name, colour, selector, refuses, edge, created }),
    ];
    let rollout = (
        0..4_u8,
        0..4_u8,
        any::<bool>(),
        0..6_u8,
        1..6_u8,
        any::<bool>(),
        created(),
    )
        .prop_map(
            |(name, route, grpc, stable, other, matches, created)| Step::Rollout {
                name,
                route,
                grpc,
                stable,
                canary: (stable + other) % 6,
                matches,
                created,
            },
        );
    let led = (rollout.clone(), 0..=100_u32, any::<bool>(), any::<bool>()).prop_map(
        |(of, weight, mirror, lane)| Step::Led {
            of: Box::new(of),
            weight,
            mirror,
            lane,
        },
    );
    let put = prop_oneof![10 => put, 1 => rollout, 1 => led];
    (put, 0..10_u8).prop_map(|(put, fate)| match fate {
        0..=2 => Step::Delete(Box::new(put)),
        3 => Step::Damage(Box::new(put)),
        _ => put,
    })
}

impl Step {
    pub fn stored(&self, revision: u64) -> Stored {
        let whole = |step: &Step| step.stored(revision);
        match self {
            Self::Delete(step) => Stored {
                value: None,
                ..whole(step)
            },
            Self::Damage(step) => Stored {
                value: Some(b"{".to_vec()),
                ..whole(step)
            },
            Self::Instance { .. } => self.instance(revision),
            Self::Led { .. } => self.led(revision),
            _ => self.document(revision),
        }
    }

    fn instance(&self, revision: u64) -> Stored {
        let Self::Instance {
            service,
            id,
            app,
            version,
            zone,
            tcp,
            mutual,
        } = self
        else {
            unreachable!("asked of an instance only")
        };
        let (namespace, name) = named(*service);
        let address = format!("10.0.{service}.{id}:15006");
        let mut made = instance(&name, &format!("i{id}"), &address, &[("http", 8080)]);
        made.id.service.namespace = namespace.to_owned();
        made.zone = ["", "az1", "az2"][usize::from(*zone)].to_owned();
        made.mutual_tls = *mutual;
        made.labels.insert("app".into(), format!("s{app}"));
        made.labels.insert("version".into(), format!("v{version}"));
        if *version == 0 {
            made.labels.remove("app");
        }
        if *tcp {
            made.ports[0].protocol = phalanx_model::instance::Protocol::Tcp;
        }
        let stored = Fixture::default().with(made.clone()).stored();
        Stored {
            key: instance_key(&made.id),
            value: stored[0].value.clone(),
            revision,
        }
    }

    fn led(&self, revision: u64) -> Stored {
        let Self::Led {
            of,
            weight,
            mirror,
            lane,
        } = self
        else {
            unreachable!("asked of a rollout's record only")
        };
        let parsed = phalanx_model::manifest::parse("x", &of.yaml(), "default");
        let document = parsed.into_result().unwrap().remove(0).document;
        let phalanx_model::document::Document::Rollout(rollout) = document else {
            unreachable!("made of a Rollout")
        };
        let record = RolloutRecord {
            subject: subject(&rollout),
            overlay: Overlay {
                weight: *weight,
                mirror: mirror.then_some(MirrorShare {
                    per_million: 100_000,
                    compare: false,
                }),
                lane: lane.then(|| "dev".to_owned()),
            },
            ..RolloutRecord::default()
        };
        Stored {
            key: rollout_key(&rollout.meta.namespace, &rollout.meta.name),
            value: Some(serde_json::to_vec(&record).unwrap()),
            revision,
        }
    }

    fn document(&self, revision: u64) -> Stored {
        let text = self.yaml();
        let made = Fixture::yaml(&text).stored().remove(0);
        let mut record: Value = serde_json::from_slice(&made.value.unwrap()).unwrap();
        if let Self::Route { created, .. }
        | Self::Policy { created, .. }
        | Self::Peers { created, .. }
        | Self::Colours { created, .. }
        | Self::Rollout { created, .. } = self
        {
            record["created"] = (*created).into();
        }
        let parsed = phalanx_model::manifest::parse("x", &text, "default");
        let id = parsed.into_result().unwrap()[0].document.id();
        Stored {
            key: document_key(&id),
            value: Some(serde_json::to_vec(&record).unwrap()),
            revision,
        }
    }

    fn yaml(&self) -> String {
        let meta = |number: u8| {
            let (namespace, name) = named(number);
            format!("metadata: {{name: {name}, namespace: {namespace}}}")
        };
        let refs = |number: u8| {
            let (namespace, name) = named(number);
            format!("name: {name}, namespace: {namespace}")
        };
        match self {
            Self::Service {
                name,
                selector,
                ports,
            } => {
                let selector = [
                    "{app: s0}",
                    "{app: s1, version: v1}",
                    "{version: v2}",
                    "{}",
                    "{app: s2}",
                ][usize::from(*selector)];
                let ports = [
                    "[{name: http, port: 80, targetPort: 8080}]",
                    "[{name: http, port: 80}, {name: admin, port: 90}]",
                    "[{name: raw, port: 80, appProtocol: tcp}]",
                    "[{name: grpc, port: 90, appProtocol: grpc}]",
                ][usize::from(*ports)];
                format!(
                    "apiVersion: v1\nkind: Service\n{}\nspec:\n  selector: {selector}\n  ports: {ports}\n",
                    meta(*name)
                )
            }
            Self::Slice {
                name,
                service,
                ready,
            } => {
                let (namespace, of) = named(*service);
                format!(
                    "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: e{name}, namespace: {namespace}, labels: {{kubernetes.io/service-name: {of}}}}}\naddressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints: [{{addresses: [10.9.0.{name}], conditions: {{ready: {ready}}}}}]\n"
                )
            }
            Self::Route {
                name,
                grpc,
                parents,
                backends,
                ..
            } => {
                let parents: String = parents
                    .iter()
                    .map(|(parent, port)| {
                        let port = if *port { ", port: 80" } else { "" };
                        format!("{{group: \"\", kind: Service, {}{port}}}, ", refs(*parent))
                    })
                    .collect();
                let backends: String = backends
                    .iter()
                    .map(|backend| format!("{{{}, port: 80}}, ", refs(*backend)))
                    .collect();
                let kind = if *grpc { "GRPCRoute" } else { "HTTPRoute" };
                format!(
                    "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\n{}\nspec:\n  parentRefs: [{parents}]\n  rules:\n  - backendRefs: [{backends}]\n",
                    meta(*name)
                )
            }
            Self::Policy { name, targets, .. } => {
                let (namespace, _) = named(*name);
                let targets = targeted(targets);
                format!(
                    "apiVersion: phalanx.dev/v1alpha1\nkind: BackendPolicy\nmetadata: {{name: p{name}, namespace: {namespace}}}\nspec:\n  targetRefs: [{targets}]\n  circuitBreaker: {{maxConnections: {}}}\n",
                    u32::from(*name) + 1
                )
            }
            Self::Guard {
                name,
                targets,
                from,
            } => {
                let (namespace, _) = named(*name);
                let (of, caller) = named(*from);
                format!(
                    "apiVersion: phalanx.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: g{name}, namespace: {namespace}}}\nspec:\n  targetRefs: [{}]\n  action: {}\n  rules: [{{from: [{{services: [{of}/{caller}]}}]}}]\n",
                    targeted(targets),
                    if name % 4 < 2 { "Allow" } else { "Deny" }
                )
            }
            Self::Peers {
                name,
                targets,
                mode,
                port,
                ..
            } => {
                let namespace = match name {
                    5 => "phalanx-system",
                    _ => named(*name).0,
                };
                let mode = ["Strict", "Permissive", "\"Off\""][usize::from(*mode)];
                let mut spec = format!("  mtls: {{mode: {mode}}}\n");
                if *name != 5 && !targets.is_empty() {
                    spec.push_str(&format!("  targetRefs: [{}]\n", targeted(targets)));
                    if *port {
                        spec.push_str("  ports: [{port: 8080, mode: \"Off\"}]\n");
                    }
                }
                format!(
                    "apiVersion: phalanx.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {{name: a{name}, namespace: {namespace}}}\nspec:\n{spec}"
                )
            }
            Self::Colours {
                name,
                colour,
                selector,
                refuses,
                edge,
                ..
            } => {
                let namespace = match name {
                    5 => "phalanx-system",
                    _ => named(*name).0,
                };
                let selectors = ["version: v1", "version: v2, app: s1", "zone: az1"];
                let selector = selectors[usize::from(*selector)];
                let refused = match (refuses, name) {
                    (true, 5) => ", fallback: Refuse",
                    (true, _) => ", fallback: Refuse, services: [s0]",
                    (false, _) => "",
                };
                let edge = if *edge {
                    "  env: {default: prod}\n"
                } else {
                    ""
                };
                format!(
                    "apiVersion: phalanx.dev/v1alpha1\nkind: ColourPolicy\nmetadata: {{name: c{name}, namespace: {namespace}}}\nspec:\n{edge}  lanes: [{{colour: c{colour}, selector: {{{selector}}}{refused}}}]\n"
                )
            }
            Self::Rollout {
                name,
                route,
                grpc,
                stable,
                canary,
                matches,
                ..
            } => {
                // In the route's namespace.
                let (namespace, of) = named(*route);
                let kind = if *grpc { "GRPCRoute" } else { "HTTPRoute" };
                let boundary = if *matches { "match" } else { "none" };
                format!(
                    "apiVersion: phalanx.dev/v1alpha1\nkind: Rollout\nmetadata: {{name: o{name}, namespace: {namespace}}}\nspec:\n  targetRef: {{kind: {kind}, name: {of}}}\n  stable: {{{}}}\n  canary: {{{}}}\n  boundary: {boundary}\n  steps: [{{weight: 5, for: 1s}}]\n",
                    refs(*stable),
                    refs(*canary)
                )
            }
            Self::Led { .. } | Self::Instance { .. } | Self::Delete(_) | Self::Damage(_) => {
                unreachable!("asked of a document only")
            }
        }
    }
}

fn targeted(targets: &[u8]) -> String {
    let targets: BTreeSet<String> = targets.iter().map(|t| named(*t).1).collect();
    let target = |target: &String| format!("{{group: \"\", kind: Service, name: {target}}}, ");
    targets.iter().map(target).collect()
}

/// Sidecars of the instances that there may be.
fn sidecars() -> impl Iterator<Item = Node> {
    (0..6_u8).flat_map(|service| {
        let (namespace, name) = named(service);
        (0..2).map(move |id| Node {
            service: ServiceName::new(namespace, name.clone()),
            instance: format!("i{id}"),
            ..node()
        })
    })
}

fn nodes() -> impl Iterator<Item = Node> {
    ["default", "other", "none"]
        .into_iter()
        .map(|namespace| Node {
            service: ServiceName::new(namespace, "match"),
            ..node()
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]
    #[test]
    fn what_followed_all_changes_is_what_is_made_from_nothing(
        batches in prop::collection::vec(prop::collection::vec(step(), 1..6), 1..12),
    ) {
        let mut fold = Fold::boot(Vec::new(), 0);
        let mut compiler = Compiler::default();
        let mut own: Vec<_> = sidecars().map(|node| (Own::default(), node)).collect();
        let mut secure = node();
        secure.tls.has_identity = true;
        for (at, batch) in batches.iter().enumerate() {
            for step in batch {
                fold.apply(step.stored(at as u64 + 1));
            }
            let world = fold.world();
            let followed = compiler.compile(world.clone());
            let fresh = Compiler::default().compile(world);
            prop_assert_eq!(&followed.mesh, &fresh.mesh);
            for (own, node) in &mut own {
                let held = own.listener(&followed, node).cloned();
                let afresh = Own::default().listener(&fresh, node).cloned();
                prop_assert_eq!(held, afresh, "inbound of {} {}", node.service, node.instance);
            }
            for node in nodes().chain([secure.clone()]) {
                let listeners = Published::listeners(&node);
                let one = followed.snapshot(&node, &listeners, None);
                let other = fresh.snapshot(&node, &listeners, None);
                prop_assert!(one.same_content(&other), "snapshot of {}", node.service);
                let table = fresh.mesh.rules.table(&node.service.namespace, &fresh.mesh.catalog);
                let whole = encode_table(&table);
                if node.service.namespace != "none" && !table.hosts.is_empty() {
                    let near = fresh.mesh.catalog.services.keys().any(|s| s.namespace == node.service.namespace);
                    let part = one.get(Kind::Routes, OUTBOUND);
                    prop_assert!(!near || part == whole.get(OUTBOUND));
                }
            }
        }
    }
}

pub fn cases() -> u32 {
    if std::env::var_os("PHALANX_SOAK").is_some() {
        2000
    } else {
        48
    }
}

#[test]
fn a_change_costs_what_changed_not_the_mesh() {
    let services = |count: u32| {
        (0..count).fold(Fixture::default(), |fixture, n| {
            let address = format!("10.1.{}.{}:15006", n / 250, n % 250);
            let name = format!("s{n}");
            fixture.and_yaml(&service(&name, 80)).with(instance(
                &name,
                "i1",
                &address,
                &[("", 8080)],
            ))
        })
    };
    let fixture = services(400);
    let mut compiler = Compiler::default();
    let first = compiler.compile(Arc::new(fixture.world()));
    assert_eq!(compiler.changes().encoded, 400 * 3);
    let mut fold = Fold::boot(fixture.stored(), 900);
    let same = compiler.compile(fold.world());
    assert_eq!((compiler.changes().encoded, same.revision), (0, 900));
    let node = node();
    let listeners = Published::listeners(&node);
    first.snapshot(&node, &listeners, None);

    let more = Fixture::default().with(instance("s7", "i2", "10.2.0.1:15006", &[("", 8080)]));
    let change = |stored: &Stored, revision| Stored {
        revision,
        ..stored.clone()
    };
    fold.apply(change(&more.stored()[0], 901));
    let one = compiler.compile(fold.world());
    assert_eq!(compiler.changes().encoded, 1, "its endpoints");

    let split = "  - backendRefs: [{name: s1, port: 80}, {name: s2, port: 80}]";
    let route = Fixture::yaml(&http_route("r", "s3", split));
    fold.apply(change(&route.stored()[0], 902));
    let two = compiler.compile(fold.world());
    assert_eq!(
        compiler.changes().encoded,
        2,
        "its host, and the table that was asked for"
    );
    let (one, two) = (
        one.snapshot(&node, &listeners, None),
        two.snapshot(&node, &listeners, None),
    );
    assert!(one.shares(Kind::Cluster, &two) && one.shares(Kind::Endpoints, &two));
    assert!(!one.shares(Kind::Routes, &two));
}

#[test]
fn three_hundred_nodes_share_one_encoding_of_twenty_thousand_instances() {
    let mut fixture = Fixture::default();
    for n in 0..20_000_u32 {
        let address = format!("10.{}.{}.{}:15006", n / 62_500, n / 250 % 250, n % 250);
        let name = format!("s{}", n / 200);
        fixture = fixture.with(instance(&name, &format!("i{n}"), &address, &[("", 8080)]));
    }
    let mut compiler = Compiler::default();
    let mut fold = Fold::boot(fixture.stored(), 20_000);
    compiler.compile(fold.world());
    assert_eq!(
        compiler.changes().encoded,
        300,
        "cluster, endpoints and host of each"
    );

    let left = Stored {
        value: None,
        revision: 20_001,
        ..fixture.stored()[777].clone()
    };
    fold.apply(left);
    let published = compiler.compile(fold.world());
    assert_eq!(compiler.changes().encoded, 1, "one set of endpoints");
    let mut bodies = BTreeSet::new();
    for n in 0..300 {
        let node = Node {
            id: format!("default/match/m{n}"),
            ..node()
        };
        let snapshot = published.snapshot(&node, &Resources::default(), None);
        for kind in Kind::ALL {
            bodies.extend(
                snapshot
                    .iter(kind)
                    .map(|encoded| encoded.body.as_ptr() as usize),
            );
        }
    }
    assert_eq!(
        bodies.len(),
        100 + 100 + 1,
        "clusters, endpoints and one table"
    );
}
