use phalanx_client::api::File;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::world::follow::Follower;

/// Nobody is around.
struct Tested(Admission);

impl Tested {
    async fn apply(&self, request: ApplyRequest) -> Result<ApplyResponse, AdmitError> {
        self.0.apply(request, Around::default()).await
    }

    async fn delete(&self, request: DeleteRequest) -> Result<ApplyResponse, AdmitError> {
        self.0.delete(request, Around::default()).await
    }

    async fn rollback(&self, request: RollbackRequest) -> Result<ApplyResponse, AdmitError> {
        self.0.rollback(request, Around::default()).await
    }

    async fn history(&self, limit: usize) -> Result<Vec<(u64, u64, HistoryRecord)>, AdmitError> {
        self.0.history(limit).await
    }
}

struct Door {
    admission: Tested,
    store: Store,
    _world: JoinHandle<()>,
}

async fn door() -> Door {
    on(Store::memory().await.unwrap()).await
}

async fn on(store: Store) -> Door {
    let follower = Follower::load(store.clone()).await.unwrap();
    let admission = Admission::new(store.clone(), follower.worlds());
    Door {
        admission: Tested(admission),
        store,
        _world: tokio::spawn(follower.run(CancellationToken::new())),
    }
}

fn file(name: &str, text: &str) -> File {
    File {
        name: name.into(),
        text: text.into(),
    }
}

fn request(text: &str) -> ApplyRequest {
    ApplyRequest {
        files: vec![file("a.yaml", text)],
        author: "ann".into(),
        ..ApplyRequest::default()
    }
}

fn service(name: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  selector: {{app: {name}}}\n  ports: [{{port: {port}}}]\n---\n"
    )
}

fn route(weight: u32) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r}}\nspec:\n  parentRefs: [{{kind: Service, name: web}}]\n  rules:\n  - backendRefs: [{{name: web, port: 80, weight: {weight}}}]\n---\n"
    )
}

fn actions(response: &ApplyResponse) -> Vec<String> {
    response
        .changes
        .iter()
        .map(|c| format!("{}/{} {}", c.kind, c.name, c.action.as_str()))
        .collect()
}

impl Door {
    async fn apply(&self, text: &str) -> ApplyResponse {
        self.admission.apply(request(text)).await.unwrap()
    }

    fn world(&self) -> Arc<World> {
        self.admission.0.worlds.borrow().clone()
    }
}

#[tokio::test]
async fn an_apply_is_one_transaction_that_can_be_read_at_once() {
    let door = door().await;
    let answer = door
        .apply(&format!("{}{}", service("web", 80), route(1)))
        .await;
    assert_eq!(
        actions(&answer),
        ["Service/web created", "HTTPRoute/r created"]
    );
    assert_eq!(answer.warnings, []);
    let world = door.world();
    assert_eq!(
        (world.documents.len(), world.config_revision),
        (2, answer.revision)
    );
    assert!(
        world
            .documents
            .values()
            .all(|entry| entry.revision == answer.revision && entry.generation == 1)
    );

    let answer = door
        .apply(&format!("{}{}", service("web", 80), route(2)))
        .await;
    assert_eq!(
        actions(&answer),
        ["Service/web unchanged", "HTTPRoute/r configured"]
    );
    let again = door.apply(&route(2)).await;
    assert_eq!(
        (actions(&again), again.revision),
        (vec!["HTTPRoute/r unchanged".to_owned()], answer.revision),
        "nothing is stored when nothing changes"
    );
}

#[tokio::test]
async fn creation_time_is_kept_and_generations_count() {
    let door = door().await;
    door.apply(&service("web", 80)).await;
    let before = door.world().documents.values().next().unwrap().clone();
    tokio::time::sleep(Duration::from_millis(5)).await;
    door.apply(&service("web", 81)).await;
    let after = door.world().documents.values().next().unwrap().clone();
    assert_eq!((after.created_ms, after.generation), (before.created_ms, 2));
    assert!(after.updated_ms > before.updated_ms);
}

