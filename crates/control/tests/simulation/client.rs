//! A sidecar of the simulation: the shipped registration and the shipped ADS client, on a link of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use phalanx_client::backoff::Backoff;
use phalanx_client::registry::Registration;
use phalanx_model::instance::{Labels, Protocol};
use phalanx_model::{Instance, InstanceId, InstancePort, ServiceName};
use phalanx_proto::envoy::config::core::v3::Node;
use phalanx_proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use phalanx_xds::Kind;
use phalanx_xds::client::Client;
use phalanx_xds::decode;
use prost_types::{Struct, Value, value};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::network::{Link, Network};
use crate::oracle::{Oracle, TTL};

pub struct Sidecar {
    pub id: String,
    pub link: Link,
    /// Held by name and version, of all kinds, as of its last response.
    pub held: Arc<Mutex<Held>>,
    pub registration: Registration,
    tasks: Vec<JoinHandle<()>>,
}

#[derive(Default)]
pub struct Held {
    pub versions: BTreeMap<(&'static str, String), String>,
    pub responses: u64,
}

impl Sidecar {
    pub fn start(network: &Network, oracle: &Oracle, service: &str, id: &str, seed: u64) -> Self {
        oracle.born(id);
        let link = Link::new();
        let channel = network.channel(&link, seed);
        let instance = instance(service, id, seed);
        let registration = Registration::spawn(channel.clone(), instance, TTL);
        registration.set_ready(true);
        let held = Arc::default();
        let tasks = vec![
            tokio::spawn(beats(&registration, oracle.clone(), id.to_owned())),
            tokio::spawn(discover(
                channel,
                node(service, id),
                Arc::clone(&held),
                oracle.clone(),
            )),
        ];
        Self {
            id: id.to_owned(),
            link,
            held,
            registration,
            tasks,
        }
    }

    /// Whether it has these clusters, an endpoint set for each, and its routes.
    pub fn holds(&self, clusters: &[String]) -> bool {
        let held = self.held.lock().unwrap();
        let names = |kind: Kind| {
            let of_kind = held
                .versions
                .keys()
                .filter(move |(k, _)| *k == kind.as_str());
            of_kind.map(|(_, name)| name)
        };
        names(Kind::Cluster).eq(clusters)
            && names(Kind::Endpoints).eq(clusters)
            && names(Kind::Routes).count() == 1
    }

