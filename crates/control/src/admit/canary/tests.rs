use super::*;
use crate::admit::tests::effects_node as node;

fn names(chosen: &[String]) -> Vec<&str> {
    chosen.iter().map(String::as_str).collect()
}

#[test]
fn the_first_are_callers_then_spread_over_services_and_versions() {
    let mut nodes: Vec<_> = (0..10)
        .map(|n| node("lobby", "v1", &format!("l{n}")))
        .collect();
    nodes.extend((0..5).map(|n| node("match", "v1", &format!("a{n}"))));
    nodes.extend((0..5).map(|n| node("match", "v2", &format!("b{n}"))));
    let battle = ServiceName::new("default", "battle");
    let around = Around {
        callers: BTreeSet::from([(ServiceName::new("default", "match"), battle.clone())]),
        ..Around::default()
    };
    let services = BTreeSet::from([battle]);
    let chosen = first(&nodes, 4, &services, &around, 1);
    let of = |prefix: &str| {
        names(&chosen)
            .iter()
            .filter(|n| n.starts_with(prefix))
            .count()
    };
    assert_eq!(
        (of("default/match/a"), of("default/match/b")),
        (2, 2),
        "{chosen:?}"
    );
    nodes.reverse();
    assert_eq!(
        first(&nodes, 4, &services, &around, 1),
        chosen,
        "whatever the order"
    );
    let others: BTreeSet<_> = (2..12)
        .map(|seed| first(&nodes, 4, &services, &around, seed))
        .collect();
    assert!(others.len() > 1, "not always the same for every change");
    assert_eq!(first(&nodes, 99, &services, &around, 1).len(), 20);
}
