//! What of the world was imported, kept up with it: services that did not change are not looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use super::NAMESPACE;
use crate::world::{NamespaceInstances, Registered, World};

type OfService = BTreeMap<String, Arc<Registered>>;

static NONE: LazyLock<OfService> = LazyLock::new(OfService::new);

#[derive(Default)]
pub struct Served {
    seen: Option<Arc<NamespaceInstances>>,
    imported: BTreeMap<String, OfService>,
}

#[derive(Default)]
pub struct News {
    /// Services of which anything changed, imported or not.
    pub changed: BTreeSet<String>,
    /// Service and id of imported instances that are none any more.
    pub removed: Vec<(String, String)>,
}

impl Served {
    /// Takes over what the world has.
    pub fn follow(&mut self, world: &World) -> News {
        let now = world
            .instances
            .namespace(NAMESPACE)
            .cloned()
            .unwrap_or_default();
        let before = self.seen.replace(now.clone());
        let mut news = News::default();
        if before
            .as_ref()
            .is_some_and(|before| Arc::ptr_eq(before, &now))
        {
            return news;
        }
        let before = before.unwrap_or_default();
        for (service, instances) in now.iter() {
            if before
                .get(service)
                .is_some_and(|known| Arc::ptr_eq(known, instances))
            {
                continue;
            }
            let imported: OfService = instances
                .iter()
                .filter(|(_, registered)| registered.is_imported())
                .map(|(id, registered)| (id.clone(), registered.clone()))
                .collect();
            self.replace(service, imported, &mut news);
        }
        for service in before.keys().filter(|service| !now.contains_key(*service)) {
            self.replace(service, OfService::new(), &mut news);
        }
        news
    }

    fn replace(&mut self, service: &str, imported: OfService, news: &mut News) {
        news.changed.insert(service.to_owned());
        let before = self.imported.remove(service).unwrap_or_default();
        let removed = before.into_keys().filter(|id| !imported.contains_key(id));
        news.removed
            .extend(removed.map(|id| (service.to_owned(), id)));
        if !imported.is_empty() {
            self.imported.insert(service.to_owned(), imported);
        }
    }

    pub fn of(&self, service: &str) -> &OfService {
        self.imported.get(service).unwrap_or(&NONE)
    }

    pub fn services(&self) -> impl Iterator<Item = String> {
        self.imported.keys().cloned()
    }

    pub fn len(&self) -> usize {
        self.imported.values().map(BTreeMap::len).sum()
    }
}
