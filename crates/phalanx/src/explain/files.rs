//! A mesh made of files alone: documents and instances in, one sidecar's part of it out, by the control plane's own
//! compiler and the sidecar's own plan.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use phalanx_client::api::File;
use phalanx_control::snapshot::{Asks, Compiler, DEMAND, Demand, Node, Own, Published};
use phalanx_control::world::record::{DocumentRecord, InstanceRecord, document_key, instance_key};
use phalanx_control::world::{Fold, Stored};
use phalanx_model::document::{Document, DocumentId, Service, TargetPort};
use phalanx_model::identity::TrustDomain;
use phalanx_model::instance::{Labels, Protocol};
use phalanx_model::manifest::{self, Places, ProblemKind};
use phalanx_model::resource::RuleMatch;
use phalanx_model::{Instance, InstanceId, InstancePort, ServiceName};
use phalanx_proxy::explain::Supposed;
use phalanx_proxy::plan::{AppPort, Bootstrap};
use phalanx_xds::{Kind, Snapshot};

use super::lanes::Known;
use crate::exit::Failure;
use crate::files;

/// Documents with their places.
#[derive(Default)]
pub struct Files {
    texts: Vec<File>,
    documents: BTreeMap<DocumentId, Written>,
}

struct Written {
    document: Document,
    json: String,
    /// In [`Files::texts`].
    file: usize,
    line: usize,
}

impl Files {
    pub fn read(paths: &[PathBuf], namespace: &str) -> Result<Self, Failure> {
        let mut found = Self::default();
        let mut problems = Vec::new();
        for text in files::read_with(paths, false)? {
            let manifest = manifest::parse(&text.name, &text.text, namespace);
            problems.extend(manifest.problems);
            for parsed in manifest.documents {
                let id = parsed.document.id();
                let written = Written {
                    document: parsed.document,
                    json: parsed.json,
                    file: found.texts.len(),
                    line: parsed.line,
                };
                if found.documents.insert(id.clone(), written).is_some() {
                    return Err(Failure::refused(format!("{id} stands in two files")));
                }
            }
            found.texts.push(text);
        }
        if problems.is_empty() {
            return Ok(found);
        }
        let is_syntax = problems.iter().any(|p| p.kind == ProblemKind::Syntax);
        let told = problems.into_iter().map(crate::lint::told).collect();
        let failure = match is_syntax {
            true => Failure::file("not YAML"),
            false => {
                Failure::refused("the files have problems, so nothing of them would be in force")
            }
        };
        Err(failure.problems(told))
    }

    /// `file:line` of a rule's match, of a rule, or of a document, as far as it is known.
    pub fn rule(&self, name: &str, matches: Option<&RuleMatch>) -> Option<String> {
        let (document, place) = name.rsplit_once('/')?;
        let written = self.find(document)?;
        let Document::Route(route) = &written.document else {
            return self.place(written, "");
        };
        let index = route
            .rules
            .iter()
            .position(|rule| rule.name.as_deref() == Some(place))
            .or_else(|| place.parse().ok())?;
        let rule = route.rules.get(index)?;
        let of_match = matches.and_then(|wanted| rule.matches.iter().position(|m| m == wanted));
        let path = match of_match {
            Some(at) => format!("spec.rules[{index}].matches[{at}]"),
            None => format!("spec.rules[{index}]"),
        };
        self.place(written, &path)
    }

    pub fn policy(&self, name: &str) -> Option<String> {
        let written = self.find(name);
        let written = written.or_else(|| self.find(&format!("AuthorizationPolicy/{name}")));
        self.place(written?, "")
    }

    fn find(&self, id: &str) -> Option<&Written> {
        let mut all = self.documents.iter();
        let (_, written) = all.find(|(known, _)| known.to_string() == id)?;
        Some(written)
    }

    fn place(&self, written: &Written, path: &str) -> Option<String> {
        let file = self.texts.get(written.file)?;
        let (line, _) = Places::of(&file.text)
            .find(written.line, path)
            .unwrap_or((written.line, 1));
        Some(format!("{}:{line}", file.name))
    }

    fn services(&self) -> impl Iterator<Item = &Service> {
        let documents = self.documents.values();
        documents.filter_map(|written| match &written.document {
            Document::Service(service) => Some(service),
            _ => None,
        })
    }
}

/// The mesh as it would be.
pub struct Supposition {
    published: Published,
    instances: BTreeMap<InstanceId, Instance>,
    has_identity: bool,
    pub findings: Vec<String>,
}

