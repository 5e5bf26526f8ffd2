//! The other control planes over the store, asked with a bounded patience, and the proxies of all of them.

use std::collections::BTreeSet;
use std::time::Duration;

use phalanx_client::admin::Admin;
use phalanx_client::api;
use phalanx_model::ServiceName;

use super::Api;
use crate::admit::Around;
use crate::snapshot::Node;

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
        let (world, own) = (self.world(), self.inner.address.to_string());
        let asked = world.planes.iter().filter(|(_, plane)| plane.admin != own);
        let asked = asked.map(|(name, plane)| {
            let answer = ask(Admin::new(&plane.admin).with_timeout(PEER_MAX));
            let (name, admin) = (name.clone(), plane.admin.clone());
            async move {
                Peer {
                    name,
                    admin,
                    answer: answer.await.map_err(|error| error.to_string()),
                }
            }
        });
        futures_util::future::join_all(asked).await
    }

    /// Who would receive a change, and who calls whom.
    pub(super) async fn around(&self) -> Around {
        let mut nodes: Vec<Node> = self
            .inner
            .fleet
            .proxies()
            .into_iter()
            .map(|proxy| proxy.node)
            .collect();
        let mut known: BTreeSet<String> = nodes.iter().map(|node| node.id.clone()).collect();
        let peers = self.ask_peers(|admin| async move { admin.proxies().await });
        for peer in peers.await {
            match peer.answer {
                Ok(proxies) => {
                    let new = proxies
                        .items
                        .into_iter()
                        .filter(|p| known.insert(p.node.clone()));
                    nodes.extend(new.map(node));
                }
                Err(error) => {
                    tracing::warn!(plane = %peer.name, %error, "its proxies are not known");
                }
            }
        }
        Around {
            nodes,
            callers: self.inner.observe.callers(),
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

/// Of one question to another control plane.
const PEER_MAX: Duration = Duration::from_secs(1);
