//! A session tells the truth about every resource by name.

use super::*;

fn told(session: &Session) -> Vec<String> {
    let one = |item: Item| {
        let how = match item.delivery {
            Delivery::Synced => "synced",
            Delivery::Stale => "stale",
            Delivery::NotSent => "not sent",
            Delivery::Refused { .. } => "refused",
        };
        let version = if item.version.is_empty() { "-" } else { "+" };
        format!("{} {}{} {how}", item.kind, version, item.name)
    };
    session.inventory().map(one).collect()
}

#[test]
fn what_is_sent_acknowledged_refused_or_missing_is_told_apart() {
    let mut delta = Delta::new(mesh(1, &["a"], &["a"]));
    assert!(told(&delta.session).is_empty());
    delta.send(ask(Kind::Cluster, &["*"]));
    delta.send(ask(Kind::Endpoints, &["a", "later"]));
    assert_eq!(
        told(&delta.session),
        ["CDS -a not sent", "EDS -a not sent", "EDS -later not sent"]
    );
    let batch = delta.batch();
    delta.ack(&batch[0]);
    assert_eq!(
        told(&delta.session),
        ["CDS +a synced", "EDS -a stale", "EDS -later not sent"]
    );
    delta.nack(&batch[1], "no");
    let items: Vec<Item> = delta.session.inventory().collect();
    let refused = Delivery::Refused {
        version: endpoints("a", "1").version,
        message: "no".into(),
        since_revision: 1,
    };
    assert_eq!(items[1].delivery, refused);
    // A newer one is under way, the client still works with the older.
    let batch = delta.push(snapshot(2, [cluster("a", "2"), endpoints("a", "2")]));
    assert_eq!(
        told(&delta.session),
        ["CDS +a stale", "EDS -a stale", "EDS -later not sent"]
    );
    delta.ack_all(&batch);
    assert_eq!(
        told(&delta.session),
        ["CDS +a synced", "EDS +a synced", "EDS -later not sent"]
    );
}