#[tokio::test]
async fn all_problems_of_all_files_come_at_once_and_nothing_changes() {
    let door = door().await;
    let bad = "apiVersion: v1\nkind: Service\nmetadata: {name: Web}\nspec:\n  selectors: {app: web}\n  ports: [{port: 99999}]\n";
    let request = ApplyRequest {
        files: vec![
            file("good.yaml", &service("ok", 80)),
            file("bad.yaml", bad),
            file("worse.yaml", "a: ["),
        ],
        ..ApplyRequest::default()
    };
    let Err(AdmitError::Invalid { problems, .. }) = door.admission.apply(request).await else {
        panic!("taken")
    };
    let files: Vec<_> = problems.iter().map(|p| p.file.as_str()).collect();
    assert!(
        problems.len() >= 4
            && files.is_sorted()
            && files.contains(&"bad.yaml")
            && files.contains(&"worse.yaml"),
        "{problems:#?}"
    );
    assert!(
        problems.iter().all(|p| p.line > 0 && p.column > 0),
        "{problems:#?}"
    );
    assert!(door.world().documents.is_empty() && door.store.revision() == 0);
}

#[tokio::test]
async fn a_document_in_two_files_is_refused() {
    let door = door().await;
    let request = ApplyRequest {
        files: vec![
            file("a.yaml", &service("web", 80)),
            file("b.yaml", &service("web", 81)),
        ],
        ..ApplyRequest::default()
    };
    let Err(AdmitError::Invalid { problems, .. }) = door.admission.apply(request).await else {
        panic!("taken")
    };
    assert_eq!(
        problems[0].to_string(),
        "b.yaml:1:1: Service/default/web stands in a.yaml:1 already"
    );
}

#[tokio::test]
async fn a_dry_run_shows_before_and_after_and_stores_nothing() {
    let door = door().await;
    let revision = door.apply(&service("web", 80)).await.revision;
    let answer = door
        .admission
        .apply(ApplyRequest {
            dry_run: true,
            ..request(&service("web", 81))
        })
        .await
        .unwrap();
    let change = &answer.changes[0];
    let port =
        |document: &Option<Value>| document.as_ref().unwrap()["spec"]["ports"][0]["port"].clone();
    assert_eq!(
        (port(&change.before), port(&change.after)),
        (80.into(), 81.into())
    );
    assert_eq!(
        (answer.revision, door.store.revision()),
        (revision, revision)
    );
}

#[tokio::test]
async fn who_expects_no_revision_is_not_refused_because_another_plane_wrote_at_the_same_moment() {
    let one = door().await;
    let other = on(one.store.clone()).await;
    for port in 1..=50 {
        let (web, lobby) = (
            request(&service("web", port)),
            request(&service("lobby", port)),
        );
        let both = tokio::join!(one.admission.apply(web), other.admission.apply(lobby));
        both.0.unwrap();
        both.1.unwrap();
    }
    assert_eq!(one.admission.history(1000).await.unwrap().len(), 100);
}

