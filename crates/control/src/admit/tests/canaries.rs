//! Staging, promoting, going back.

use phalanx_client::api::CanaryTerms;

use super::effects::node;
use super::*;
use crate::world::record::CanaryStage;

fn terms(first: &str) -> CanaryTerms {
    CanaryTerms {
        first: first.to_owned(),
        ..CanaryTerms::default()
    }
}

fn around() -> Around {
    Around {
        nodes: ["m1", "m2", "m3"]
            .map(|id| node("match", "v1", id))
            .to_vec(),
        ..Around::default()
    }
}

async fn stage(door: &Door, text: &str) -> Result<ApplyResponse, AdmitError> {
    let request = ApplyRequest {
        canary: Some(terms("1")),
        ..request(text)
    };
    door.admission.0.apply(request, around()).await
}

impl Door {
    async fn conclude(&self, stage: CanaryStage) -> Result<ApplyResponse, AdmitError> {
        let world = self.world();
        let canary = world.canary.as_ref().and_then(|c| c.record.as_ref());
        let sequence = canary.map_or(0, |record| record.sequence);
        let admission = &self.admission.0;
        admission
            .conclude(sequence, stage, "phalanx", "because")
            .await
    }

    fn port(&self, world: &World) -> Option<Value> {
        let entry = world.documents.values().next()?;
        Some(entry.json["spec"]["ports"][0]["port"].clone())
    }
}

#[tokio::test]
async fn a_staged_change_is_in_no_document_until_it_is_promoted() {
    let door = door().await;
    door.apply(&service("web", 80)).await;
    stage(&door, &service("web", 81)).await.unwrap();
    let world = door.world();
    assert_eq!(door.port(&world), Some(80.into()));
    let staged = world.staged().unwrap();
    assert_eq!(door.port(&staged), Some(81.into()));
    let canary = world.canary.clone().unwrap();
    assert_eq!(
        (
            canary.nodes.len(),
            canary.record.as_ref().unwrap().concerned
        ),
        (1, 3)
    );

    door.conclude(CanaryStage::Promoted).await.unwrap();
    let world = door.world();
    assert_eq!(door.port(&world), Some(81.into()));
    assert!(world.canary.is_none() && world.staged().is_none());
    let history = door.admission.history(10).await.unwrap();
    let stages: Vec<_> = history
        .iter()
        .map(|(_, _, r)| r.canary.as_ref().map(|c| c.stage))
        .collect();
    assert_eq!(
        stages,
        [
            Some(CanaryStage::Promoted),
            Some(CanaryStage::Started),
            None
        ]
    );
    assert_eq!(history[0].2.changes.len(), 1);
}

#[tokio::test]
async fn going_back_leaves_everything_as_it_was_and_a_record_of_why() {
    let door = door().await;
    let first = door.apply(&service("web", 80)).await.revision;
    stage(&door, &service("web", 81)).await.unwrap();
    door.conclude(CanaryStage::Back).await.unwrap();
    let world = door.world();
    let entry = world.documents.values().next().unwrap();
    assert_eq!(
        (entry.revision, entry.generation),
        (first, 1),
        "never written"
    );
    let history = door.admission.history(1).await.unwrap();
    assert_eq!(
        (history[0].2.author.as_str(), history[0].2.message.as_str()),
        ("phalanx", "because")
    );
    let last = world.last_canary.clone().unwrap();
    assert_eq!(last.stage, CanaryStage::Back);
    // A rollback over it undoes what was in force only.
    let back = RollbackRequest {
        to: first,
        ..RollbackRequest::default()
    };
    assert_eq!(
        actions(&door.admission.rollback(back).await.unwrap()),
        Vec::<String>::new()
    );
}

