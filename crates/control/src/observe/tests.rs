use super::*;

fn report(second_of: &Observe, requests: u64, failures: u64, buckets: &[(usize, u64)]) {
    let mut latency = vec![0; edges::BUCKETS];
    buckets
        .iter()
        .for_each(|(bucket, count)| latency[*bucket] = *count);
    let edge = wire::Edge {
        destination_namespace: "default".into(),
        destination_service: "battle".into(),
        destination_version: "v1".into(),
        protocol: "grpc".into(),
        requests,
        failures,
        attempts: requests,
        latency_buckets: latency,
        ..wire::Edge::default()
    };
    let request = wire::ReportRequest {
        node: "default/match/m1".into(),
        namespace: "default".into(),
        service: "match".into(),
        interval_ms: 1000,
        edges: vec![edge],
        memory_bytes: 7,
        ..wire::ReportRequest::default()
    };
    second_of.take(request).unwrap();
}

async fn seconds(count: u64) {
    tokio::time::advance(Duration::from_secs(count)).await;
}

#[tokio::test(start_paused = true)]
async fn rates_cover_the_window_and_totals_everything() {
    let observe = Observe::default();
    for _ in 0..20 {
        report(&observe, 100, 1, &[]);
        seconds(1).await;
    }
    let edges = observe.edges(Duration::from_secs(10));
    let edge = &edges.edges[0];
    assert_eq!((edge.requests, edge.rps, edge.failures), (1000, 100.0, 10));
    assert!((edge.success - 0.99).abs() < 1e-9);
    assert_eq!(edges.totals[0].requests, 2000);
    assert_eq!(observe.memory("default/match/m1"), 7);
    seconds(30).await;
    assert!(
        observe.edges(Duration::from_secs(10)).edges.is_empty(),
        "silence is not traffic"
    );
    assert_eq!(observe.edges(Duration::from_secs(10)).totals.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn quantiles_lie_within_their_bucket() {
    let observe = Observe::default();
    // 98 in (800, 1000] µs, 2 in (40, 50] ms.
    report(&observe, 100, 0, &[(9, 98), (26, 2)]);
    seconds(1).await;
    let edge = observe.edges(Duration::from_secs(5)).edges.remove(0);
    let (p50, p99) = (edge.p50_ms.unwrap(), edge.p99_ms.unwrap());
    assert!((0.8..=1.0).contains(&p50), "{p50}");
    assert!((40.0..=50.0).contains(&p99), "{p99}");
}

#[tokio::test(start_paused = true)]
async fn a_report_that_does_not_fit_is_refused() {
    let observe = Observe::default();
    let good = wire::ReportRequest {
        node: "n".into(),
        namespace: "default".into(),
        service: "match".into(),
        ..wire::ReportRequest::default()
    };
    assert!(observe.take(good.clone()).is_ok());
    let edge = wire::Edge {
        latency_buckets: vec![1; 3],
        ..wire::Edge::default()
    };
    let bad = [
        wire::ReportRequest {
            node: String::new(),
            ..good.clone()
        },
        wire::ReportRequest {
            service: "<script>".into(),
            ..good.clone()
        },
        wire::ReportRequest {
            edges: vec![edge],
            ..good.clone()
        },
        wire::ReportRequest {
            edges: vec![wire::Edge::default(); EDGES_PER_REPORT_MAX + 1],
            ..good
        },
    ];
    for report in bad {
        assert_eq!(
            observe.take(report).unwrap_err().code(),
            tonic::Code::InvalidArgument
        );
    }
}

#[tokio::test(start_paused = true)]
async fn edges_are_bounded() {
    let observe = Observe::default();
    for n in 0..3u32 {
        let edges = (0..EDGES_PER_REPORT_MAX).map(|i| wire::Edge {
            destination_service: "battle".into(),
            destination_version: format!("{n}-{i}"),
            requests: 1,
            ..wire::Edge::default()
        });
        let request = wire::ReportRequest {
            node: "n".into(),
            namespace: "default".into(),
            service: "match".into(),
            edges: edges.collect(),
            ..wire::ReportRequest::default()
        };
        observe.take(request).unwrap();
    }
    assert_eq!(observe.dropped(), 2 * EDGES_PER_REPORT_MAX as u64);
    assert_eq!(
        observe.edges(Duration::from_secs(5)).totals.len(),
        EDGES_PER_REPORT_MAX
    );
}

fn edges_of(observe: &Observe, edges: Vec<wire::Edge>) {
    let request = wire::ReportRequest {
        node: "n".into(),
        namespace: "default".into(),
        service: "match".into(),
        edges,
        ..wire::ReportRequest::default()
    };
    observe.take(request).unwrap();
}

fn edge(requests: u64, failures: u64) -> wire::Edge {
    wire::Edge {
        destination_namespace: "default".into(),
        destination_service: "battle".into(),
        requests,
        failures,
        ..wire::Edge::default()
    }
}

fn battle(observe: &Observe) -> (u64, u64) {
    let counts = observe.service(&ServiceName::new("default", "battle"));
    (counts.requests, counts.failures)
}

#[tokio::test(start_paused = true)]
async fn services_are_counted_beyond_the_bound_of_edges() {
    let observe = Observe::default();
    let many = (0..EDGES_PER_REPORT_MAX).map(|i| wire::Edge {
        destination_service: "others".into(),
        destination_version: format!("v{i}"),
        ..edge(1, 0)
    });
    edges_of(&observe, many.collect());
    edges_of(&observe, vec![edge(5, 2)]);
    assert_eq!(observe.dropped(), 1);
    assert_eq!(battle(&observe), (5, 2));
}

#[tokio::test(start_paused = true)]
async fn a_lane_says_nothing_about_its_service_and_who_gave_up_was_not_served() {
    let observe = Observe::default();
    let in_lane = wire::Edge {
        in_lane: true,
        ..edge(100, 100)
    };
    let hanging = wire::Edge {
        abandoned: 3,
        ..edge(10, 1)
    };
    edges_of(&observe, vec![in_lane, hanging]);
    assert_eq!(battle(&observe), (10, 4));
    let shown = &observe.edges(Duration::from_secs(5)).totals;
    assert_eq!((shown[0].requests, shown[0].failures), (110, 101));
    let lane = ClusterName::outbound(ServiceName::new("default", "battle"), 80).lane("dev-li");
    let traffic = Traffic {
        requests: 7,
        failures: 7,
    };
    observe.load("n", &lane, traffic);
    assert_eq!(battle(&observe), (10, 4));
    observe.load("n", &lane.baseline(), traffic);
    assert_eq!(battle(&observe), (17, 11));
}

#[tokio::test(start_paused = true)]
async fn copies_that_go_elsewhere_say_nothing_about_this_mirror() {
    let observe = Observe::default();
    let mirror = |name: &str| ClusterName::outbound(ServiceName::new("default", name), 80);
    let comparison = |rule: &str, name: &str, different: u64| wire::Comparison {
        rule: format!("HTTPRoute/default/battle/{rule}"),
        mirror: mirror(name).to_string(),
        compared: 10,
        different,
        ..wire::Comparison::default()
    };
    let request = wire::ReportRequest {
        node: "n".into(),
        namespace: "default".into(),
        service: "match".into(),
        comparisons: vec![
            comparison("0", "battle-v2", 1),
            comparison("1", "battle-v2", 0),
            comparison("0", "shadow", 10),
        ],
        ..wire::ReportRequest::default()
    };
    observe.take(request).unwrap();
    let of = |name: &str| {
        let told = observe.compared("HTTPRoute/default/battle", &mirror(name).service);
        (told.compared, told.different)
    };
    assert_eq!(of("battle-v2"), (20, 1));
    assert_eq!(of("shadow"), (10, 10));
    assert_eq!(of("battle-v1"), (0, 0));
}
