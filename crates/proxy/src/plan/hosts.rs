//! Hosts in use. On demand, each authority that the application called has a route table of its own; one that leads
//! nowhere has a table without hosts.

use std::collections::HashMap;
use std::sync::Arc;

use phalanx_model::name::ClusterName;

use super::table::Table;

/// A route table and where its clusters are in this plan.
pub struct Routes {
    pub table: Arc<Table>,
    /// By the table's own numbers; none for a cluster that has not come.
    pub clusters: Box<[Option<usize>]>,
}

impl Routes {
    /// There is no such host: the answer is "no".
    pub fn is_empty(&self) -> bool {
        self.table.rules().hosts().is_empty()
    }

    pub(super) fn new(table: &Arc<Table>, place: impl Fn(&ClusterName) -> Option<usize>) -> Self {
        Self {
            clusters: table.clusters().iter().map(place).collect(),
            table: table.clone(),
        }
    }

    fn is(&self, table: &Arc<Table>, place: impl Fn(&ClusterName) -> Option<usize>) -> bool {
        Arc::ptr_eq(&self.table, table)
            && table
                .clusters()
                .iter()
                .zip(&self.clusters)
                .all(|(name, at)| place(name) == *at)
    }
}

/// By canonical authority, with port if one was given. Hashed with a key: names come from the application.
#[derive(Default)]
pub struct Hosts(HashMap<Arc<str>, Arc<Routes>>);

impl Hosts {
    /// Notes that it is used.
    #[inline]
    pub fn find(&self, authority: &str) -> Option<&Routes> {
        let routes = self.0.get(authority)?;
        routes.table.touch();
        Some(routes)
    }

    pub fn contains(&self, authority: &str) -> bool {
        self.0.contains_key(authority)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes from `previous` whatever is still the same, all of it if everything is.
    pub(super) fn renewed<'t>(
        tables: impl Iterator<Item = (&'t str, &'t Arc<Table>)>,
        place: impl Fn(&ClusterName) -> Option<usize>,
        previous: Option<&Arc<Self>>,
    ) -> Arc<Self> {
        let mut hosts = HashMap::new();
        let mut all_kept = true;
        for (authority, table) in tables {
            let before = previous.and_then(|previous| previous.0.get_key_value(authority));
            let (name, routes) = match before {
                Some((name, routes)) if routes.is(table, &place) => (name.clone(), routes.clone()),
                _ => {
                    all_kept = false;
                    (authority.into(), Arc::new(Routes::new(table, &place)))
                }
            };
            hosts.insert(name, routes);
        }
        match previous {
            Some(previous) if all_kept && previous.len() == hosts.len() => previous.clone(),
            _ => Arc::new(Self(hosts)),
        }
    }
}
