//! What health checks found out. Only verdicts of which something follows are stored: an endpoint that nobody tells about is
//! healthy, so a checker that dies takes its verdicts with it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use phalanx_model::ServiceName;
use serde::{Deserialize, Serialize};

/// By service and address; what does not change is shared between worlds.
pub type Health = Arc<BTreeMap<ServiceName, Arc<ServiceHealth>>>;
pub type ServiceHealth = BTreeMap<SocketAddr, Verdict>;

/// About one endpoint of one service, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    pub state: VerdictState,
    /// In words of whoever asked.
    pub reason: String,
    /// The checkers behind it, separated by `, `.
    pub by: String,
    /// Unix milliseconds of the transition.
    pub since_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VerdictState {
    Healthy,
    Unhealthy,
}

impl Verdict {
    /// As it is stored.
    pub fn word(&self) -> &'static str {
        match self.state {
            VerdictState::Healthy => "healthy",
            VerdictState::Unhealthy => "unhealthy",
        }
    }

    pub fn is_unhealthy(&self) -> bool {
        self.state == VerdictState::Unhealthy
    }
}

/// Puts a verdict, or takes it away.
pub(super) fn set(
    health: &mut Health,
    service: ServiceName,
    address: SocketAddr,
    verdict: Option<Verdict>,
) {
    let is_there = |health: &Health| {
        health
            .get(&service)
            .is_some_and(|of| of.contains_key(&address))
    };
    if verdict.is_none() && !is_there(health) {
        return;
    }
    let services = Arc::make_mut(health);
    let of_service = Arc::make_mut(services.entry(service.clone()).or_default());
    match verdict {
        Some(verdict) => drop(of_service.insert(address, verdict)),
        None => drop(of_service.remove(&address)),
    }
    if of_service.is_empty() {
        services.remove(&service);
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::{Key, health_key};
    use super::super::{Fold, Stored};
    use super::*;

    fn shop() -> ServiceName {
        ServiceName::new("default", "shop")
    }

    fn change(key: &str, value: Option<&str>, revision: u64) -> Stored {
        Stored {
            key: key.to_owned(),
            value: value.map(|text| text.as_bytes().to_vec()),
            revision,
        }
    }

    #[test]
    fn keys_survive_text() {
        for address in ["10.0.0.1:80", "[::1]:8080"] {
            let address = address.parse().unwrap();
            let key = Key::parse(&health_key(&shop(), &address));
            assert_eq!(key, Key::Health(shop(), address));
        }
        for key in [
            "health/default/shop",
            "health/default/shop/nowhere",
            "health/a/b/10.0.0.1",
        ] {
            assert_eq!(Key::parse(key), Key::Other, "{key}");
        }
    }

    #[test]
    fn verdicts_come_and_go_and_services_without_are_shared() {
        let (first, second) = (
            "health/default/shop/10.0.0.1:80",
            "health/default/cart/10.0.0.1:80",
        );
        let bad = r#"{"state":"unhealthy","reason":"answered 503","by":"c1","since_ms":7}"#;
        let mut fold = Fold::boot(vec![change(first, Some(bad), 1)], 1);
        let before = fold.world();
        let address = "10.0.0.1:80".parse().unwrap();
        let verdict = before.verdict(&shop(), &address).unwrap();
        assert_eq!(
            (verdict.reason.as_str(), verdict.since_ms),
            ("answered 503", 7)
        );
        fold.apply(change(second, Some(bad), 2));
        let world = fold.world();
        assert!(Arc::ptr_eq(&before.health[&shop()], &world.health[&shop()]));
        assert_eq!(world.health.values().map(|of| of.len()).sum::<usize>(), 2);
        fold.apply(change(first, None, 3));
        assert_eq!(fold.world().verdict(&shop(), &address), None);
        assert!(!fold.world().health.contains_key(&shop()));
    }

    #[test]
    fn a_damaged_verdict_is_quarantined_and_says_nothing() {
        let key = "health/default/shop/10.0.0.1:80";
        let mut fold = Fold::boot(vec![change(key, Some("{}"), 1)], 1);
        assert!(fold.world().health.is_empty());
        assert!(fold.world().quarantined[key].message.contains("damaged"));
        fold.apply(change(key, None, 2));
        assert!(fold.world().quarantined.is_empty());
    }
}