#[tokio::test]
async fn a_deletion_and_a_rollback_can_be_staged_too() {
    let door = door().await;
    let first = door.apply(&service("web", 80)).await.revision;
    door.apply(&service("web", 81)).await;
    let rollback = RollbackRequest {
        to: first,
        canary: Some(terms("1")),
        ..RollbackRequest::default()
    };
    let admission = &door.admission.0;
    admission.rollback(rollback, around()).await.unwrap();
    let staged = door.world().staged().unwrap();
    assert_eq!(door.port(&door.world()), Some(81.into()));
    assert_eq!(door.port(&staged), Some(80.into()));
    door.conclude(CanaryStage::Promoted).await.unwrap();
    assert_eq!(door.port(&door.world()), Some(80.into()));

    let delete = DeleteRequest {
        files: request(&service("web", 80)).files,
        canary: Some(terms("1")),
        ..DeleteRequest::default()
    };
    admission.delete(delete, around()).await.unwrap();
    assert_eq!(door.world().documents.len(), 1);
    assert!(door.world().staged().unwrap().documents.is_empty());
    door.conclude(CanaryStage::Promoted).await.unwrap();
    assert!(door.world().documents.is_empty());
}

#[tokio::test]
async fn there_is_one_canary_and_its_documents_stay_untouched_meanwhile() {
    let door = door().await;
    door.apply(&format!("{}{}", service("web", 80), service("api", 80)))
        .await;
    stage(&door, &service("web", 81)).await.unwrap();
    let another = stage(&door, &service("api", 81)).await;
    assert!(
        matches!(&another, Err(AdmitError::UnderWay { what, .. }) if what.contains("ann has Service/default/web on trial at 1 of 3")),
        "{another:?}"
    );
    let crossing = door.admission.apply(request(&service("web", 82))).await;
    assert!(
        matches!(crossing, Err(AdmitError::UnderWay { .. })),
        "{crossing:?}"
    );
    assert!(
        door.admission
            .apply(request(&service("api", 82)))
            .await
            .is_ok()
    );
    door.conclude(CanaryStage::Promoted).await.unwrap();
}

#[tokio::test]
async fn a_dry_run_of_a_canary_is_refused_as_the_canary_would_be() {
    let door = door().await;
    door.apply(&format!("{}{}", service("web", 80), service("api", 80)))
        .await;
    let dry = |text: &str| ApplyRequest {
        canary: Some(terms("1")),
        dry_run: true,
        ..request(text)
    };
    let alone = door.admission.apply(dry(&service("web", 81))).await;
    assert!(matches!(alone, Err(AdmitError::Nobody)), "{alone:?}");
    let admission = &door.admission.0;
    let looked = admission.apply(dry(&service("web", 81)), around()).await;
    assert!(looked.is_ok() && door.world().canary.is_none());
    stage(&door, &service("web", 81)).await.unwrap();
    let another = admission.apply(dry(&service("api", 81)), around()).await;
    assert!(
        matches!(another, Err(AdmitError::UnderWay { .. })),
        "{another:?}"
    );
}

#[tokio::test]
async fn what_leaves_a_document_on_trial_as_it_is_is_no_crossing() {
    let door = door().await;
    door.apply(&service("web", 80)).await;
    stage(&door, &service("web", 81)).await.unwrap();
    let folder = format!("{}{}", service("web", 80), service("api", 80));
    let applied = door.apply(&folder).await;
    assert_eq!(
        actions(&applied),
        ["Service/api created", "Service/web unchanged"]
    );
    assert!(door.world().canary.is_some());
}

#[tokio::test]
async fn a_decision_is_made_although_others_write_at_the_same_moment() {
    let door = door().await;
    door.apply(&service("web", 80)).await;
    stage(&door, &service("web", 81)).await.unwrap();
    // As another control plane would: this one has not read it yet.
    let next = door.world().sequence + 1;
    let record = serde_json::to_vec(&HistoryRecord::default()).unwrap();
    let txn = Txn::new().put(history_key(next), record);
    door.store.commit(txn).await.unwrap();
    door.conclude(CanaryStage::Promoted).await.unwrap();
    assert_eq!(door.port(&door.world()), Some(81.into()));
}

#[tokio::test]
async fn of_two_decisions_at_once_one_counts() {
    let door = door().await;
    door.apply(&service("web", 80)).await;
    stage(&door, &service("web", 81)).await.unwrap();
    let (promoted, back) = tokio::join!(
        door.conclude(CanaryStage::Promoted),
        door.conclude(CanaryStage::Back)
    );
    let late = [&promoted, &back]
        .into_iter()
        .filter(|ended| matches!(ended, Err(AdmitError::NoCanary)));
    assert_eq!(late.count(), 1, "{promoted:?} {back:?}");
    let expected = if promoted.is_ok() { 81 } else { 80 };
    assert_eq!(door.port(&door.world()), Some(expected.into()));
}

