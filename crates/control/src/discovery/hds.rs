//! Health discovery over gRPC: data planes that offer to check endpoints are told which, and say what they found. Who checks
//! what and what follows is [`crate::health`]'s; here live the stream, its deadlines and its bounds.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use phalanx_model::InstanceId;
use phalanx_proto::envoy::service::health::v3 as wire;
use phalanx_proto::envoy::service::health::v3::health_check_request_or_endpoint_health_response::RequestType;
use phalanx_proto::envoy::service::health::v3::health_discovery_service_server::{
    HealthDiscoveryService, HealthDiscoveryServiceServer,
};
use phalanx_xds::hds;
use tokio::sync::mpsc::{self, Sender};
use tokio::time::{Instant, timeout};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use crate::access::Who;
use crate::health::{CheckerInfo, Health, Seat, Work};
use crate::snapshot::Node;

type Message = wire::HealthCheckRequestOrEndpointHealthResponse;
type Answer = Result<wire::HealthCheckSpecifier, Status>;

/// The HDS service; cheap to clone.
#[derive(Clone)]
pub struct Hds {
    health: Health,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Hds {
    pub fn new(health: Health, stop: CancellationToken) -> Self {
        Self {
            health,
            stop,
            tasks: TaskTracker::new(),
        }
    }

    /// With the bound of its messages.
    pub fn into_service(self) -> HealthDiscoveryServiceServer<Self> {
        HealthDiscoveryServiceServer::new(self).max_decoding_message_size(MESSAGE_MAX)
    }

    async fn serve(
        &self,
        who: &Who,
        mut inbound: Streaming<Message>,
        answers: &Sender<Answer>,
    ) -> Result<(), Status> {
        let first = timeout(FIRST_MAX, inbound.message()).await;
        let Some(first) = first.map_err(|_| Status::deadline_exceeded("no request came"))?? else {
            return Ok(());
        };
        let mut checker = introduced(first)?;
        checker.secure &= matches!(who, Who::Workload(_));
        who.owns(&checker.instance.service)?;
        who.owns_node(&checker.name)?;
        let seat = self.health.join(checker.clone());
        let mut seat = seat.map_err(|full| Status::resource_exhausted(full.to_string()))?;
        tracing::debug!(node = %checker.name, "data plane offers health checks");
        let mut rate = Rate::new();
        let mut work = Some(seat.work());
        loop {
            if let Some(work) = work.take() {
                let place = timeout(STALL_MAX, answers.reserve()).await;
                let stalled =
                    |_| Status::resource_exhausted("the peer does not read what it is told");
                let Ok(place) = place.map_err(stalled)? else {
                    return Ok(());
                };
                place.send(Ok(specifier(&work)));
            }
            tokio::select! {
                message = inbound.message() => match message? {
                    Some(message) => {
                        rate.note()?;
                        take(&seat, message)?;
                    }
                    None => return Ok(()),
                },
                other = seat.other_work() => work = Some(other),
            }
        }
    }
}

fn introduced(message: Message) -> Result<CheckerInfo, Status> {
    let Some(RequestType::HealthCheckRequest(request)) = message.request_type else {
        return Err(Status::invalid_argument(
            "the first message must be a HealthCheckRequest: it says who is checking",
        ));
    };
    let node =
        Node::parse(request.node.as_ref()).map_err(|e| Status::invalid_argument(e.to_string()))?;
    Ok(CheckerInfo {
        zone: node.zone,
        instance: InstanceId {
            service: node.service,
            id: node.instance,
        },
        // The capabilities have no word for it, and Envoy's cluster of a health check speaks no HTTP/2.
        grpc: node.agent.starts_with(OURS),
        // An Envoy would need the secrets on this stream.
        secure: node.agent.starts_with(OURS),
        name: node.id,
    })
}

fn take(seat: &Seat, message: Message) -> Result<(), Status> {
    match message.request_type {
        Some(RequestType::EndpointHealthResponse(response)) => {
            seat.report(hds::reported(response));
            Ok(())
        }
        // Nothing new: a node does not change within a stream.
        Some(RequestType::HealthCheckRequest(_)) => Ok(()),
        None => Err(Status::invalid_argument("an empty message")),
    }
}

fn specifier(work: &Arc<Work>) -> wire::HealthCheckSpecifier {
    hds::specifier(&work.groups, work.report_interval())
}

/// Messages within the second that runs.
struct Rate {
    since: Instant,
    count: u32,
}

impl Rate {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            count: 0,
        }
    }

    fn note(&mut self) -> Result<(), Status> {
        if self.since.elapsed() >= Duration::from_secs(1) {
            *self = Self::new();
        }
        self.count += 1;
        if self.count > MESSAGES_PER_SECOND_MAX {
            return Err(Status::resource_exhausted(format!(
                "more than {MESSAGES_PER_SECOND_MAX} reports within a second"
            )));
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl HealthDiscoveryService for Hds {
    type StreamHealthCheckStream = Pin<Box<dyn Stream<Item = Answer> + Send>>;

    async fn stream_health_check(
        &self,
        request: Request<Streaming<Message>>,
    ) -> Result<Response<Self::StreamHealthCheckStream>, Status> {
        let (answers, stream) = mpsc::channel(ANSWERS_MAX);
        let hds = self.clone();
        let who = Who::of(request.extensions());
        self.tasks.spawn(async move {
            let ended = tokio::select! {
                () = hds.stop.cancelled() => Err(Status::unavailable("the control plane is stopping")),
                ended = hds.serve(&who, request.into_inner(), &answers) => ended,
            };
            if let Err(status) = ended {
                super::farewell(&answers, status).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn fetch_health_check(
        &self,
        _: Request<Message>,
    ) -> Result<Response<wire::HealthCheckSpecifier>, Status> {
        Err(Status::unimplemented(
            "checks are told over a stream (StreamHealthCheck), not fetched",
        ))
    }
}

/// How our sidecars call themselves.
const OURS: &str = "phalanx";
/// Between the opening of a stream and its first message.
const FIRST_MAX: Duration = Duration::from_secs(10);
/// How long a specifier may wait for a peer that does not read.
const STALL_MAX: Duration = Duration::from_secs(60);
/// Specifiers of a stream that wait for its socket.
const ANSWERS_MAX: usize = 1;
/// Of one message; a report about all that a data plane may be told is a tenth of it.
const MESSAGE_MAX: usize = 512 * 1024;
const MESSAGES_PER_SECOND_MAX: u32 = 50;

#[cfg(test)]
mod tests;
