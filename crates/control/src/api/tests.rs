use std::collections::BTreeSet;

use phalanx_client::api::{ApplyRequest, DeleteRequest, RollbackRequest};
use serde_json::Value;

use super::*;

#[test]
fn the_openapi_document_lists_every_route_and_no_other() {
    let document: Value = serde_json::from_str(include_str!("openapi.json")).unwrap();
    let mut documented = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        documented.extend(
            methods
                .as_object()
                .unwrap()
                .keys()
                .map(|method| format!("{} {path}", method.to_uppercase())),
        );
    }
    let served: BTreeSet<_> = routes()
        .into_iter()
        .map(|(method, path, ..)| format!("{method} {path}"))
        .collect();
    assert_eq!(documented, served);
}

#[test]
fn the_openapi_document_describes_every_field() {
    use phalanx_client::api as dto;
    fn check<T: serde::Serialize>(document: &Value, name: &str, value: &T) {
        let described = document["components"]["schemas"][name]["properties"]
            .as_object()
            .unwrap_or_else(|| panic!("{name}"));
        for field in serde_json::to_value(value)
            .unwrap()
            .as_object()
            .unwrap()
            .keys()
        {
            assert!(described.contains_key(field), "{name}.{field}");
        }
    }
    let document: Value = serde_json::from_str(include_str!("openapi.json")).unwrap();
    check(
        &document,
        "ApplyRequest",
        &ApplyRequest {
            expect: Some(1),
            message: Some(String::new()),
            ..ApplyRequest::default()
        },
    );
    check(
        &document,
        "DeleteRequest",
        &DeleteRequest {
            expect: Some(1),
            message: Some(String::new()),
            ..DeleteRequest::default()
        },
    );
    check(
        &document,
        "RollbackRequest",
        &RollbackRequest {
            expect: Some(1),
            ..RollbackRequest::default()
        },
    );
    check(&document, "ApplyResponse", &dto::ApplyResponse::default());
    check(
        &document,
        "Status",
        &dto::Status {
            elapsed_ms: Some(1.0),
            read_only: Some(String::new()),
            ..dto::Status::default()
        },
    );
    check(
        &document,
        "Error",
        &dto::ErrorBody {
            hint: Some(String::new()),
            revision: Some(1),
            problems: vec![dto::Problem::default()],
            ..dto::ErrorBody::default()
        },
    );
    check(
        &document,
        "Problem",
        &dto::Problem {
            hint: Some(String::new()),
            ..dto::Problem::default()
        },
    );
    check(&document, "Me", &dto::Me::default());
    check(&document, "Rollouts", &dto::Rollouts::default());
    check(&document, "Rollout", &dto::RolloutView::default());
    check(
        &document,
        "RolloutMeasurement",
        &dto::RolloutMeasurement::default(),
    );
    check(&document, "RolloutEvent", &dto::RolloutEvent::default());
    check(
        &document,
        "RolloutOrder",
        &dto::RolloutOrder {
            message: Some(String::new()),
            expect: Some(1),
            ..dto::RolloutOrder::default()
        },
    );
    check(&document, "RolloutFigures", &dto::RolloutFigures::default());
    check(&document, "ServiceCounts", &dto::ServiceCounts::default());
    check(&document, "LoginRequest", &dto::LoginRequest::default());
    check(
        &document,
        "UserRequest",
        &dto::UserRequest {
            ttl_ms: Some(1),
            ..dto::UserRequest::default()
        },
    );
    check(
        &document,
        "User",
        &dto::UserView {
            expires_ms: Some(1),
            ..dto::UserView::default()
        },
    );
    check(&document, "Users", &dto::UserViews::default());
    check(&document, "UserToken", &dto::UserToken::default());
    check(&document, "Proxy", &dto::Proxy::default());
    check(&document, "Instance", &dto::InstanceView::default());
    check(
        &document,
        "DrainRequest",
        &dto::DrainRequest {
            service: Some(String::new()),
            grace_ms: Some(1),
            handover: Some(String::new()),
            reconnects_per_second: Some(1),
            ..dto::DrainRequest::default()
        },
    );
    check(&document, "DrainResponse", &dto::DrainResponse::default());
    check(&document, "Drains", &dto::Drains::default());
    check(
        &document,
        "Drain",
        &dto::DrainView {
            left_ms: Some(1),
            reconnects_per_second: Some(1),
            ..dto::DrainView::default()
        },
    );
    check(&document, "Session", &dto::SessionView::default());
    check(&document, "SessionPage", &dto::SessionPage::default());
    check(
        &document,
        "SessionAnswer",
        &dto::SessionAnswer {
            session: Some(dto::SessionView::default()),
        },
    );
    check(
        &document,
        "SessionRequest",
        &dto::SessionRequest {
            instance: "i".into(),
            ..dto::SessionRequest::default()
        },
    );
    check(&document, "ReleaseRequest", &dto::ReleaseRequest::default());
    check(
        &document,
        "ReleaseResponse",
        &dto::ReleaseResponse::default(),
    );
    check(&document, "Edge", &dto::Edge::default());
    check(&document, "Edges", &dto::Edges::default());
    check(&document, "Loads", &dto::Loads::default());
    check(&document, "Load", &dto::Load::default());
    check(&document, "LoadRefused", &dto::LoadRefused::default());
    check(&document, "History", &dto::History::default());
    check(&document, "Refusal", &dto::Refusal::default());
    check(&document, "Quarantine", &dto::Quarantine::default());
    check(&document, "HealthViews", &dto::HealthViews::default());
    check(&document, "EndpointHealth", &dto::EndpointHealth::default());
    check(&document, "Opinion", &dto::Opinion::default());
    check(&document, "Held", &dto::Held::default());
    check(&document, "Trust", &dto::Trust::default());
    check(&document, "CaView", &dto::CaView::default());
    check(
        &document,
        "JoinTokenRequest",
        &dto::JoinTokenRequest::default(),
    );
    check(&document, "JoinToken", &dto::JoinToken::default());
    check(&document, "JoinTokenView", &dto::JoinTokenView::default());
    check(&document, "SignRequest", &dto::SignRequest::default());
    check(&document, "Signed", &dto::Signed::default());
    check(&document, "RevokeRequest", &dto::RevokeRequest::default());
    check(&document, "Rotation", &dto::Rotation::default());
    check(&document, "Unconfirmed", &dto::Unconfirmed::default());
    check(&document, "Intermediate", &dto::Intermediate::default());
    check(
        &document,
        "IssuedCertificates",
        &dto::IssuedCertificates::default(),
    );
    check(
        &document,
        "IssuedCertificate",
        &dto::IssuedCertificate {
            revoked_ms: Some(1),
            reason: Some(String::new()),
            ..dto::IssuedCertificate::default()
        },
    );
    check(
        &document,
        "Proxy",
        &dto::Proxy {
            certificate: Some(dto::ProxyCertificate::default()),
            ..dto::Proxy::default()
        },
    );
    check(
        &document,
        "LateCertificate",
        &dto::LateCertificate::default(),
    );
}