#[tokio::test]
async fn who_and_why_are_short_words() {
    let door = door().await;
    for (author, message) in [
        ("x".repeat(254), String::new()),
        ("\x1b[2J".to_owned(), String::new()),
        (String::new(), "x".repeat(5000)),
        (String::new(), "\0".to_owned()),
    ] {
        let request = ApplyRequest {
            author,
            message: Some(message),
            ..request(&service("web", 80))
        };
        let refused = door.admission.apply(request).await;
        assert!(
            matches!(refused, Err(AdmitError::Invalid { .. })),
            "{refused:?}"
        );
    }
    let request = ApplyRequest {
        author: "王小明".into(),
        message: Some("换端口\n\t两行".into()),
        ..request(&service("web", 80))
    };
    door.admission.apply(request).await.unwrap();
}

#[tokio::test]
async fn a_restart_in_the_middle_knows_what_is_staged_and_for_whom() {
    let first = door().await;
    first.apply(&service("web", 80)).await;
    stage(&first, &service("web", 81)).await.unwrap();
    let chosen = first.world().canary.clone().unwrap().nodes.clone();
    let second = on(first.store.clone()).await;
    let world = second.world();
    assert_eq!(world.canary.clone().unwrap().nodes, chosen);
    assert_eq!(second.port(&world), Some(80.into()));
    second.conclude(CanaryStage::Back).await.unwrap();
    assert!(matches!(
        second.conclude(CanaryStage::Back).await,
        Err(AdmitError::NoCanary)
    ));
}

#[tokio::test]
async fn a_damaged_record_stages_nothing_stops_nothing_and_can_be_forgotten() {
    let store = Store::memory().await.unwrap();
    let txn = Txn::new().put(crate::world::record::CANARY, "{not json");
    store.commit(txn).await.unwrap();
    let door = on(store).await;
    let world = door.world();
    assert!(world.staged().is_none() && world.quarantined.contains_key("canary/current"));
    door.apply(&service("web", 80)).await;
    door.conclude(CanaryStage::Back).await.unwrap();
    assert!(door.world().canary.is_none() && door.world().quarantined.is_empty());
}

#[tokio::test]
async fn what_changed_behind_its_back_can_not_be_promoted() {
    let door = door().await;
    door.apply(&service("web", 80)).await;
    stage(&door, &service("web", 81)).await.unwrap();
    let key = door
        .world()
        .documents
        .values()
        .next()
        .map(|e| document_key(&e.id))
        .unwrap();
    let value = door.store.get(&key).await.unwrap().unwrap().value;
    let revision = door.store.commit(Txn::new().put(key, value)).await.unwrap();
    let mut worlds = door.admission.0.worlds.clone();
    worlds
        .wait_for(|world| world.revision >= revision)
        .await
        .unwrap();
    let promoted = door.conclude(CanaryStage::Promoted).await;
    assert!(
        matches!(promoted, Err(AdmitError::Overtaken { .. })),
        "{promoted:?}"
    );
    door.conclude(CanaryStage::Back).await.unwrap();
}

#[tokio::test]
async fn nobody_concerned_and_senseless_terms_are_refused() {
    let door = door().await;
    door.apply(&service("web", 80)).await;
    let request = |first: &str, text: &str| ApplyRequest {
        canary: Some(terms(first)),
        ..request(text)
    };
    let alone = door
        .admission
        .apply(request("1", &service("web", 81)))
        .await;
    assert!(matches!(alone, Err(AdmitError::Nobody)), "{alone:?}");
    for wrong in ["0", "101%", "many"] {
        let refused = door
            .admission
            .apply(request(wrong, &service("web", 81)))
            .await;
        assert!(
            matches!(refused, Err(AdmitError::Invalid { .. })),
            "{wrong}: {refused:?}"
        );
    }
    let unchanged = door
        .admission
        .0
        .apply(request("1", &service("web", 80)), around())
        .await;
    assert!(unchanged.is_ok() && door.world().canary.is_none());
}
