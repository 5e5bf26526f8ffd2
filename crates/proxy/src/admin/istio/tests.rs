use phalanx_model::ClusterName;

use super::*;
use crate::account::{Account, EdgeKey, Ending};

fn own() -> Own {
    Own {
        service: ServiceName::new("default", "match"),
        version: String::new(),
    }
}

fn key(traffic: Traffic) -> EdgeKey {
    let cluster = Some(ClusterName::outbound(
        ServiceName::new("game", "battle"),
        9000,
    ));
    EdgeKey {
        direction: Direction::Outbound,
        cluster,
        version: "v2".into(),
        traffic,
        security: Default::default(),
        in_lane: false,
    }
}

fn text(account: &Account) -> String {
    let mut out = Exposition::new();
    write(&mut out, &own(), &account.collect());
    out.finish()
}

/// The samples of `family` without the labels that all have in common, one per line.
fn samples(text: &str, family: &str) -> String {
    let short = |line: &str| {
        let (labels, value) = line.rsplit_once(' ').unwrap();
        let kept = [
            "request_protocol",
            "response_code",
            "grpc_response_status",
            "response_flags",
            "le=",
        ];
        let labels = labels
            .split(['{', ',', '}'])
            .filter(|label| kept.iter().any(|key| label.starts_with(key)));
        format!(
            "{} = {value}\n",
            labels
                .map(|label| label.split_once('=').unwrap().1)
                .collect::<Vec<_>>()
                .join(" ")
        )
    };
    text.lines()
        .filter(|line| line.starts_with(&format!("{family}{{")))
        .map(short)
        .collect()
}

fn end(
    account: &Account,
    traffic: Traffic,
    status: u16,
    grpc_status: Option<u8>,
    reason: Option<Reason>,
    duration_us: u64,
) {
    account.edge(key(traffic)).cell(0).end(&Ending {
        status,
        grpc_status,
        reason,
        duration_us,
    });
}

#[test]
fn requests_are_told_apart_by_answer() {
    let account = Account::new(1);
    for (status, reason) in [
        (200, None),
        (200, None),
        (503, None),
        (503, Some(Reason::ConnectFailed)),
        (0, None),
    ] {
        end(&account, Traffic::Http, status, None, reason, 1);
    }
    for (grpc, reason) in [
        (0, None),
        (14, None),
        (14, Some(Reason::ConnectFailed)),
        (2, None),
        (99, None),
    ] {
        end(&account, Traffic::Grpc, 200, Some(grpc), reason, 1);
    }
    end(&account, Traffic::Grpc, 502, None, None, 1);
    assert_eq!(
        samples(&text(&account), "istio_requests_total"),
        "\
\"http\" \"0\" \"\" \"DC\" = 1
\"http\" \"200\" \"\" \"-\" = 2
\"http\" \"503\" \"\" \"-\" = 1
\"http\" \"503\" \"\" \"UF\" = 1
\"grpc\" \"200\" \"0\" \"-\" = 1
\"grpc\" \"200\" \"2\" \"-\" = 2
\"grpc\" \"200\" \"14\" \"-\" = 1
\"grpc\" \"200\" \"14\" \"UF\" = 1
\"grpc\" \"502\" \"\" \"-\" = 1
"
    );
}

#[test]
fn durations_have_the_bounds_of_istio() {
    let account = Account::new(1);
    for duration_us in [500, 501, 30_000, 4_000_000_000] {
        end(&account, Traffic::Http, 200, None, None, duration_us);
    }
    let text = text(&account);
    let buckets = samples(&text, "istio_request_duration_milliseconds_bucket");
    assert!(
        buckets.starts_with("\"http\" \"0.5\" = 1\n\"http\" \"1\" = 2\n\"http\" \"5\" = 2\n"),
        "{buckets}"
    );
    assert!(
        buckets.contains("\"25\" = 2\n\"http\" \"50\" = 3\n")
            && buckets.ends_with("\"3600000\" = 3\n\"http\" \"+Inf\" = 4\n"),
        "{buckets}"
    );
    assert_eq!(
        samples(&text, "istio_request_duration_milliseconds_sum"),
        "\"http\" = 4000031.001\n"
    );
}

