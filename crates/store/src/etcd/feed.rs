//! Watches. Each has a connection of its own and reads from it only when it is asked, so a slow one holds up nobody and
//! piles up nothing here. When its member is lost it goes on with the next, after the last revision that it has seen.
//!
//! etcd does not say why a key went. A revision that ends a lease contains only the keys of that lease, its own among them
//! (`!leases/ID`), so two looks into the past tell.

use std::{collections::VecDeque, future::Future, pin::Pin, sync::Arc, time::Duration};

use phalanx_proto::{
    etcdserverpb::{
        RangeRequest, TxnRequest, WatchCreateRequest, WatchRequest, WatchResponse,
        request_op::Request, response_op::Response, watch_client::WatchClient,
        watch_request::RequestUnion,
    },
    mvccpb::{self, event::EventType},
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{
    Shared, at,
    keys::{self, op, revision, signed},
    lease::REVOKED,
    parts,
    wire::{COMPACTED, Fault, MESSAGE_BYTES_MAX, Pause, Repeat},
};
use crate::{Batch, Entry, Error, Event, EventKind, LeaseId, Reason, Result, Revision};

/// Until a new stream has said that it is there.
const CREATED_MAX: Duration = Duration::from_secs(5);

type Pending<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Batches under a prefix, in order and without a gap.
pub struct Watch {
    shared: Arc<Shared>,
    prefix: String,
    /// Everything up to here was delivered or is in `ready`.
    seen: Revision,
    /// Of a revision whose end has not come yet.
    part: Option<Part>,
    ready: VecDeque<Part>,
    /// Finds out what is missing of the first in `ready`.
    asking: Option<Pending<Result<Found, Fault>>>,
    link: Link,
    pause: Pause,
    /// The member to connect to next.
    member: usize,
    ended: bool,
}

enum Link {
    None,
    Opening(Pending<Result<Stream>>),
    Open(Box<Stream>),
}

struct Stream {
    responses: Streaming<WatchResponse>,
    /// Held, because a stream whose requests have ended may be ended by its server.
    _requests: mpsc::Sender<WatchRequest>,
}

/// What etcd's event did not say.
enum Found {
    /// Why the keys went.
    Why(Reason),
    /// The entry that a note stood for.
    Whole(Entry),
}

/// Events of one revision.
struct Part {
    batch: Batch,
    /// Which of its events hold notes instead of values.
    notes: Vec<usize>,
    /// Something was put in it, too. The end of a lease puts nothing, so these deletions are somebody's.
    has_put: bool,
    /// The first deleted key with its prefix, to ask about.
    deleted: Option<Vec<u8>>,
}

impl Watch {
    pub(super) fn new(shared: Arc<Shared>, prefix: &str, from: Revision) -> Watch {
        let (pause, member) = (shared.wire.pause(), shared.wire.current());
        Watch {
            shared,
            prefix: prefix.into(),
            seen: from,
            part: None,
            ready: VecDeque::new(),
            asking: None,
            link: Link::None,
            pause,
            member,
            ended: false,
        }
    }

    /// As [`crate::Watch::next`].
    pub async fn next(&mut self) -> Option<Result<Batch>> {
        if self.ended {
            return None;
        }
        let shared = self.shared.clone();
        let next = tokio::select! {
            () = shared.wire.until_closed() => None,
            next = self.batch() => Some(next),
        };
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }

    async fn batch(&mut self) -> Result<Batch> {
        loop {
            if let Some(batch) = self.take_ready().await? {
                return Ok(batch);
            }
            match &mut self.link {
                Link::None => {
                    let opening = open(
                        self.shared.clone(),
                        self.prefix.clone(),
                        self.seen,
                        self.member,
                    );
                    self.link = Link::Opening(Box::pin(opening));
                }
                Link::Opening(opening) => match opening.await {
                    Ok(stream) => self.link = Link::Open(Box::new(stream)),
                    Err(Error::Unreachable { reason }) => self.reconnect(&reason),
                    Err(error) => return Err(error),
                },
                Link::Open(stream) => match stream.responses.message().await {
                    Ok(Some(response)) => self.take(response)?,
                    Ok(None) => self.reconnect("the stream ended"),
                    Err(status) => self.reconnect(status.message()),
                },
            }
        }
    }

    /// The first batch, when its deletions are explained and its values whole.
    async fn take_ready(&mut self) -> Result<Option<Batch>> {
        while let Some(part) = self.ready.front_mut() {
            let asking = match &mut self.asking {
                Some(asking) => asking,
                None => match part.question(&self.shared) {
                    Some(question) => self.asking.insert(question),
                    None => {
                        let batch = self.ready.pop_front().map(|part| part.batch);
                        return Ok(batch);
                    }
                },
            };
            let answer = asking.await;
            self.asking = None;
            match answer {
                Ok(Found::Why(reason)) => part.explain(reason),
                Ok(Found::Whole(entry)) => part.complete(entry),
                // It lies before what is kept, as the whole batch does by now.
                Err(fault) if fault.says(COMPACTED) => {
                    return Err(Error::Compacted {
                        from: part.batch.revision - 1,
                        oldest: self.shared.find_oldest(&self.prefix).await,
                    });
                }
                Err(Fault::NotDone(reason) | Fault::Lost(reason)) => {
                    tracing::debug!(%reason, "no answer about a change, asking again");
                    tokio::time::sleep(self.pause.next()).await;
                }
                Err(fault) => return Err(fault.of_read()),
            }
        }
        Ok(None)
    }

    fn take(&mut self, response: WatchResponse) -> Result<()> {
        if response.compact_revision > 0 {
            let oldest = revision(response.compact_revision);
            self.shared.knows_oldest(oldest);
            return Err(Error::Compacted {
                from: self.seen,
                oldest,
            });
        }
        if response.canceled {
            let reason = response.cancel_reason;
            if reason.contains("permission denied") {
                return Err(Error::Refused { reason });
            }
            self.reconnect(&reason);
            return Ok(());
        }
        let is_notice = response.events.is_empty() && !response.created && !response.fragment;
        let head = at(&response.header);
        if !response.created {
            self.pause = self.shared.wire.pause();
        }
        for event in response.events {
            self.add(event);
        }
        if !response.fragment {
            self.finish_part();
            if is_notice {
                self.seen = self.seen.max(head);
            }
        }
        Ok(())
    }

    fn add(&mut self, event: mvccpb::Event) {
        let is_put = event.r#type() == EventType::Put;
        let Some(found) = event.kv else { return };
        let at = revision(found.mod_revision);
        if at <= self.seen {
            return;
        }
        if self
            .part
            .as_ref()
            .is_some_and(|part| part.batch.revision != at)
        {
            self.finish_part();
        }
        let part = self.part.get_or_insert_with(|| Part::new(at));
        if is_put {
            part.has_put = true;
            if let Some(entry) = self.shared.keys.entry(found) {
                if parts::is_note(&entry.value) {
                    part.notes.push(part.batch.events.len());
                }
                part.batch.events.push(Event::put(entry));
            }
        } else if let Some(key) = self.shared.keys.name(&found.key) {
            part.batch.events.push(Event::delete(key, Reason::Deleted));
            part.deleted.get_or_insert(found.key);
        }
    }

    fn finish_part(&mut self) {
        if let Some(part) = self.part.take() {
            self.seen = part.batch.revision;
            if !part.batch.events.is_empty() {
                self.shared.learn(part.batch.revision);
                self.ready.push_back(part);
            }
        }
    }

    fn reconnect(&mut self, reason: &str) {
        tracing::debug!(
            prefix = self.prefix,
            seen = self.seen,
            reason,
            "watch reconnects"
        );
        self.part = None;
        self.member += 1;
        let (wait, shared) = (self.pause.next(), self.shared.clone());
        let (prefix, seen, member) = (self.prefix.clone(), self.seen, self.member);
        self.link = Link::Opening(Box::pin(async move {
            tokio::time::sleep(wait).await;
            open(shared, prefix, seen, member).await
        }));
    }
}

impl Part {
    fn new(revision: Revision) -> Part {
        Part {
            batch: Batch {
                revision,
                events: Vec::new(),
            },
            notes: Vec::new(),
            has_put: false,
            deleted: None,
        }
    }

    /// What has to be asked about it before it is delivered.
    fn question(&self, shared: &Arc<Shared>) -> Option<Pending<Result<Found, Fault>>> {
        let (shared, at) = (shared.clone(), self.batch.revision);
        if let Some(key) = self.deleted.clone().filter(|_| !self.has_put) {
            return Some(Box::pin(async move {
                why(shared, key, at).await.map(Found::Why)
            }));
        }
        let event = self.batch.events.get(*self.notes.last()?)?;
        let EventKind::Put(entry) = event.kind.clone() else {
            return None;
        };
        Some(Box::pin(async move {
            shared.whole(entry, at).await.map(Found::Whole)
        }))
    }

    fn complete(&mut self, entry: Entry) {
        let noted = self.notes.pop();
        if let Some(event) = noted.and_then(|index| self.batch.events.get_mut(index)) {
            event.kind = EventKind::Put(entry);
        }
    }

    /// All of its deletions have the same one.
    fn explain(&mut self, why: Reason) {
        self.deleted = None;
        for event in &mut self.batch.events {
            if let EventKind::Delete { reason, .. } = &mut event.kind {
                *reason = why;
            }
        }
    }
}

/// Connects to a member, asks for everything after `seen`, and makes sure that nothing of it is compacted.
///
/// The first check also renews a stale token; a watch with one would be refused like a user without permission.
async fn open(
    shared: Arc<Shared>,
    prefix: String,
    seen: Revision,
    member: usize,
) -> Result<Stream> {
    shared.check_watchable(&prefix, seen).await?;
    let stream = begin(&shared, &prefix, seen + 1, member).await;
    let stream = stream.map_err(Fault::of_read)?;
    // Compacted meanwhile? At the revision that is compacted to, deletions may be missing, and etcd would not say so.
    shared.check_watchable(&prefix, seen).await?;
    Ok(stream)
}

async fn begin(
    shared: &Shared,
    prefix: &str,
    start: Revision,
    member: usize,
) -> Result<Stream, Fault> {
    let link = shared.wire.connect(member).await?;
    let (key, range_end) = shared.keys.range(prefix);
    let create = WatchCreateRequest {
        key,
        range_end,
        start_revision: signed(start),
        progress_notify: true,
        fragment: true,
        ..Default::default()
    };
    let (requests, stream) = mpsc::channel(1);
    let request = WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(create)),
    };
    // There is room for it.
    let _ = requests.try_send(request);
    let request = link.request_with_leader(ReceiverStream::new(stream));
    let client = WatchClient::new(link.channel);
    let mut client = client.max_decoding_message_size(MESSAGE_BYTES_MAX);
    let created = async {
        let mut responses = client.watch(request).await?.into_inner();
        let first = responses.message().await?;
        Ok((responses, first))
    };
    let lost = |reason: &str| Fault::Lost(reason.into());
    match timeout(CREATED_MAX, created).await {
        Ok(Ok((responses, Some(first)))) if first.created && !first.canceled => Ok(Stream {
            responses,
            _requests: requests,
        }),
        Ok(Ok((_, Some(first)))) if first.cancel_reason.contains("permission denied") => Err(
            Fault::of(tonic::Status::permission_denied(first.cancel_reason)),
        ),
        Ok(Ok((_, first))) => {
            let reason = first.map(|first| first.cancel_reason);
            Err(lost(&reason.unwrap_or_else(|| "the stream ended".into())))
        }
        Ok(Err(status)) => Err(Fault::of(status)),
        Err(_) => Err(lost("no watch in time")),
    }
}

