//! The policies of one port, compiled where they were accepted, and what they say of a request: first what is shed, then
//! the limits, then faults.

use std::collections::BTreeMap;
use std::sync::Arc;

use phalanx_model::identity::SpiffeId;
use phalanx_model::matching::pattern::PatternError;
use phalanx_model::matching::{HeaderTests, Request};
use phalanx_model::reason::Reason;
use phalanx_model::resource::limit::{FaultEffect, LimitKey, Limits, Priority, SHARE_WHOLE};
use phalanx_relay::{Checked, Reply};

use super::bucket::{Bucket, Pace};
use super::counts::{Counts, Refused};
use super::leases::{Leases, key_of};
use super::load::{Admitted, Load};
use super::{clock, lag};

/// Of one port.
#[derive(Debug, Default)]
pub struct Guard(Box<[Arc<Standing>]>);

/// One policy and what it has counted so far.
#[derive(Debug)]
pub struct Standing {
    pub policy: String,
    pub counts: Arc<Counts>,
    pub load: Option<Arc<Load>>,
    pub leases: Option<Arc<Leases>>,
    local: Option<(Pace, Arc<Bucket>)>,
    faults: Box<[Fault]>,
    priorities: Box<[(Priority, HeaderTests)]>,
    usual: Priority,
    probe: Option<Box<str>>,
}

#[derive(Debug)]
struct Fault {
    effect: FaultEffect,
    share: u32,
    headers: HeaderTests,
}

/// By name; the ports of a sidecar share them.
pub type Standings = BTreeMap<String, Arc<Standing>>;

/// What a request that passes brings along.
#[derive(Debug, Default)]
pub struct Passed {
    pub delay_ms: u64,
    pub admitted: Option<Admitted>,
}

/// Who asks, beside the request.
pub struct Asker<'a> {
    pub caller: Option<&'a SpiffeId>,
    /// What somebody of the mesh says of its urgency.
    pub told: Option<Priority>,
    pub rng: &'a mut fastrand::Rng,
}

impl Guard {
    /// What `known` has is used, and added to. `before`: what goes on counting where it was.
    ///
    /// # Errors
    /// A sentence that names the policy.
    pub fn compile(
        limits: &[Limits],
        known: &mut Standings,
        before: Option<&Standings>,
    ) -> Result<Self, String> {
        let mut standing = |limits: &Limits| {
            if let Some(same) = known.get(&limits.policy) {
                return Ok(same.clone());
            }
            let before = before.and_then(|before| before.get(&limits.policy));
            let made = Standing::compile(limits, before.map(|before| &**before));
            let made = made.map_err(|error| format!("policy `{}`: {error}", limits.policy))?;
            let made = Arc::new(made);
            known.insert(limits.policy.clone(), made.clone());
            Ok(made)
        };
        limits
            .iter()
            .map(&mut standing)
            .collect::<Result<_, String>>()
            .map(Self)
    }

    #[inline]
    pub fn is_open(&self) -> bool {
        self.0.is_empty()
    }

    pub fn standings(&self) -> impl Iterator<Item = &Arc<Standing>> {
        self.0.iter()
    }

    /// # Errors
    /// The answer to a request that does not pass.
    pub fn admit(&self, request: &Checked, mut asker: Asker<'_>) -> Result<Passed, Reply> {
        let now_ns = clock::now_ns();
        let mut passed = Passed::default();
        for standing in &self.0 {
            standing.admit(request, &mut asker, now_ns, &mut passed)?;
        }
        for standing in &self.0 {
            standing.inject(request, asker.rng, &mut passed)?;
        }
        Ok(passed)
    }
}

impl Standing {
    fn compile(limits: &Limits, before: Option<&Standing>) -> Result<Self, PatternError> {
        let local = limits.local.map(|rate| {
            let pace = Pace::new(&rate);
            let known = before.and_then(|before| before.local.as_ref());
            let same = known.filter(|(known, _)| *known == pace);
            (
                pace,
                same.map_or_else(Arc::default, |(_, bucket)| bucket.clone()),
            )
        });
        let leases = limits.global.as_ref().map(|limit| {
            let known = before.and_then(|before| before.leases.as_ref());
            let same = known.filter(|known| known.limit == *limit);
            let new = || Arc::new(Leases::new(&limits.policy, limit));
            same.cloned().unwrap_or_else(new)
        });
        let load = limits.overload.as_ref().map(|overload| {
            let known = before.and_then(|before| before.load.as_ref());
            let same = known.filter(|known| known.is_for(overload));
            same.cloned()
                .unwrap_or_else(|| Arc::new(Load::new(overload)))
        });
        let fault = |fault: &phalanx_model::resource::limit::Fault| {
            Ok(Fault {
                effect: fault.effect,
                share: fault.share,
                headers: HeaderTests::compile(&fault.headers)?,
            })
        };
        let rules = limits.overload.iter().flat_map(|one| &one.priorities);
        Ok(Self {
            policy: limits.policy.clone(),
            counts: before.map_or_else(Arc::default, |before| before.counts.clone()),
            load,
            leases,
            local,
            faults: limits.faults.iter().map(fault).collect::<Result<_, _>>()?,
            probe: limits.probe.as_deref().map(Box::from),
            priorities: rules
                .map(|rule| Ok((rule.priority, HeaderTests::compile(&rule.headers)?)))
                .collect::<Result<_, _>>()?,
            usual: limits
                .overload
                .as_ref()
                .map_or_else(Priority::default, |one| one.default),
        })
    }