#[test]
fn an_edge_carries_the_labels_of_istio() {
    let account = Account::new(1);
    end(&account, Traffic::Http, 200, None, None, 1);
    let edge = EdgeKey {
        direction: Direction::Inbound,
        cluster: None,
        version: String::new(),
        traffic: Traffic::Tcp,
        security: Default::default(),
        in_lane: false,
    };
    let inbound = account.edge(edge);
    inbound.cell(0).tunnel_opened();
    inbound.cell(0).tunnel_moved(3, 5);
    let text = text(&account);
    let line = |start: &str| {
        text.lines()
            .find(|line| line.starts_with(start))
            .unwrap()
            .to_owned()
    };
    assert_eq!(
        line("istio_requests_total{"),
        "istio_requests_total{reporter=\"source\",source_workload=\"match\",source_workload_namespace=\"default\",\
source_app=\"match\",source_version=\"unknown\",source_cluster=\"phalanx\",\
source_canonical_service=\"match\",source_canonical_revision=\"latest\",destination_workload=\"battle\",\
destination_workload_namespace=\"game\",destination_app=\"battle\",\
destination_version=\"v2\",destination_cluster=\"phalanx\",destination_canonical_service=\"battle\",\
destination_canonical_revision=\"v2\",destination_service_name=\"battle\",destination_service_namespace=\"game\",\
request_protocol=\"http\",connection_security_policy=\"none\",\
source_principal=\"unknown\",destination_principal=\"unknown\",destination_service=\"battle.game.svc.mesh\",\
response_code=\"200\",grpc_response_status=\"\",response_flags=\"-\"} 1"
    );
    let sent = line("istio_tcp_sent_bytes_total{");
    assert!(
        sent.contains("reporter=\"destination\"") && sent.contains("source_workload=\"unknown\""),
        "{sent}"
    );
    assert!(
        sent.contains("destination_service=\"match.default.svc.mesh\"") && sent.ends_with("} 5"),
        "{sent}"
    );
    assert!(line("istio_tcp_received_bytes_total{").ends_with("} 3"));
    assert!(line("istio_tcp_connections_opened_total{").ends_with("} 1"));
}

#[test]
fn secured_edge_names_both_ends() {
    let account = Account::new(1);
    let id = |text: &str| Security::Mutual(Some(Box::new(text.parse().unwrap())));
    let caller = id("spiffe://phalanx.local/ns/game/sa/gateway");
    for (direction, security) in [
        (Direction::Inbound, caller.clone()),
        (Direction::Outbound, caller),
    ] {
        let edge = account.edge(EdgeKey {
            direction,
            security,
            ..key(Traffic::Http)
        });
        edge.cell(0).end(&Ending {
            status: 200,
            grpc_status: None,
            reason: None,
            duration_us: 1,
        });
    }
    let text = text(&account);
    for (reporter, ends) in [
        ("destination", ["source", "destination"]),
        ("source", ["destination", "source"]),
    ] {
        let start = format!("istio_requests_total{{reporter=\"{reporter}\"");
        let line = text.lines().find(|line| line.starts_with(&start)).unwrap();
        let [peer, this] = ends;
        for label in [
            format!("{peer}_principal=\"spiffe://phalanx.local/ns/game/sa/gateway\""),
            format!("{this}_principal=\"spiffe://phalanx.local/ns/default/sa/match\""),
            "connection_security_policy=\"mutual_tls\"".to_owned(),
        ] {
            assert!(line.contains(&label), "{label} in {line}");
        }
    }
    let inbound = "source_workload=\"gateway\",source_workload_namespace=\"game\"";
    assert!(text.contains(inbound), "{text}");
}
