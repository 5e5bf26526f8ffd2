//! Reports of several data planes, added up and forgotten.

use super::*;
use crate::snapshot::Compiler;
use crate::world::World;

fn loads() -> Loads {
    let published = Compiler::default().compile(Arc::new(World::empty()));
    let (_, receiver) = watch::channel(Arc::new(published));
    Loads::new(INTERVAL, receiver)
}

fn report(cluster: &str, zone: &str, issued: u64, in_progress: u64) -> wire::LoadStatsRequest {
    let stats = UpstreamLocalityStats {
        locality: Some(WireLocality {
            zone: zone.into(),
            ..WireLocality::default()
        }),
        total_issued_requests: issued,
        total_successful_requests: issued,
        total_requests_in_progress: in_progress,
        ..UpstreamLocalityStats::default()
    };
    wire::LoadStatsRequest {
        cluster_stats: vec![ClusterStats {
            cluster_name: cluster.into(),
            upstream_locality_stats: vec![stats],
            ..ClusterStats::default()
        }],
        ..wire::LoadStatsRequest::default()
    }
}

fn told(loads: &Loads) -> Vec<String> {
    let one = |(place, load, _): &(Place, Load, Duration)| {
        format!(
            "{} {} {}+{} of {}",
            place.cluster, place.zone, load.issued, load.in_progress, load.reporters
        )
    };
    loads.summary().places.iter().map(one).collect()
}

#[tokio::test(start_paused = true)]
async fn reports_add_up_per_cluster_and_zone_and_what_is_in_progress_is_of_now() {
    let loads = loads();
    let (mut one, mut two) = (Reporter::new(loads.clone()), Reporter::new(loads.clone()));
    one.take(report("a", "z1", 5, 2)).unwrap();
    two.take(report("a", "z1", 3, 1)).unwrap();
    two.take(report("a", "z2", 1, 0)).unwrap();
    one.take(report("a", "z1", 5, 1)).unwrap();
    one.take(report("idle", "z1", 0, 0)).unwrap();
    assert_eq!(told(&loads), ["a z1 13+2 of 2", "a z2 1+0 of 1"]);
    drop(one);
    assert_eq!(told(&loads), ["a z1 13+1 of 1", "a z2 1+0 of 1"]);
    drop(two);
    tokio::time::advance(AGE_MAX).await;
    assert_eq!(told(&loads), Vec::<String>::new());
}

#[tokio::test]
async fn places_are_bounded_and_what_is_beyond_is_counted() {
    let loads = loads();
    let mut reporter = Reporter::new(loads.clone());
    for cluster in 0..ROWS_MAX + 5 {
        reporter
            .take(report(&cluster.to_string(), "", 1, 0))
            .unwrap();
    }
    let summary = loads.summary();
    assert_eq!((summary.places.len(), summary.dropped), (ROWS_MAX, 5));
    let long = "x".repeat(NAME_MAX + 1);
    assert!(reporter.take(report(&long, "", 1, 0)).is_err());
    assert!(reporter.take(report("a\nb", "", 1, 0)).is_err());
}

#[test]
fn who_can_not_be_asked_for_all_is_asked_by_name() {
    let loads = loads();
    let mut node = Node::default();
    assert!(!loads.request(&node).send_all_clusters);
    node.client_features.push(SEND_ALL.into());
    assert!(loads.request(&node).send_all_clusters);
}

#[tokio::test]
async fn counts_beyond_all_measure_overflow_nothing() {
    let loads = loads();
    let mut reporter = Reporter::new(loads.clone());
    for _ in 0..2 {
        let mut huge = report("a", "", u64::MAX, u64::MAX);
        huge.cluster_stats[0].total_dropped_requests = u64::MAX;
        reporter.take(huge).unwrap();
    }
    let summary = loads.summary();
    assert_eq!(summary.refused, [("a".to_owned(), u64::MAX)]);
    assert_eq!(summary.places[0].1.issued, u64::MAX);
}
