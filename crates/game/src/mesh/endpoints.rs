//! Where the instances of a service are, as the registry has it: for whoever has no sidecar, or speaks what a sidecar does not.
//! Whether they want traffic is not told here; a sidecar knows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use phalanx_client::backoff::Backoff;
use phalanx_client::channel::Control;
use phalanx_client::registry::Watch;
use phalanx_model::{Instance as Registered, InstanceId, ServiceName};
use tokio::sync::watch::{Receiver, Sender, channel};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tracing::debug;

const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// What is known of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// By id; addresses with mutual TLS are those of sidecars that take nothing else.
    pub instances: Arc<BTreeMap<InstanceId, Registered>>,
    /// It was told, and is kept up to date. Else it is as it was when the control plane was last heard of.
    pub current: bool,
}

/// Follows one service. Dropping it ends that.
#[derive(Debug)]
pub struct Endpoints {
    known: Receiver<Known>,
    task: JoinHandle<()>,
}

impl Endpoints {
    pub(super) fn follow(control: Control, service: ServiceName) -> Self {
        let (said, known) = channel(Known::default());
        Self {
            known,
            task: tokio::spawn(run(control, service, said)),
        }
    }

    pub fn known(&self) -> Known {
        self.known.borrow().clone()
    }

    /// Ticks with each change.
    pub fn changes(&self) -> Receiver<Known> {
        self.known.clone()
    }
}

impl Drop for Endpoints {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(control: Control, service: ServiceName, said: Sender<Known>) {
    let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
    while !said.is_closed() {
        let opened = Watch::open(control.channel(), &service.namespace, &service.name).await;
        let broke = match opened {
            Ok(watch) => told(watch, &said, &mut backoff).await,
            Err(error) => error.to_string(),
        };
        debug!(%service, error = broke, "the registry is not followed, trying again");
        said.send_if_modified(|known| std::mem::take(&mut known.current));
        sleep(backoff.wait()).await;
    }
}

/// Why it ended.
async fn told(mut watch: Watch, said: &Sender<Known>, backoff: &mut Backoff) -> String {
    let mut instances = BTreeMap::new();
    loop {
        match watch.next().await {
            Ok(Some(update)) => {
                backoff.reset();
                update.apply(&mut instances);
                let instances = Arc::new(instances.clone());
                said.send_replace(Known {
                    instances,
                    current: true,
                });
            }
            Ok(None) => return "it ended".to_owned(),
            Err(error) => return error.to_string(),
        }
    }
}