impl Supposition {
    /// Without `instances`, one is supposed for each Service that selects some.
    pub fn new(files: &Files, given: Vec<Instance>, has_identity: bool) -> Result<Self, Failure> {
        let mut instances = match given.is_empty() {
            true => supposed(files),
            false => given,
        };
        for instance in &mut instances {
            instance.mutual_tls = has_identity;
        }
        let mut stored = Vec::new();
        let mut put = |key: String, value: serde_json::Result<Vec<u8>>| {
            let value = value.map_err(|e| Failure::defect(format!("cannot write {key}: {e}")))?;
            let revision = stored.len() as u64 + 1;
            stored.push(Stored {
                key,
                value: Some(value),
                revision,
            });
            Ok::<_, Failure>(())
        };
        for (id, written) in &files.documents {
            let document = serde_json::from_str(&written.json);
            let document =
                document.map_err(|e| Failure::defect(format!("cannot read {id}: {e}")))?;
            // As one apply would store them: all at once.
            let record = DocumentRecord {
                created: 1,
                updated: 1,
                generation: 1,
                document,
            };
            put(document_key(id), serde_json::to_vec(&record))?;
        }
        for instance in &instances {
            let record = InstanceRecord::new(instance, 1, u32::MAX);
            put(instance_key(&instance.id), serde_json::to_vec(&record))?;
        }
        let revision = stored.len() as u64;
        let world = Fold::boot(stored, revision).world();
        let published = Compiler::new(TrustDomain::default()).compile(world);
        let findings = published.findings.iter();
        let findings = findings.map(|finding| format!("{}: {}", finding.document, finding.message));
        Ok(Self {
            findings: findings.collect(),
            published,
            has_identity,
            instances: instances
                .into_iter()
                .map(|instance| (instance.id.clone(), instance))
                .collect(),
        })
    }

    pub fn trust_domain(&self) -> TrustDomain {
        self.published.mesh.trust_domain.clone()
    }

    /// All that are in force.
    pub fn lanes(&self, files: &Files) -> Vec<Known> {
        let all = self.published.mesh.lanes.all();
        let known = all.map(|(namespace, known)| {
            let policy = known.policy.to_string();
            let place = files.find(&policy).and_then(|of| files.place(of, ""));
            let labels = known.lane.selector.iter();
            let labels: Vec<String> = labels
                .map(|(key, value)| format!("{key}={value}"))
                .collect();
            Known {
                colour: known.lane.colour.clone(),
                namespace: namespace.to_owned(),
                policy: match place {
                    Some(place) => format!("{policy} ({place})"),
                    None => policy,
                },
                selector: Some(labels.join(",")),
            }
        });
        known.collect()
    }

    /// Of an application of `service` that calls `authority`.
    pub fn caller(&self, service: &ServiceName, authority: &str) -> Supposed {
        let node = self.node(service, "", "", "");
        let asks = [(Kind::Routes, format!("{DEMAND}{authority}"))];
        let asks: Asks = asks.into_iter().collect();
        let snapshot = Demand::of(&node).snapshot(&self.published, &node, &asks);
        Supposed::of(&self.own(&snapshot, &node), &bootstrap(service, None))
    }

    /// Of the one beside this instance; none: nobody registered it.
    pub fn callee(&self, service: &ServiceName, id: &str) -> Option<Supposed> {
        let instance = self.instance(service, id)?;
        let (service, version) = (&instance.id.service, instance.version());
        let node = self.node(service, version, &instance.zone, &instance.id.id);
        let snapshot = Demand::of(&node).snapshot(&self.published, &node, &Asks::default());
        let bootstrap = bootstrap(service, Some(instance));
        Some(Supposed::of(&self.own(&snapshot, &node), &bootstrap))
    }

    /// An endpoint's instance; a Service may stand for instances of another name.
    pub fn instance(&self, service: &ServiceName, id: &str) -> Option<&Instance> {
        let exact = InstanceId {
            service: service.clone(),
            id: id.to_owned(),
        };
        self.instances.get(&exact).or_else(|| {
            let mut all = self.instances.values();
            all.find(|i| i.id.id == id && i.id.service.namespace == service.namespace)
        })
    }

    fn own(&self, snapshot: &Snapshot, node: &Node) -> Snapshot {
        Own::default().add(snapshot, &self.published, node, None)
    }

    fn node(&self, service: &ServiceName, version: &str, zone: &str, instance: &str) -> Node {
        let mut node = Node::known(
            format!("{service}/{instance}"),
            service.clone(),
            version.to_owned(),
            instance.to_owned(),
            "phalanx".to_owned(),
        );
        node.zone = zone.to_owned();
        node.outbound = Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15001));
        node.tls.has_identity = self.has_identity;
        node
    }
}

