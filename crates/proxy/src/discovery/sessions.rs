//! The session directory as it comes in beside the configuration: all keys of a service, collected until they are complete,
//! then change by change. No plan is made of it. After a reconnect it goes on where it was, if the other side still knows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use phalanx_client::session::{SEAT_TYPE, SHELF_TYPE};
use phalanx_model::name::ServiceName;
use phalanx_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource,
};
use phalanx_proto::google::rpc::Status as Refusal;
use phalanx_proto::phalanx::sessions::v1 as wire;
use prost::Message;

use crate::directory::{Directory, Entry};

/// Sessions that a sidecar holds, of all services.
pub const SESSIONS_MAX: usize = 1_000_000;
/// gRPC's INVALID_ARGUMENT.
const INVALID_ARGUMENT: i32 = 3;

/// Whose sessions are followed, and how far.
pub struct Followed {
    directory: Arc<Directory>,
    services: BTreeMap<ServiceName, Shelf>,
}

#[derive(Default)]
struct Shelf {
    /// Where the other side goes on after a reconnect; empty: at the beginning.
    place: String,
    /// While all keys are on their way.
    filling: Option<Vec<Entry>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {SESSIONS_MAX} sessions")]
pub struct TooMany;

impl Followed {
    pub fn new(directory: Arc<Directory>) -> Self {
        Self {
            directory,
            services: BTreeMap::new(),
        }
    }

    /// What a new stream is asked; none: nothing is followed.
    pub fn connect(&mut self) -> Option<DeltaDiscoveryRequest> {
        if self.services.is_empty() {
            return None;
        }
        let mut request = request();
        for (service, shelf) in &mut self.services {
            let name = name(service);
            if shelf.filling.take().is_some() {
                shelf.place.clear();
            }
            if !shelf.place.is_empty() {
                let versions = &mut request.initial_resource_versions;
                versions.insert(name.clone(), shelf.place.clone());
            }
            request.resource_names_subscribe.push(name);
        }
        Some(request)
    }

    /// From now on exactly these; none: they are those already.
    pub fn want(&mut self, services: &BTreeSet<ServiceName>) -> Option<DeltaDiscoveryRequest> {
        let gone = self
            .services
            .keys()
            .filter(|held| !services.contains(*held));
        let gone: Vec<_> = gone.cloned().collect();
        let added = services
            .iter()
            .filter(|asked| !self.services.contains_key(*asked));
        let added: Vec<_> = added.cloned().collect();
        if gone.is_empty() && added.is_empty() {
            return None;
        }
        for service in &gone {
            self.services.remove(service);
            self.directory.forget(service);
        }
        let mut request = request();
        request.resource_names_unsubscribe = gone.iter().map(name).collect();
        request.resource_names_subscribe = added.iter().map(name).collect();
        let added = added.into_iter().map(|service| (service, Shelf::default()));
        self.services.extend(added);
        Some(request)
    }

    /// Takes a response in. The answer to send, and whether a service is complete now that was not.
    ///
    /// # Errors
    /// [`TooMany`]: the stream is to be closed.
    pub fn on_response(
        &mut self,
        response: DeltaDiscoveryResponse,
    ) -> Result<(DeltaDiscoveryRequest, bool), TooMany> {
        let mut news: BTreeMap<ServiceName, News> = BTreeMap::new();
        let mut refused = None;
        let more = response.resources.len();
        for resource in response.resources {
            let Some((service, key)) = split(&resource.name) else {
                refused = Some(resource.name);
                continue;
            };
            let news = news.entry(service).or_default();
            if read(&resource, key, news).is_none() {
                refused = Some(resource.name);
            }
        }
        for removed in &response.removed_resources {
            if let Some((service, key)) = split(removed) {
                let removed = &mut news.entry(service).or_default().removed;
                removed.push(key.as_bytes().into());
            }
        }
        if self.len() + more > SESSIONS_MAX {
            return Err(TooMany);
        }
        let mut is_filled = false;
        for (service, news) in news {
            is_filled |= self.take(&service, news);
        }
        let error_detail = refused.map(|name| Refusal {
            code: INVALID_ARGUMENT,
            message: format!("{name}: is no session"),
            ..Default::default()
        });
        let answer = DeltaDiscoveryRequest {
            response_nonce: response.nonce,
            error_detail,
            ..request()
        };
        Ok((answer, is_filled))
    }

    fn take(&mut self, service: &ServiceName, news: News) -> bool {
        // Of one that was let go of meanwhile.
        let Some(shelf) = self.services.get_mut(service) else {
            return false;
        };
        let (begins, complete) = (news.begins, news.complete);
        if begins {
            shelf.filling = Some(Vec::new());
        }
        shelf.place = news.place;
        match &mut shelf.filling {
            Some(filling) => filling.extend(news.changed),
            None => self.directory.change(service, news.changed, &news.removed),
        }
        let filled = shelf.filling.take_if(|_| complete);
        let Some(filled) = filled else {
            return false;
        };
        let is_new = !self.directory.is_filled(service);
        self.directory.fill(service, filled);
        is_new
    }

    /// With those on their way.
    fn len(&self) -> usize {
        let filling = self.services.values();
        let filling = filling.filter_map(|shelf| shelf.filling.as_ref());
        self.directory.len() + filling.map(Vec::len).sum::<usize>()
    }
}

/// Of one service in one response.
#[derive(Default)]
struct News {
    changed: Vec<Entry>,
    removed: Vec<Box<[u8]>>,
    place: String,
    begins: bool,
    complete: bool,
}

/// None: it is not understood.
fn read(resource: &Resource, key: &str, news: &mut News) -> Option<()> {
    let body = resource.resource.as_ref()?;
    if body.type_url == SHELF_TYPE {
        let shelf = wire::Shelf::decode(&*body.value).ok()?;
        (news.begins, news.complete) = (shelf.begins, shelf.complete);
        news.place.clone_from(&resource.version);
        return Some(());
    }
    if body.type_url != SEAT_TYPE {
        return None;
    }
    let seat = wire::Seat::decode(&*body.value).ok()?;
    let addresses = seat.addresses.iter().map(|address| address.parse().ok());
    let addresses: Option<Arc<[SocketAddr]>> = addresses.collect();
    let instance = seat.instance.as_str().into();
    let entry = Entry::new(key.as_bytes(), seat.epoch, instance, addresses?);
    news.changed.push(entry);
    Some(())
}

fn request() -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: SEAT_TYPE.to_owned(),
        ..Default::default()
    }
}

fn name(service: &ServiceName) -> String {
    format!("{service}/*")
}

/// `<namespace>/<service>/<key>`, whatever is in the key.
fn split(name: &str) -> Option<(ServiceName, &str)> {
    let (namespace, rest) = name.split_once('/')?;
    let (service, key) = rest.split_once('/')?;
    Some((ServiceName::new(namespace, service), key))
}

#[cfg(test)]
mod tests;