    fn admit(
        &self,
        request: &Checked,
        asker: &mut Asker<'_>,
        now_ns: u64,
        passed: &mut Passed,
    ) -> Result<(), Reply> {
        // Who asks whether an instance works is to hear that, and not how busy it is.
        if request.path() == GRPC_HEALTH || self.probe.as_deref() == Some(request.path()) {
            return Ok(());
        }
        if let Some(load) = &self.load {
            let priority = self.priority(request, asker.told);
            let Some(mut admitted) = load.enter(priority, lag::lag_ns(), now_ns) else {
                return Err(self.refuse(Refused::Shed(priority), Reason::Overload));
            };
            admitted.other = passed.admitted.take().map(Box::new);
            passed.admitted = Some(admitted);
        }
        if let Some((pace, bucket)) = &self.local
            && !bucket.take(*pace, now_ns)
        {
            return Err(self.refuse(Refused::Local, Reason::RateLimited));
        }
        if let Some(leases) = &self.leases {
            let key = match &leases.limit.by {
                LimitKey::All => 0,
                LimitKey::Header(name) => {
                    let value = request.header(name);
                    key_of(value.as_deref().unwrap_or_default())
                }
                LimitKey::Caller => asker.caller.map_or_else(|| key_of(b""), key_of_caller),
            };
            if !leases.take(key, now_ns) {
                return Err(self.refuse(Refused::Global, Reason::RateLimited));
            }
        }
        Ok(())
    }

    /// What the mesh says of it, else the first rule that matches.
    fn priority(&self, request: &Checked, told: Option<Priority>) -> Priority {
        let of_rule = || {
            let mut rules = self.priorities.iter();
            let rule = rules.find(|(_, headers)| headers.hold(request))?;
            Some(rule.0)
        };
        told.or_else(of_rule).unwrap_or(self.usual)
    }

    fn inject(
        &self,
        request: &Checked,
        rng: &mut fastrand::Rng,
        passed: &mut Passed,
    ) -> Result<(), Reply> {
        for fault in &self.faults {
            let is_meant = fault.share >= SHARE_WHOLE || rng.u32(0..SHARE_WHOLE) < fault.share;
            if !is_meant || !fault.headers.hold(request) {
                continue;
            }
            match fault.effect {
                FaultEffect::Delay(delay) => {
                    let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
                    passed.delay_ms = passed.delay_ms.saturating_add(delay_ms);
                    self.counts.count(Refused::Delayed);
                }
                FaultEffect::Status(status) => {
                    let reply = self.refuse(Refused::Aborted, Reason::Fault);
                    let code = grpc_code_of(status);
                    return Err(reply.with_status(status).with_grpc_status(code));
                }
                FaultEffect::Grpc(code) if request.is_grpc() => {
                    let reply = self.refuse(Refused::Aborted, Reason::Fault);
                    return Err(reply.with_grpc_status(code));
                }
                FaultEffect::Grpc(_) => {}
            }
        }
        Ok(())
    }

    fn refuse(&self, what: Refused, reason: Reason) -> Reply {
        self.counts.count(what);
        Reply::of(reason)
    }
}

const GRPC_HEALTH: &str = "/grpc.health.v1.Health/Check";

/// Neither part can hold the other's separator.
fn key_of_caller(caller: &SpiffeId) -> u64 {
    let service = &caller.service;
    let namespace = key_of(service.namespace.as_bytes());
    key_of(service.name.as_bytes()) ^ namespace.rotate_left(1)
}

/// As gRPC's clients read a status that no server of theirs has sent.
fn grpc_code_of(status: u16) -> u8 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

#[cfg(test)]
mod tests;
