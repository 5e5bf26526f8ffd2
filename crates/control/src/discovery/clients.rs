//! Client status (CSDS): what every node has, resource by resource, asked of its streams when somebody wants to know.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use phalanx_proto::envoy::admin::v3::{ClientResourceStatus, UpdateFailureState};
use phalanx_proto::envoy::config::core::v3 as core;
use phalanx_proto::envoy::service::status::v3 as wire;
use phalanx_proto::envoy::service::status::v3::client_config::GenericXdsConfig;
use phalanx_proto::envoy::service::status::v3::client_status_discovery_service_server::ClientStatusDiscoveryService;
use phalanx_proto::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use phalanx_proto::envoy::r#type::matcher::v3::{NodeMatcher, StringMatcher};
use phalanx_xds::server::{Delivery, Item, Session};
use tokio::sync::{Notify, oneshot};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use crate::snapshot::Node;

/// All streams that can be asked; cheap to clone.
#[derive(Clone, Default)]
pub struct Clients {
    inner: Arc<Mutex<Inner>>,
}

/// Short critical sections, never across an await.
#[derive(Default)]
struct Inner {
    next: u64,
    /// In the order in which they came.
    streams: BTreeMap<u64, Line>,
}

#[derive(Clone)]
struct Line {
    node: Arc<Identity>,
    asked: Arc<Asked>,
}

/// What waits for one stream to answer it.
struct Asked {
    /// Short critical sections, never across an await. None once the stream has ended.
    questions: Mutex<Option<Vec<Question>>>,
    bell: Notify,
}

/// The stream's end of it.
pub struct Questions(Arc<Asked>);

impl Questions {
    /// The next one, whenever it comes.
    pub async fn next(&self) -> Question {
        loop {
            let bell = self.0.bell.notified();
            if let Some(question) = self.0.questions().as_mut().and_then(Vec::pop) {
                return question;
            }
            bell.await;
        }
    }
}

impl Drop for Questions {
    fn drop(&mut self) {
        *self.0.questions() = None;
    }
}

impl Asked {
    /// False: too many wait already. Whoever asks a stream that has ended hears that no answer comes.
    fn put(&self, question: Question) -> bool {
        if let Some(questions) = &mut *self.questions() {
            if questions.len() >= QUESTIONS_MAX {
                return false;
            }
            questions.push(question);
            self.bell.notify_one();
        }
        true
    }

    fn questions(&self) -> MutexGuard<'_, Option<Vec<Question>>> {
        self.questions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

struct Identity {
    id: String,
    service: String,
    agent: String,
}

/// Asks one stream for all it knows.
pub struct Question {
    reply: oneshot::Sender<Inventory>,
}

struct Inventory {
    items: Vec<Item>,
    unserved: Vec<String>,
}

impl Question {
    pub fn answer(self, session: &Session) {
        // Who asked may have lost patience.
        let _ = self.reply.send(Inventory {
            items: session.inventory().collect(),
            unserved: session.unserved().map(str::to_owned).collect(),
        });
    }
}

/// The place of one stream; dropping it gives it up.
pub struct Entry {
    clients: Clients,
    stream: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.clients.inner().streams.remove(&self.stream);
    }
}

impl Clients {
    /// A stream that can be asked from now on.
    pub fn enter(&self, node: &Node) -> (Entry, Questions) {
        let asked = Arc::new(Asked {
            questions: Mutex::new(Some(Vec::new())),
            bell: Notify::new(),
        });
        let identity = Identity {
            id: node.id.clone(),
            service: node.service.to_string(),
            agent: node.agent.clone(),
        };
        let line = Line {
            node: Arc::new(identity),
            asked: asked.clone(),
        };
        let mut inner = self.inner();
        let stream = inner.next;
        inner.next += 1;
        inner.streams.insert(stream, line);
        let clients = self.clone();
        (Entry { clients, stream }, Questions(asked))
    }

