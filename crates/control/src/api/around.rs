//! The other control planes over the store, asked with a bounded patience, and the proxies of all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use phalanx_client::admin::Admin;
use phalanx_client::api;
use phalanx_model::ServiceName;
use phalanx_xds::Kind;

use super::Api;
use crate::admit::Around;
use crate::discovery::others;
use crate::snapshot::{Asks, Node};

/// Another control plane and its answer.
pub struct Peer<T> {
    pub name: String,
    pub admin: String,
    pub answer: Result<T, String>,
}

impl Api {
    /// Asks every other control plane at the same time.
    pub(super) async fn ask_peers<T, F>(&self, ask: impl Fn(Admin) -> F) -> Vec<Peer<T>>
    where
        F: Future<Output = Result<T, phalanx_client::admin::AdminError>>,
    {
        let world = self.world();
        let planes = self.inner.registry.planes();
        let asked = others(&world, planes).map(|(name, admin, client)| {
            let answer = client.map(&ask);
            let (name, admin) = (name.to_owned(), admin.to_owned());
            async move {
                let answer = match answer {
                    Ok(answer) => answer.await.map_err(|error| error.to_string()),
                    Err(problem) => Err(problem),
                };
                Peer {
                    name,
                    admin,
                    answer,
                }
            }
        });
        futures_util::future::join_all(asked).await
    }

    /// Who would receive a change, and who calls whom.
    pub(super) async fn around(&self) -> Around {
        let (mut nodes, mut asks, mut unknown) = (Vec::new(), BTreeMap::new(), Vec::new());
        for proxy in self.inner.fleet.proxies() {
            asks.extend(proxy.asks.map(|asked| (proxy.node.id.clone(), asked)));
            nodes.push(proxy.node);
        }
        let mut known: BTreeSet<String> = nodes.iter().map(|node| node.id.clone()).collect();
        let peers = self.ask_peers(|admin| async move { admin.proxies_asking().await });
        for peer in peers.await {
            match peer.answer {
                Ok(proxies) => {
                    let new = proxies
                        .items
                        .into_iter()
                        .filter(|p| known.insert(p.node.clone()));
                    for mut proxy in new {
                        let asked = proxy.asks.take().map(|asked| Arc::new(read(&asked)));
                        asks.extend(asked.map(|asked| (proxy.node.clone(), asked)));
                        nodes.push(node(proxy));
                    }
                }
                Err(error) => unknown.push(format!(
                    "control plane {} can't be asked, its proxies are left out: {error}",
                    peer.name
                )),
            }
        }
        Around {
            nodes,
            asks,
            callers: self.inner.observe.callers(),
            unknown,
        }
    }
}

fn node(proxy: api::Proxy) -> Node {
    let service = ServiceName::new(&proxy.namespace, &proxy.service);
    Node::known(
        proxy.node,
        service,
        proxy.version,
        proxy.instance,
        proxy.agent,
    )
}

/// Of `RDS outbound/shop` and the like.
fn read(asked: &[String]) -> Asks {
    let name = |text: &String| {
        let (kind, name) = text.split_once(' ')?;
        let kind = Kind::ALL.into_iter().find(|known| known.as_str() == kind)?;
        Some((kind, name.to_owned()))
    };
    asked.iter().filter_map(name).collect()
}
