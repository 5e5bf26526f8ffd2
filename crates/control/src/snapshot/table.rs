//! Route tables by calling namespace: each host is encoded once, a table is put together from encoded hosts when the first
//! stream of its namespace asks for it. Namespaces without services or routes of their own share one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use phalanx_model::SharedMap;
use phalanx_xds::encode::{self, EncodedHost};

use super::publish::{Changes, Resources};
use super::routes::{OUTBOUND, Rules, ServicePort, host};

/// The tables of one set of rules. Shared by all that is published while they hold.
#[derive(Debug, Default)]
pub(super) struct Tables {
    hosts: SharedMap<ServicePort, Arc<Host>>,
    /// Namespaces that have rules of their own for others' services, and for how many ports.
    consumers: BTreeMap<String, usize>,
    /// By namespace; none: of namespaces without either. Held while one is put together.
    made: Mutex<BTreeMap<Option<String>, Made>>,
}

#[derive(Debug)]
struct Host {
    /// As its own namespace may name it.
    near: EncodedHost,
    /// As the others may.
    far: EncodedHost,
    /// As those do who have rules of their own for it, by namespace.
    consumers: BTreeMap<String, EncodedHost>,
}

#[derive(Debug)]
struct Made {
    table: Resources,
    /// Some stream took it.
    was_asked: bool,
}

impl Tables {
    /// For the rules `after`, where these tables are for `before`. Tables that were asked for are made at once, so that no
    /// stream has to wait for them.
    pub(super) fn advance(&self, before: &Rules, after: &Rules, changes: &mut Changes) -> Self {
        let mut hosts = self.hosts.clone();
        let mut consumers = self.consumers.clone();
        for change in after.ports().differences(before.ports(), Arc::ptr_eq) {
            for namespace in change.before.into_iter().flat_map(|of| of.consumers()) {
                if let Some(count) = consumers.get_mut(namespace) {
                    *count -= 1;
                }
            }
            let Some(hosted) = change.after else {
                hosts.remove(change.key);
                continue;
            };
            let namespace = change.key.0.namespace.as_str();
            changes.encoded += 1;
            let mut of_consumer = |namespace: &String| {
                *consumers.entry(namespace.clone()).or_default() += 1;
                let host = host(change.key, hosted, Some(namespace));
                (namespace.clone(), encode::host(&host))
            };
            let encoded = Host {
                near: encode::host(&host(change.key, hosted, Some(namespace))),
                far: encode::host(&host(change.key, hosted, None)),
                consumers: hosted.consumers().map(&mut of_consumer).collect(),
            };
            hosts.insert(change.key.clone(), Arc::new(encoded));
        }
        consumers.retain(|_, count| *count > 0);
        let tables = Self {
            hosts,
            consumers,
            made: Mutex::default(),
        };
        let asked = self.made();
        for (namespace, _) in asked.iter().filter(|(_, made)| made.was_asked) {
            let made = Made {
                table: tables.put_together(namespace.as_deref()),
                was_asked: false,
            };
            changes.encoded += 1;
            tables.made().insert(namespace.clone(), made);
        }
        drop(asked);
        tables
    }

    /// What callers in `namespace` can reach.
    pub(super) fn table(&self, namespace: &str) -> Resources {
        let from = self
            .hosts
            .starting_at(|(service, _)| service.namespace.as_str().cmp(namespace))
            .next();
        let has_services = from.is_some_and(|((service, _), _)| service.namespace == namespace);
        let has_own = has_services || self.consumers.contains_key(namespace);
        let namespace = has_own.then_some(namespace);
        let mut made = self.made();
        let made = made
            .entry(namespace.map(str::to_owned))
            .or_insert_with(|| Made {
                table: self.put_together(namespace),
                was_asked: true,
            });
        made.was_asked = true;
        made.table.clone()
    }

    fn put_together(&self, namespace: Option<&str>) -> Resources {
        let hosts = self.hosts.iter().map(|((service, _), host)| {
            let is_near = namespace == Some(service.namespace.as_str());
            let of_consumer = namespace.and_then(|namespace| host.consumers.get(namespace));
            let usual = if is_near { &host.near } else { &host.far };
            of_consumer.unwrap_or(usual)
        });
        let refs: BTreeSet<&String> = hosts.clone().flat_map(|host| &host.refs).collect();
        let refs = refs.into_iter().cloned().collect();
        let table = encode::table(OUTBOUND, hosts, refs);
        Resources::from([(table.name.clone(), Arc::new(table))])
    }

    fn made(&self) -> MutexGuard<'_, BTreeMap<Option<String>, Made>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