    async fn status(
        &self,
        request: &wire::ClientStatusRequest,
    ) -> Result<wire::ClientStatusResponse, Status> {
        let wanted = wanted(&request.node_matchers)?;
        let lines: Vec<Line> = self
            .inner()
            .streams
            .values()
            .filter(|line| {
                wanted
                    .as_ref()
                    .is_none_or(|ids| ids.contains(&line.node.id))
            })
            .cloned()
            .collect();
        let mut answer = Answer::default();
        for line in lines {
            if let Some(inventory) = line.ask().await? {
                answer.add(&line.node, inventory)?;
            }
        }
        Ok(answer.finish())
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    /// None when the stream ended meanwhile.
    async fn ask(&self) -> Result<Option<Inventory>, Status> {
        let (reply, answer) = oneshot::channel();
        let busy = || Status::unavailable(format!("node `{}` is busy, ask again", self.node.id));
        if !self.asked.put(Question { reply }) {
            return Err(busy());
        }
        let answered = tokio::time::timeout(ANSWER_MAX, answer).await;
        answered.map(Result::ok).map_err(|_| busy())
    }
}

/// None: all nodes.
fn wanted(matchers: &[NodeMatcher]) -> Result<Option<BTreeSet<String>>, Status> {
    if matchers.len() > MATCHERS_MAX {
        return Err(Status::invalid_argument(format!(
            "at most {MATCHERS_MAX} node_matchers are taken"
        )));
    }
    let refused = |what: &str| {
        Err(Status::invalid_argument(format!(
            "node_matchers.{what} is not supported (only node_id.exact is)"
        )))
    };
    let mut ids = BTreeSet::new();
    for matcher in matchers {
        if !matcher.node_metadatas.is_empty() {
            return refused("node_metadatas");
        }
        let Some(StringMatcher {
            ignore_case,
            match_pattern,
        }) = &matcher.node_id
        else {
            return refused("node_id (missing)");
        };
        if *ignore_case {
            return refused("node_id.ignore_case");
        }
        match match_pattern {
            Some(MatchPattern::Exact(id)) => ids.insert(id.clone()),
            Some(MatchPattern::Prefix(_)) => return refused("node_id.prefix"),
            Some(MatchPattern::Suffix(_)) => return refused("node_id.suffix"),
            Some(MatchPattern::SafeRegex(_)) => return refused("node_id.safe_regex"),
            Some(MatchPattern::Contains(_)) => return refused("node_id.contains"),
            Some(MatchPattern::Custom(_)) => return refused("node_id.custom"),
            None => return refused("node_id (empty)"),
        };
    }
    Ok((!matchers.is_empty()).then_some(ids))
}

/// One answer in the making.
#[derive(Default)]
struct Answer {
    /// By id and service.
    nodes: BTreeMap<(String, String), (Arc<Identity>, Resources)>,
    bytes: usize,
}

/// By type and name; of several streams the newest counts.
type Resources = BTreeMap<(String, String), GenericXdsConfig>;

impl Answer {
    fn add(&mut self, node: &Arc<Identity>, inventory: Inventory) -> Result<(), Status> {
        let items = inventory.items.into_iter().map(config);
        let unserved = inventory.unserved.into_iter().map(not_served);
        let (_, resources) = self
            .nodes
            .entry((node.id.clone(), node.service.clone()))
            .or_insert_with(|| (node.clone(), Resources::new()));
        for config in items.chain(unserved) {
            self.bytes += size(&config);
            if self.bytes > ANSWER_BYTES_MAX {
                return Err(Status::resource_exhausted(format!(
                    "the answer has more than {ANSWER_BYTES_MAX} bytes (ask for fewer nodes: node_matchers: [{{node_id: {{exact: …}}}}])"
                )));
            }
            resources.insert((config.type_url.clone(), config.name.clone()), config);
        }
        Ok(())
    }

    fn finish(self) -> wire::ClientStatusResponse {
        let client = |(identity, resources): (Arc<Identity>, Resources)| wire::ClientConfig {
            node: Some(core::Node {
                id: identity.id.clone(),
                cluster: identity.service.clone(),
                user_agent_name: identity.agent.clone(),
                ..core::Node::default()
            }),
            generic_xds_configs: resources.into_values().collect(),
            ..wire::ClientConfig::default()
        };
        wire::ClientStatusResponse {
            config: self.nodes.into_values().map(client).collect(),
        }
    }
}

fn size(config: &GenericXdsConfig) -> usize {
    let error = config.error_state.as_ref();
    let error = error.map_or(0, |error| error.details.len() + error.version_info.len());
    config.type_url.len() + config.name.len() + config.version_info.len() + error + OVERHEAD
}

fn config(item: Item) -> GenericXdsConfig {
    let (status, client, error_state) = match item.delivery {
        Delivery::Synced => (
            wire::ConfigStatus::Synced,
            ClientResourceStatus::Acked,
            None,
        ),
        Delivery::Stale => (
            wire::ConfigStatus::Stale,
            ClientResourceStatus::Requested,
            None,
        ),
        Delivery::NotSent => (
            wire::ConfigStatus::NotSent,
            ClientResourceStatus::Requested,
            None,
        ),
        Delivery::Refused {
            version, message, ..
        } => (
            wire::ConfigStatus::Error,
            ClientResourceStatus::Nacked,
            Some(UpdateFailureState {
                details: message,
                version_info: version,
                ..UpdateFailureState::default()
            }),
        ),
    };
    GenericXdsConfig {
        type_url: item.kind.type_url().to_owned(),
        name: item.name,
        version_info: item.version,
        config_status: status.into(),
        client_status: client.into(),
        error_state,
        ..GenericXdsConfig::default()
    }
}

fn not_served(type_url: String) -> GenericXdsConfig {
    GenericXdsConfig {
        type_url,
        config_status: wire::ConfigStatus::NotSent.into(),
        client_status: ClientResourceStatus::Requested.into(),
        error_state: Some(UpdateFailureState {
            details: "this type is not served".to_owned(),
            ..UpdateFailureState::default()
        }),
        ..GenericXdsConfig::default()
    }
}

#[tonic::async_trait]
impl ClientStatusDiscoveryService for Clients {
    type StreamClientStatusStream =
        Pin<Box<dyn Stream<Item = Result<wire::ClientStatusResponse, Status>> + Send>>;

    async fn stream_client_status(
        &self,
        request: Request<Streaming<wire::ClientStatusRequest>>,
    ) -> Result<Response<Self::StreamClientStatusStream>, Status> {
        let clients = self.clone();
        let answers = request.into_inner().then(move |request| {
            let clients = clients.clone();
            async move { clients.status(&request?).await }
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn fetch_client_status(
        &self,
        request: Request<wire::ClientStatusRequest>,
    ) -> Result<Response<wire::ClientStatusResponse>, Status> {
        self.status(request.get_ref()).await.map(Response::new)
    }
}

/// Questions that wait for one stream.
const QUESTIONS_MAX: usize = 8;
/// How long a stream may take to answer; it never waits for its peer meanwhile.
const ANSWER_MAX: Duration = Duration::from_secs(5);
const MATCHERS_MAX: usize = 64;
/// gRPC clients take messages up to 4 MiB.
const ANSWER_BYTES_MAX: usize = 4_000_000;
/// Protobuf's own, of one resource.
const OVERHEAD: usize = 24;
