//! Following the registry: the full state first, then what changed.

use std::collections::BTreeMap;

use phalanx_model::instance::State;
use phalanx_model::{Instance, InstanceId};
use phalanx_proto::phalanx::registry::v1::registry_client::RegistryClient;
use phalanx_proto::phalanx::registry::v1::{WatchRequest, WatchResponse};
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::wire::{InvalidInstance, from_wire, id_from_wire, state_from_wire};

/// One open stream of updates. After an error or the end it is opened anew, and starts with the full state again.
#[derive(Debug)]
pub struct Watch {
    stream: Streaming<WatchResponse>,
}

impl Watch {
    /// Empty `namespace`: everything; empty `service`: every service of the namespace.
    ///
    /// # Errors
    /// [`WatchError::Call`] when the control plane can't be reached or refuses.
    pub async fn open(
        control: Channel,
        namespace: &str,
        service: &str,
    ) -> Result<Self, WatchError> {
        Self::begin(
            control,
            WatchRequest {
                namespace: namespace.to_owned(),
                service: service.to_owned(),
                id: String::new(),
            },
        )
        .await
    }

    /// One instance alone.
    ///
    /// # Errors
    /// As [`Watch::open`].
    pub async fn open_one(control: Channel, id: &InstanceId) -> Result<Self, WatchError> {
        Self::begin(
            control,
            WatchRequest {
                namespace: id.service.namespace.clone(),
                service: id.service.name.clone(),
                id: id.id.clone(),
            },
        )
        .await
    }

    async fn begin(control: Channel, request: WatchRequest) -> Result<Self, WatchError> {
        let stream = RegistryClient::new(control)
            .watch(request)
            .await?
            .into_inner();
        Ok(Self { stream })
    }

    /// Waits for the next update; none at the end of the stream.
    ///
    /// # Errors
    /// [`WatchError`]; the watch is over then.
    pub async fn next(&mut self) -> Result<Option<Update>, WatchError> {
        let Some(response) = self.stream.message().await? else {
            return Ok(None);
        };
        let WatchResponse {
            revision,
            full,
            upserted,
            removed,
        } = response;
        let states = upserted
            .iter()
            .map(|instance| state_from_wire(instance.state))
            .collect();
        let upserted = upserted
            .into_iter()
            .map(from_wire)
            .collect::<Result<_, _>>()?;
        let removed = removed
            .iter()
            .map(|key| id_from_wire(&key.namespace, &key.service, &key.id))
            .collect::<Result<_, _>>()?;
        Ok(Some(Update {
            revision,
            full,
            upserted,
            states,
            removed,
        }))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    pub revision: u64,
    /// Replaces everything known so far.
    pub full: bool,
    pub upserted: Vec<Instance>,
    /// Of those, in the same order: whether they want traffic, by their own word and an operator's.
    pub states: Vec<State>,
    pub removed: Vec<InstanceId>,
}

impl Update {
    /// Folds the update into what is known.
    pub fn apply(self, known: &mut BTreeMap<InstanceId, Instance>) {
        if self.full {
            known.clear();
        }
        for id in &self.removed {
            known.remove(id);
        }
        known.extend(
            self.upserted
                .into_iter()
                .map(|instance| (instance.id.clone(), instance)),
        );
    }
}

#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    #[error("the registry can't be followed")]
    Call(#[source] Box<Status>),
    #[error("the registry sent an instance that can't be taken")]
    Instance(#[from] InvalidInstance),
}

impl From<Status> for WatchError {
    fn from(status: Status) -> Self {
        Self::Call(Box::new(status))
    }
}
