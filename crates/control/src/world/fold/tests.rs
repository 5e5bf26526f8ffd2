use phalanx_model::ServiceName;
use phalanx_model::document::Kind;
use serde_json::{Value, json};

use super::*;
use crate::world::fixture::{Fixture, instance};
use crate::world::record::{HistoryChange, document_key, history_key, instance_key};

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: battle}\nspec:\n  selector: {app: battle}\n  ports: [{port: 80}]\n";

fn id() -> DocumentId {
    DocumentId {
        kind: Kind::Service,
        namespace: "default".into(),
        name: "battle".into(),
    }
}

fn put(key: String, value: &Value, revision: u64) -> Stored {
    Stored {
        key,
        value: Some(value.to_string().into_bytes()),
        revision,
    }
}

fn document(spec: Value) -> Value {
    json!({"created": 1, "updated": 2, "generation": 3, "document": {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "battle", "namespace": "default"}, "spec": spec}})
}

fn booted() -> Fold {
    Fold::boot(Fixture::yaml(SERVICE).stored(), 1)
}

#[test]
fn a_document_that_breaks_keeps_its_last_good_version() {
    let mut fold = booted();
    fold.apply(put(
        document_key(&id()),
        &document(json!({"ports": [{"port": 80, "colour": "red"}]})),
        2,
    ));
    let world = fold.world();
    let entry = &world.documents[&id()];
    assert!(entry.document.is_some(), "the last good stays");
    assert_eq!(
        entry.json["spec"]["ports"][0]["colour"], "red",
        "and what is stored is shown"
    );
    let quarantine = &world.quarantined["Service/default/battle"];
    assert!(
        quarantine.message.contains("colour") && quarantine.since_revision == 2,
        "{quarantine:?}"
    );

    fold.apply(put(
        document_key(&id()),
        &document(json!({"ports": [{"port": 81}]})),
        3,
    ));
    let world = fold.world();
    assert!(world.quarantined.is_empty());
    let Some(Document::Service(service)) = world.documents[&id()].document.as_deref() else {
        panic!()
    };
    assert_eq!(service.ports[0].port, 81);
}

#[test]
fn bad_content_never_stops_a_start() {
    let stored = vec![
        Stored {
            key: document_key(&id()),
            value: Some(b"\xff no json".to_vec()),
            revision: 1,
        },
        Stored {
            key: "config/Service/default/other".into(),
            value: Some(document(json!({})).to_string().into_bytes()),
            revision: 2,
        },
        Stored {
            key: "config/Weird/x/y".into(),
            value: Some(b"{}".to_vec()),
            revision: 3,
        },
        Stored {
            key: "instances/default/battle/b1".into(),
            value: Some(b"{}".to_vec()),
            revision: 4,
        },
        Stored {
            key: history_key(1),
            value: Some(b"[".to_vec()),
            revision: 5,
        },
        Stored {
            key: "nonsense".into(),
            value: Some(vec![0; 10]),
            revision: 6,
        },
    ];
    let world = Fold::boot(stored, 6).world();
    let quarantined: Vec<_> = world.quarantined.keys().map(String::as_str).collect();
    assert_eq!(
        quarantined,
        [
            "Service/default/battle",
            "Service/default/other",
            "instances/default/battle/b1"
        ]
    );
    assert!(world.in_force().next().is_none() && world.instances.is_empty());
}

#[test]
fn at_boot_the_history_gives_the_last_good_version() {
    let good = document(json!({"ports": [{"port": 7}]}))["document"].clone();
    let record = HistoryRecord {
        time: 1,
        author: "a".into(),
        message: String::new(),
        changes: vec![HistoryChange {
            id: id().to_string(),
            before: None,
            after: Some(good),
        }],
        canary: None,
    };
    let stored = vec![
        put(history_key(1), &serde_json::to_value(&record).unwrap(), 1),
        put(document_key(&id()), &document(json!({"broken": true})), 2),
    ];
    let world = Fold::boot(stored, 2).world();
    let Some(Document::Service(service)) = world.documents[&id()].document.as_deref() else {
        panic!("nothing in force")
    };
    assert_eq!(service.ports[0].port, 7);
    assert!(world.quarantined.contains_key("Service/default/battle"));
}

#[test]
fn a_deleted_document_is_gone_with_its_quarantine() {
    let mut fold = booted();
    fold.apply(put(document_key(&id()), &document(json!({"x": 1})), 2));
    fold.apply(Stored {
        key: document_key(&id()),
        value: None,
        revision: 3,
    });
    let world = fold.world();
    assert!(world.documents.is_empty() && world.quarantined.is_empty());
    assert_eq!((world.revision, world.config_revision), (3, 3));
}

#[test]
fn instances_move_the_revision_but_not_that_of_the_configuration() {
    let mut fold = booted();
    let battle = instance("battle", "b1", "127.0.0.5:1", &[("", 9000)]);
    let record = serde_json::to_value(InstanceRecord::new(&battle, 7, 30_000)).unwrap();
    fold.apply(put(instance_key(&battle.id), &record, 2));
    let world = fold.world();
    assert_eq!((world.revision, world.config_revision), (2, 1));
    assert_eq!(
        world
            .instances
            .get(&battle.id)
            .map(|r| (r.instance.clone(), r.epoch)),
        Some((battle.clone(), 7))
    );
    assert_eq!(world.recent.back().map(|(revision, _)| *revision), Some(2));

    fold.apply(Stored {
        key: instance_key(&battle.id),
        value: None,
        revision: 3,
    });
    assert!(fold.world().instances.is_empty());
    assert_eq!(world.instances.len(), 1, "an older world stays as it was");
}

#[test]
fn an_unchanged_service_is_shared_between_worlds() {
    let mut fold = Fold::boot(
        Fixture::default()
            .with(instance("a", "1", "127.0.0.5:1", &[("", 1)]))
            .stored(),
        1,
    );
    let before = fold.world();
    let other = instance("b", "1", "127.0.0.6:1", &[("", 1)]);
    fold.apply(put(
        instance_key(&other.id),
        &serde_json::to_value(InstanceRecord::new(&other, 1, 1)).unwrap(),
        2,
    ));
    let after = fold.world();
    let service = |world: &World| {
        world
            .instances
            .service(&ServiceName::new("default", "a"))
            .cloned()
            .unwrap()
    };
    assert!(
        Arc::ptr_eq(&service(&before), &service(&after))
            && !before.instances.same(&after.instances)
    );
}

#[test]
fn history_is_counted_and_pruning_is_no_change() {
    let mut fold = booted();
    fold.apply(put(
        history_key(5),
        &json!({"time": 1, "author": "a", "changes": []}),
        4,
    ));
    fold.apply(Stored {
        key: history_key(1),
        value: None,
        revision: 5,
    });
    let world = fold.world();
    assert_eq!(
        (world.sequence, world.config_revision, world.revision),
        (5, 4, 5)
    );
}