/// Why a key went at a revision.
async fn why(shared: Arc<Shared>, key: Vec<u8>, at: Revision) -> Result<Reason, Fault> {
    let look = |key: Vec<u8>, revision: Revision| RangeRequest {
        key,
        revision: signed(revision),
        ..Default::default()
    };
    let before = shared
        .range(look(key, at - 1))
        .await?
        .kvs
        .into_iter()
        .next();
    let Some(lease) = before.and_then(|found| keys::lease(found.lease)) else {
        return Ok(Reason::Deleted);
    };
    match marks(&shared, lease, at).await? {
        (_, true) => Ok(Reason::Deleted),
        (Some(mark), false) if mark == REVOKED => Ok(Reason::Deleted),
        (Some(_), false) => Ok(Reason::Expired),
        // It was granted by somebody else. If it lives, it was not it that took the key.
        (None, false) if shared.is_alive(lease).await? => Ok(Reason::Deleted),
        // Whether it expired nobody knows; it is no evidence that the owner left.
        (None, false) => Ok(Reason::Expired),
    }
}

/// The lease's own key before a revision, and whether it was there at it.
async fn marks(
    shared: &Shared,
    lease: LeaseId,
    at: Revision,
) -> Result<(Option<Vec<u8>>, bool), Fault> {
    let look = |revision| {
        op(Request::RequestRange(RangeRequest {
            key: shared.keys.lease(lease),
            revision: signed(revision),
            ..Default::default()
        }))
    };
    let both = TxnRequest {
        success: vec![look(at - 1), look(at)],
        ..Default::default()
    };
    let answer = shared.txn(Repeat::Always, &both).await?;
    let mut found = answer.responses.into_iter().map(|op| match op.response {
        Some(Response::ResponseRange(range)) => range.kvs.into_iter().next(),
        _ => None,
    });
    let (before, now) = (found.next().flatten(), found.next().flatten());
    Ok((before.map(|found| found.value), now.is_some()))
}

impl Shared {
    /// What a watch from the beginning is told.
    pub(super) async fn find_oldest(&self, prefix: &str) -> Revision {
        let asking = async {
            let mut stream = begin(self, prefix, 1, self.wire.current()).await.ok()?;
            let answer = stream.responses.message().await.ok()??;
            (answer.compact_revision > 0).then_some(revision(answer.compact_revision))
        };
        if let Ok(Some(oldest)) = timeout(CREATED_MAX, asking).await {
            self.knows_oldest(oldest);
        }
        self.oldest.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn knows_oldest(&self, oldest: Revision) {
        self.oldest
            .fetch_max(oldest, std::sync::atomic::Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch")
            .field("prefix", &self.prefix)
            .field("seen", &self.seen)
            .finish()
    }
}