fn bootstrap(service: &ServiceName, instance: Option<&Instance>) -> Bootstrap {
    let ports = instance.map_or(&[][..], |instance| &instance.ports);
    let app = |port: &InstancePort| AppPort {
        name: port.name.clone(),
        number: port.number,
        address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port.number),
        protocol: port.protocol,
    };
    Bootstrap {
        service: service.clone(),
        version: instance.map_or("", Instance::version).to_owned(),
        inbound: ports.iter().map(app).collect(),
        tcp: Vec::new(),
    }
}

/// One instance for all Services with the same selector.
fn supposed(files: &Files) -> Vec<Instance> {
    let mut found: BTreeMap<(String, Labels), Instance> = BTreeMap::new();
    for service in files.services().filter(|s| !s.selector.is_empty()) {
        let name = service.service_name();
        let count = found.len();
        let key = (name.namespace.clone(), service.selector.clone());
        let instance = found.entry(key).or_insert_with(|| {
            let own = service.selector.get("app").unwrap_or(&name.name);
            let own = ServiceName::new(&name.namespace, own);
            instance(own, SUPPOSED, &service.selector)
        });
        for port in &service.ports {
            let (name, number) = match &port.target {
                TargetPort::Number(number) => (String::new(), *number),
                TargetPort::Name(name) => (name.clone(), port.port),
            };
            let known = instance.ports.iter().any(|p| p.number == number);
            if !known {
                let address = address(count);
                instance.ports.push(InstancePort {
                    name,
                    number,
                    address,
                    protocol: Protocol::Auto,
                });
            }
        }
    }
    let mut all: Vec<Instance> = found.into_values().collect();
    let mut ids = BTreeMap::<ServiceName, usize>::new();
    for instance in &mut all {
        let count = ids.entry(instance.id.service.clone()).or_default();
        *count += 1;
        if *count > 1 {
            instance.id.id = format!("{SUPPOSED}-{count}");
        }
    }
    all
}

/// Of the addresses that documents may use (RFC 5737).
fn address(count: usize) -> SocketAddr {
    let [low, high] = [count % 254 + 1, count / 254 % 256].map(|n| u8::try_from(n).unwrap_or(1));
    let ip = match high {
        0 => Ipv4Addr::new(192, 0, 2, low),
        high => Ipv4Addr::new(198, 18, high, low),
    };
    SocketAddr::new(IpAddr::V4(ip), 15006)
}

fn instance(service: ServiceName, id: &str, labels: &Labels) -> Instance {
    let mut labels = labels.clone();
    let own = [
        ("service", service.name.clone()),
        ("namespace", service.namespace.clone()),
        ("app", service.name.clone()),
    ];
    for (key, value) in own {
        labels.entry(key.to_owned()).or_insert(value);
    }
    Instance {
        zone: labels.get("zone").cloned().unwrap_or_default(),
        id: InstanceId {
            service,
            id: id.to_owned(),
        },
        labels,
        ports: Vec::new(),
        weight: 1,
        proxy_admin: String::new(),
        mutual_tls: false,
    }
}

/// `[NAMESPACE/]SERVICE=IP:PORT[,LABEL=VALUE…]`: the application's port, its sidecar is at the same address.
pub fn parse_instance(text: &str, namespace: &str) -> Result<Instance, Failure> {
    let wrong = |why: &str| {
        Failure::usage(format!("--instance `{text}`: {why}"))
            .hint("such as shop=10.0.0.7:8080,version=v2")
    };
    let (name, rest) = text
        .split_once('=')
        .ok_or_else(|| wrong("no SERVICE=IP:PORT"))?;
    let (namespace, name) = name.split_once('/').unwrap_or((namespace, name));
    let service = ServiceName::parse(namespace, name).map_err(|e| wrong(&e.to_string()))?;
    let mut parts = rest.split(',');
    let address = parts.next().unwrap_or_default();
    let address: SocketAddr = address.parse().map_err(|_| wrong("no IP:PORT"))?;
    let mut labels = Labels::new();
    for part in parts {
        let (key, value) = part
            .split_once('=')
            .ok_or_else(|| wrong("no LABEL=VALUE"))?;
        labels.insert(key.to_owned(), value.to_owned());
    }
    let id = address.to_string().replace(['.', ':', '[', ']'], "-");
    let mut made = instance(service, &id, &labels);
    made.ports.push(InstancePort {
        name: String::new(),
        number: address.port(),
        address: SocketAddr::new(address.ip(), 15006),
        protocol: Protocol::Auto,
    });
    Ok(made)
}

/// Of an instance that nobody gave.
pub const SUPPOSED: &str = "supposed";
