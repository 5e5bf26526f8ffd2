//! What is asked of those who call the application, compiled where it was accepted.

use std::collections::BTreeMap;
use std::sync::Arc;

use phalanx_model::matching::access::{AccessError, CompiledAccess};
use phalanx_model::resource::{Inbound, InboundRule, MtlsMode};

/// The rules of every port; those for which nothing else is said share one.
#[derive(Debug)]
pub struct Entries {
    default: Arc<Entry>,
    ports: BTreeMap<u16, Arc<Entry>>,
}

/// The rule of a port.
#[derive(Debug, Default)]
pub struct Entry {
    pub mode: MtlsMode,
    pub access: CompiledAccess,
}

impl Entries {
    /// # Errors
    /// A sentence that names the policy; discovery refuses the resource with it.
    pub fn compile(inbound: &Inbound) -> Result<Self, String> {
        let entry = |rule: &InboundRule| Entry::compile(rule).map_err(|error| error.to_string());
        let ports = inbound.ports.iter();
        Ok(Self {
            default: Arc::new(entry(&inbound.default)?),
            ports: ports
                .map(|(port, rule)| Ok((*port, Arc::new(entry(rule)?))))
                .collect::<Result<_, String>>()?,
        })
    }

    pub fn of(&self, port: u16) -> &Arc<Entry> {
        self.ports.get(&port).unwrap_or(&self.default)
    }
}

impl Entry {
    fn compile(rule: &InboundRule) -> Result<Self, AccessError> {
        Ok(Self {
            mode: rule.mode,
            access: CompiledAccess::compile(&rule.access)?,
        })
    }
}
