//! What is asked of those who call the application, compiled where it was accepted.

use std::collections::BTreeMap;
use std::sync::Arc;

use phalanx_model::matching::access::CompiledAccess;
use phalanx_model::resource::colour::EdgeColours;
use phalanx_model::resource::{Inbound, InboundRule, MtlsMode};

use crate::quota::guard::{Guard, Standings};

/// The rules of every port; those for which nothing else is said share one.
#[derive(Debug)]
pub struct Entries {
    default: Arc<Entry>,
    ports: BTreeMap<u16, Arc<Entry>>,
    limits: Standings,
}

/// The rule of a port.
#[derive(Debug, Default)]
pub struct Entry {
    pub mode: MtlsMode,
    pub access: CompiledAccess,
    pub limits: Guard,
    /// What requests in plain text are given, where others show who they are.
    pub colours: Arc<EdgeColours>,
}

impl Entries {
    /// `before`: whose limits go on counting where they were.
    ///
    /// # Errors
    /// A sentence that names the policy; discovery refuses the resource with it.
    pub fn compile(inbound: &Inbound, before: Option<&Self>) -> Result<Self, String> {
        let mut limits = Standings::new();
        let before = before.map(|before| &before.limits);
        let colours = Arc::new(inbound.colours.clone());
        let mut entry = |rule: &InboundRule| {
            let access = CompiledAccess::compile(&rule.access);
            Ok::<_, String>(Arc::new(Entry {
                mode: rule.mode,
                access: access.map_err(|error| error.to_string())?,
                limits: Guard::compile(&rule.limits, &mut limits, before)?,
                colours: colours.clone(),
            }))
        };
        let default = entry(&inbound.default)?;
        let ports = inbound.ports.iter();
        let ports = ports.map(|(port, rule)| Ok((*port, entry(rule)?)));
        let ports = ports.collect::<Result<_, String>>()?;
        Ok(Self {
            default,
            ports,
            limits,
        })
    }

    pub fn of(&self, port: u16) -> &Arc<Entry> {
        self.ports.get(&port).unwrap_or(&self.default)
    }
}
