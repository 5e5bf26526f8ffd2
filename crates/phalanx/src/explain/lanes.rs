//! Why a request with a colour is in no lane: a sidecar knows only that nobody of one is there; who has the documents, or asks
//! the control plane, knows whether there is such a lane at all.

use phalanx_client::api::LaneViews;
use phalanx_model::ClusterName;
use phalanx_model::identity::SYSTEM_NAMESPACE;
use phalanx_model::name::is_colour;
use phalanx_proxy::explain::{Explanation, TakenBy};

/// A lane in force.
pub struct Known {
    pub colour: String,
    /// Whose services it is for; `phalanx-system`: everybody's.
    pub namespace: String,
    /// The policy that says so, with its place where that is known.
    pub policy: String,
    /// `key=value,…`, where it is known.
    pub selector: Option<String>,
}

impl Known {
    pub fn of(views: LaneViews) -> Vec<Self> {
        let known = views.items.into_iter().map(|view| Self {
            colour: view.colour,
            namespace: view.namespace,
            policy: view.policy,
            selector: None,
        });
        known.collect()
    }

    fn is_for(&self, namespace: &str) -> bool {
        self.namespace == namespace || self.namespace == SYSTEM_NAMESPACE
    }
}

/// The colour of a request that the baseline takes for want of a lane; none: there is nothing to be said.
pub fn missed(told: &Explanation) -> Option<&str> {
    let coloured = told.colour.as_ref()?;
    let colour = coloured.colour.as_deref()?;
    let is_missed = coloured.taken_by == Some(TakenBy::Baseline)
        && is_colour(colour.as_bytes())
        && !coloured.lanes.iter().any(|lane| lane == colour);
    is_missed.then_some(colour)
}

/// Says which it is.
pub fn tell(told: &mut Explanation, all: &[Known]) {
    let Some(colour) = missed(told).map(str::to_owned) else {
        return;
    };
    let names = told.backends.iter().filter_map(|backend| {
        let name: ClusterName = backend.cluster.as_ref()?.parse().ok()?;
        Some(name.service)
    });
    let mut names: Vec<_> = names.collect();
    names.dedup();
    let those = || all.iter().filter(|known| known.colour == colour);
    let meant = those().find(|known| names.iter().any(|name| known.is_for(&name.namespace)));
    let names: Vec<String> = names
        .iter()
        .map(|name| format!("{}.{}", name.name, name.namespace))
        .collect();
    let names = names.join(", ");
    let why = match (meant, those().next()) {
        (Some(lane), _) => {
            let wanted = lane.selector.as_deref();
            let wanted = wanted.map_or(String::new(), |labels| format!(" with {labels}"));
            format!(
                "lane {colour} of {} has no instance{wanted} for {names}",
                lane.policy
            )
        }
        (None, Some(other)) => format!(
            "lane {colour} of {} is for services of namespace {}, not for {names}",
            other.policy, other.namespace
        ),
        (None, None) => format!("no ColourPolicy in force has a lane {colour}"),
    };
    if let Some(coloured) = &mut told.colour {
        coloured.why = Some(why);
    }
}

#[cfg(test)]
mod tests {
    use phalanx_proxy::explain::{Backend, Coloured};

    use super::*;

    fn told(colour: &str) -> Explanation {
        Explanation {
            colour: Some(Coloured {
                colour: Some(colour.into()),
                taken_by: Some(TakenBy::Baseline),
                why: Some("as the sidecar says".into()),
                ..Coloured::default()
            }),
            backends: vec![Backend {
                cluster: Some("outbound|80|battle.default.svc.mesh".into()),
                ..Backend::default()
            }],
            ..Explanation::default()
        }
    }

    fn why(colour: &str, namespace: &str) -> String {
        let lane = Known {
            colour: "dev-li".into(),
            namespace: namespace.into(),
            policy: format!("ColourPolicy/{namespace}/colours"),
            selector: Some("lane=dev-li".into()),
        };
        let mut told = told(colour);
        tell(&mut told, &[lane]);
        told.colour
            .and_then(|colour| colour.why)
            .unwrap_or_default()
    }

    #[test]
    fn a_lane_that_nobody_is_in_is_told_from_one_that_does_not_exist() {
        assert_eq!(
            why("dev-li", "default"),
            "lane dev-li of ColourPolicy/default/colours has no instance with lane=dev-li for battle.default"
        );
        assert_eq!(
            why("dev-li", SYSTEM_NAMESPACE)
                .matches("no instance")
                .count(),
            1
        );
        assert_eq!(
            why("dev-li", "eu"),
            "lane dev-li of ColourPolicy/eu/colours is for services of namespace eu, not for battle.default"
        );
        assert_eq!(
            why("dev-wu", "default"),
            "no ColourPolicy in force has a lane dev-wu"
        );
        assert_eq!(why("Dev Li!", "default"), "as the sidecar says");
    }
}
