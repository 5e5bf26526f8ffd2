//! One kind as the client sees it: what it asks for and what it holds.

use std::collections::{BTreeMap, BTreeSet};

use phalanx_proto::envoy::service::discovery::v3::DeltaDiscoveryRequest;

use crate::kind::Kind;

const WILDCARD: &str = "*";

#[derive(Debug)]
pub(super) struct Table {
    kind: Kind,
    wildcard: bool,
    /// Opened on every stream, with or without names.
    always: bool,
    names: BTreeSet<String>,
    /// Name → version, applied and acknowledged.
    held: BTreeMap<String, String>,
    /// A request of this kind went out on the present stream.
    open: bool,
}

impl Table {
    pub(super) fn new(kind: Kind) -> Self {
        Self {
            kind,
            wildcard: matches!(kind, Kind::Cluster | Kind::Listener),
            always: false,
            names: BTreeSet::new(),
            held: BTreeMap::new(),
            open: false,
        }
    }

    pub(super) fn held(&self) -> &BTreeMap<String, String> {
        &self.held
    }

    pub(super) fn wants(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    pub(super) fn hold(&mut self, name: String, version: String) {
        if self.wants(&name) {
            self.held.insert(name, version);
        }
    }

    pub(super) fn drop(&mut self, name: &str) {
        self.held.remove(name);
    }

    /// The first request of a new stream; none if nothing is asked for.
    pub(super) fn open(&mut self) -> Option<DeltaDiscoveryRequest> {
        self.open = self.wildcard || self.always || !self.names.is_empty();
        self.open.then(|| {
            let wildcard = self.wildcard.then(|| WILDCARD.to_owned());
            let subscribe = wildcard.into_iter().chain(self.names.iter().cloned());
            DeltaDiscoveryRequest {
                initial_resource_versions: self.held.clone(),
                ..self.request(subscribe.collect(), Vec::new())
            }
        })
    }

    /// The request that takes the subscription to `names`, if there is a stream and it differs.
    pub(super) fn subscribe(
        &mut self,
        names: BTreeSet<String>,
        connected: bool,
    ) -> Option<DeltaDiscoveryRequest> {
        if self.wildcard || names == self.names {
            return None;
        }
        self.held.retain(|name, _| names.contains(name));
        let added = names.difference(&self.names).cloned().collect();
        let gone = self.names.difference(&names).cloned().collect();
        self.names = names;
        self.tell(added, gone, connected)
    }

    /// The request that adds and takes away names, beside a wildcard too. None if it changes nothing.
    pub(super) fn change(
        &mut self,
        mut added: Vec<String>,
        mut gone: Vec<String>,
        connected: bool,
    ) -> Option<DeltaDiscoveryRequest> {
        gone.retain(|name| self.names.remove(name));
        added.retain(|name| self.names.insert(name.clone()));
        for name in &gone {
            if !self.wants(name) {
                self.held.remove(name);
            }
        }
        if added.is_empty() && gone.is_empty() {
            return None;
        }
        self.tell(added, gone, connected)
    }

    /// From everything to `names`, or from names to everything. None if it is so already.
    pub(super) fn set_wildcard(
        &mut self,
        wildcard: bool,
        names: BTreeSet<String>,
        connected: bool,
    ) -> Option<DeltaDiscoveryRequest> {
        if self.wildcard == wildcard {
            return None;
        }
        self.wildcard = wildcard;
        let before = std::mem::replace(&mut self.names, names);
        let star = || vec![WILDCARD.to_owned()];
        let (added, gone) = match wildcard {
            true => (star(), before.into_iter().collect()),
            false => (self.names.iter().cloned().collect(), star()),
        };
        let names = &self.names;
        self.held.retain(|name, _| wildcard || names.contains(name));
        self.tell(added, gone, connected)
    }

    pub(super) fn set_always(&mut self, always: bool) {
        self.always = always;
    }

    fn tell(
        &mut self,
        added: Vec<String>,
        gone: Vec<String>,
        connected: bool,
    ) -> Option<DeltaDiscoveryRequest> {
        match (connected, self.open) {
            (false, _) => None,
            (true, false) => self.open(),
            (true, true) => Some(self.request(added, gone)),
        }
    }

    fn request(&self, subscribe: Vec<String>, unsubscribe: Vec<String>) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            type_url: self.kind.type_url().to_owned(),
            resource_names_subscribe: subscribe,
            resource_names_unsubscribe: unsubscribe,
            ..Default::default()
        }
    }
}