#[tokio::test]
async fn an_unexpected_revision_is_a_conflict() {
    let door = door().await;
    let revision = door.apply(&service("web", 80)).await.revision;
    let outcome = door
        .admission
        .apply(ApplyRequest {
            expect: Some(revision + 1),
            ..request(&service("web", 81))
        })
        .await;
    assert!(
        matches!(outcome, Err(AdmitError::Conflict { revision: r, .. }) if r == revision),
        "{outcome:?}"
    );
    assert!(
        door.admission
            .apply(ApplyRequest {
                expect: Some(revision),
                ..request(&service("web", 81))
            })
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn instances_do_not_move_the_expected_revision() {
    let door = door().await;
    let revision = door.apply(&service("web", 80)).await.revision;
    door.store
        .commit(Txn::new().put("instances/default/web/w1", "{}"))
        .await
        .unwrap();
    assert!(
        door.admission
            .apply(ApplyRequest {
                expect: Some(revision),
                ..request(&service("web", 81))
            })
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn of_two_at_once_with_the_same_expectation_one_wins() {
    let door = door().await;
    let revision = door.apply(&service("web", 80)).await.revision;
    let apply = |port| {
        door.admission.apply(ApplyRequest {
            expect: Some(revision),
            ..request(&service("web", port))
        })
    };
    let (a, b) = tokio::join!(apply(81), apply(82));
    assert_eq!(u8::from(a.is_ok()) + u8::from(b.is_ok()), 1);
}

#[tokio::test]
async fn what_is_probably_not_meant_is_a_warning() {
    let door = door().await;
    let answer = door
        .apply(&format!("{}{}", service("web", 81), route(1)))
        .await;
    let [warning] = answer.warnings.as_slice() else {
        panic!("{:?}", answer.warnings)
    };
    assert!(
        warning
            .message
            .contains("backend Service default/web has no port 80"),
        "{warning}"
    );
    assert_eq!(
        (warning.file.as_str(), warning.line, warning.column),
        ("a.yaml", 14, 19),
        "{warning}"
    );
}

#[tokio::test]
async fn delete_takes_names_or_files_and_refuses_what_does_not_exist() {
    let door = door().await;
    door.apply(&format!("{}{}", service("web", 80), service("api", 80)))
        .await;
    let by_name = |name: &str| DeleteRequest {
        ids: vec![phalanx_client::api::DocumentRef {
            kind: "svc".into(),
            namespace: "default".into(),
            name: name.into(),
        }],
        ..DeleteRequest::default()
    };
    assert_eq!(
        actions(&door.admission.delete(by_name("web")).await.unwrap()),
        ["Service/web deleted"]
    );
    assert!(matches!(
        door.admission.delete(by_name("web")).await,
        Err(AdmitError::Invalid { .. })
    ));
    let by_file = DeleteRequest {
        files: vec![file("a.yaml", &service("api", 80))],
        ..DeleteRequest::default()
    };
    assert_eq!(
        actions(&door.admission.delete(by_file).await.unwrap()),
        ["Service/api deleted"]
    );
    assert!(door.world().documents.is_empty());
    assert!(matches!(
        door.admission.delete(DeleteRequest::default()).await,
        Err(AdmitError::Invalid { .. })
    ));
}

#[tokio::test]
async fn the_history_tells_who_changed_what() {
    let door = door().await;
    door.apply(&service("web", 80)).await;
    let revision = door
        .admission
        .apply(ApplyRequest {
            message: Some("move".into()),
            ..request(&service("web", 81))
        })
        .await
        .unwrap()
        .revision;
    let history = door.admission.history(1).await.unwrap();
    let [(at, sequence, record)] = history.as_slice() else {
        panic!()
    };
    assert_eq!(
        (
            *at,
            *sequence,
            record.author.as_str(),
            record.message.as_str()
        ),
        (revision, 2, "ann", "move")
    );
    assert_eq!(record.changes[0].id, "Service/default/web");
    assert!(record.changes[0].before.is_some() && record.changes[0].after.is_some());
}

#[tokio::test]
async fn a_rollback_makes_a_new_revision_of_what_was() {
    let door = door().await;
    let first = door.apply(&service("web", 80)).await.revision;
    let second = door
        .apply(&format!("{}{}", service("web", 81), route(1)))
        .await
        .revision;
    let deleted = DeleteRequest {
        files: vec![file("a.yaml", &service("web", 81))],
        ..DeleteRequest::default()
    };
    door.admission.delete(deleted).await.unwrap();

    let back = |to| {
        door.admission.rollback(RollbackRequest {
            to,
            ..RollbackRequest::default()
        })
    };
    assert_eq!(
        actions(&back(second).await.unwrap()),
        ["Service/web created"]
    );
    let answer = back(first).await.unwrap();
    assert_eq!(
        actions(&answer),
        ["Service/web configured", "HTTPRoute/r deleted"]
    );
    assert!(answer.revision > second);
    let world = door.world();
    assert_eq!(
        world.documents.values().next().unwrap().json["spec"]["ports"][0]["port"],
        80
    );
    assert_eq!(actions(&back(0).await.unwrap()), ["Service/web deleted"]);
    assert!(matches!(back(10_000).await, Err(AdmitError::Future { .. })));
}

#[tokio::test]
async fn a_rollback_beyond_the_history_is_refused() {
    let door = door().await;
    door.apply(&service("web", 80)).await;
    door.apply(&service("web", 81)).await;
    door.apply(&service("web", 82)).await;
    door.store
        .commit(Txn::new().delete(history_key(1)))
        .await
        .unwrap();
    let outcome = door
        .admission
        .rollback(RollbackRequest {
            to: 1,
            ..RollbackRequest::default()
        })
        .await;
    assert!(
        matches!(outcome, Err(AdmitError::TooOld { to: 1, oldest: 2 })),
        "{outcome:?}"
    );
    assert!(
        door.admission
            .rollback(RollbackRequest {
                to: 2,
                ..RollbackRequest::default()
            })
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn only_zero_rolls_back_to_nothing() {
    let door = door().await;
    // As a control plane's own key does, which is older than any document.
    door.store
        .commit(Txn::new().put("other", ""))
        .await
        .unwrap();
    door.apply(&service("web", 80)).await;
    let back = |to| {
        let request = RollbackRequest {
            to,
            ..RollbackRequest::default()
        };
        door.admission.rollback(request)
    };
    let outcome = back(1).await;
    assert!(
        matches!(outcome, Err(AdmitError::TooOld { to: 1, oldest: 2 })),
        "{outcome:?}"
    );
    assert_eq!(door.world().documents.len(), 1);
    assert_eq!(actions(&back(0).await.unwrap()), ["Service/web deleted"]);
}

#[tokio::test]
async fn a_restart_continues_the_history() {
    let first = door().await;
    first.apply(&service("web", 80)).await;
    let second = on(first.store.clone()).await;
    let answer = second.apply(&service("web", 81)).await;
    assert_eq!(second.world().sequence, 2);
    assert_eq!(
        second.admission.history(10).await.unwrap()[0].0,
        answer.revision
    );
}

#[tokio::test]
async fn what_does_not_fit_a_transaction_is_refused_with_a_reason() {
    let door = door().await;
    let half = |half: &str| -> String {
        (0..600)
            .map(|n| service(&format!("{half}{n}"), 80))
            .collect()
    };
    let request = ApplyRequest {
        files: vec![file("a.yaml", &half("a")), file("b.yaml", &half("b"))],
        ..ApplyRequest::default()
    };
    let outcome = door.admission.apply(request).await;
    assert!(
        matches!(outcome, Err(AdmitError::TooLarge { .. })),
        "{outcome:?}"
    );
    assert!(door.world().documents.is_empty());
}

#[tokio::test]
async fn documents_that_could_be_created_can_be_changed_and_restored() {
    let door = door().await;
    let large = |letter: &str| {
        let pad = format!(
            "metadata: {{annotations: {{x: {}}}, ",
            letter.repeat(250_000)
        );
        let text = |n| service(&format!("s{n}"), 80).replace("metadata: {", &pad);
        ApplyRequest {
            files: (0..6)
                .map(|n| file(&format!("{n}.yaml"), &text(n)))
                .collect(),
            ..ApplyRequest::default()
        }
    };
    let first = door.admission.apply(large("a")).await.unwrap().revision;
    door.admission.apply(large("b")).await.unwrap();
    let back = RollbackRequest {
        to: first,
        ..RollbackRequest::default()
    };
    let back = door.admission.rollback(back).await.unwrap();
    assert_eq!(back.changes.len(), 6);
}

#[tokio::test]
async fn the_history_is_bounded_in_bytes() {
    let store = Store::memory().await.unwrap();
    for sequence in 1..=10 {
        let record = vec![b' '; HISTORY_BYTES_MAX / 8];
        let txn = Txn::new().put(history_key(sequence), record);
        store.commit(txn).await.unwrap();
    }
    let door = on(store).await;
    door.apply(&service("web", 80)).await;
    let left = rollback::stored(&door.store).await.unwrap();
    let bytes: usize = left.iter().map(|record| record.value.len()).sum();
    assert!(bytes <= HISTORY_BYTES_MAX, "{bytes} bytes");
    assert_eq!(left.len(), 8, "no more go than have to");
    assert_eq!(door.world().sequence, 11);
}

#[tokio::test]
async fn a_warning_stands_where_its_field_does_and_says_what_is_missing() {
    let door = door().await;
    let answer = door.apply(&route(1)).await;
    let told: Vec<_> = answer.warnings.iter().map(ToString::to_string).collect();
    let [parent, backend] = told.as_slice() else {
        panic!("{told:#?}")
    };
    assert!(
        parent.starts_with("a.yaml:5:16: spec.parentRefs[0]: HTTPRoute/default/r: unattached: its parent Service default/web does not exist"),
        "{parent}"
    );
    assert!(
        backend.starts_with("a.yaml:7:19: spec.rules[0].backendRefs[0]: HTTPRoute/default/r: backend Service default/web does not exist (yet)"),
        "{backend}"
    );
}

mod canaries;
mod effects;
mod looks;

pub use effects::node as effects_node;