    /// What everybody of a namespace holds alike, by kind, name and version.
    pub fn shared(&self) -> Vec<((&'static str, String), String)> {
        let held = self.held.lock().unwrap();
        let shared = held.versions.iter().filter(|((kind, _), _)| *kind != "LDS");
        shared
            .map(|(key, version)| (key.clone(), version.clone()))
            .collect()
    }

    /// A claim in one of its tasks failed: they never end by themselves.
    pub fn is_broken(&self) -> bool {
        self.tasks.iter().any(JoinHandle::is_finished)
    }

    /// Without a word.
    pub fn kill(self, oracle: &Oracle) {
        oracle.leaves(&self.id);
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Notes when the control plane last said that it has it.
fn beats(
    registration: &Registration,
    oracle: Oracle,
    id: String,
) -> impl Future<Output = ()> + use<> {
    let (counts, states) = (registration.counts().clone(), registration.states());
    let mut last = 0;
    async move {
        loop {
            let now = counts.registrations() + counts.heartbeats();
            // A control plane that does not know it answers, too; then it is not registered any more.
            if now > last && states.borrow().is_registered() {
                oracle.beat(&id);
            }
            last = now;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Streams, one after the other, for ever.
async fn discover(channel: Channel, node: Node, held: Arc<Mutex<Held>>, oracle: Oracle) {
    let mut client = Client::new(node);
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
    let mut tables: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    loop {
        let _ = stream(&channel, &mut client, &mut tables, &held, &oracle).await;
        tokio::time::sleep(backoff.wait()).await;
    }
}

async fn stream(
    channel: &Channel,
    client: &mut Client,
    tables: &mut BTreeMap<String, BTreeSet<String>>,
    held: &Mutex<Held>,
    oracle: &Oracle,
) -> Result<(), tonic::Status> {
    let (requests, outgoing) = mpsc::channel(64);
    for request in client.connect() {
        let _ = requests.try_send(request);
    }
    let mut ads = AggregatedDiscoveryServiceClient::new(channel.clone());
    let opening = ads.delta_aggregated_resources(ReceiverStream::new(outgoing));
    let opened = tokio::time::timeout(Duration::from_secs(10), opening).await;
    let mut responses = opened
        .map_err(|_| tonic::Status::deadline_exceeded(""))??
        .into_inner();
    while let Some(response) = responses.message().await? {
        if let Ok(revision) = response.system_version_info.parse() {
            oracle.shown(revision);
        }
        let update = client.on_response(response).unwrap();
        let mut listens = BTreeSet::new();
        if update.kind == Kind::Routes {
            for (name, _, body) in &update.upserts {
                let table = decode::routes(name, body).unwrap();
                tables.insert(name.clone(), clusters(&table));
            }
            update.removed.iter().for_each(|name| {
                tables.remove(name);
            });
        }
        if update.kind == Kind::Listener {
            listens = update
                .upserts
                .iter()
                .map(|_| "outbound".to_owned())
                .collect();
        }
        let mut answers = client.finish(update.token, Ok(()));
        if !listens.is_empty() {
            answers.extend(client.subscribe(Kind::Routes, listens));
        }
        let there: BTreeSet<&str> = client.held(Kind::Cluster).map(|(name, _)| name).collect();
        for (table, named) in &*tables {
            let missing = named.iter().find(|name| !there.contains(name.as_str()));
            assert_eq!(
                missing, None,
                "{table} routes to a cluster that is not there"
            );
        }
        {
            let mut held = held.lock().unwrap();
            held.responses += 1;
            let all = Kind::ALL.into_iter().flat_map(|kind| {
                let of_kind = client.held(kind);
                of_kind.map(move |(n, v)| ((kind.as_str(), n.to_owned()), v.to_owned()))
            });
            held.versions = all.collect();
        }
        for answer in answers {
            let _ = requests.try_send(answer);
        }
    }
    Ok(())
}

fn clusters(table: &phalanx_model::resource::RouteTable) -> BTreeSet<String> {
    use phalanx_model::resource::Action;
    let rules = table.hosts.iter().flat_map(|host| &host.rules);
    rules
        .filter_map(|rule| match &rule.action {
            Action::Forward(forward) => Some(&forward.backends),
            _ => None,
        })
        .flatten()
        .filter_map(|backend| backend.cluster.as_ref())
        .map(ToString::to_string)
        .collect()
}

fn instance(service: &str, id: &str, seed: u64) -> Instance {
    let host = 1 + (seed % 250) as u8;
    let port = InstancePort {
        name: String::new(),
        number: 9000,
        address: format!("127.1.0.{host}:15006").parse().unwrap(),
        protocol: Protocol::Http1,
    };
    let service = ServiceName::new("default", service);
    let mut labels = Labels::default();
    for (key, value) in [
        ("service", &*service.name),
        ("namespace", "default"),
        ("app", &*service.name),
    ] {
        labels.insert(key.into(), value.into());
    }
    Instance {
        id: InstanceId {
            service,
            id: id.into(),
        },
        labels,
        ports: vec![port],
        zone: String::new(),
        weight: 1,
        proxy_admin: String::new(),
        mutual_tls: false,
    }
}

fn node(service: &str, id: &str) -> Node {
    let text = |text: &str| Value {
        kind: Some(value::Kind::StringValue(text.to_owned())),
    };
    let fields = [
        ("service", service),
        ("namespace", "default"),
        ("instance", id),
        ("outbound", "127.0.0.1:15001"),
    ];
    Node {
        id: format!("default/{service}/{id}"),
        cluster: service.to_owned(),
        metadata: Some(Struct {
            fields: fields
                .map(|(key, value)| (key.to_owned(), text(value)))
                .into(),
        }),
        user_agent_name: "phalanx".into(),
        ..Node::default()
    }
}
