use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use phalanx_client::admin::{Admin, AdminError};
use phalanx_client::api::{ApplyRequest, DeleteRequest, File, RollbackRequest};
use phalanx_store::Store;

use crate::{Control, config, control};

impl Control {
    /// A request as it is; status and body.
    async fn raw(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> (u16, String) {
        let stream = tokio::net::TcpStream::connect(self.running.admin_address())
            .await
            .unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        let mut request = hyper::Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = sender
            .send_request(request.body(Full::new(body.into())).unwrap())
            .await
            .unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }
}

const WEB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  selector: {app: web}\n  ports: [{port: 80}]\n";
const JSON: (&str, &str) = ("content-type", "application/json");
const LOCAL: (&str, &str) = ("host", "localhost");

#[tokio::test]
async fn apply_get_diff_history_rollback_and_delete_work_over_http() {
    let control = control().await;
    let first = control.apply(WEB).await;
    let second = control.apply(&WEB.replace("port: 80", "port: 81")).await;
    let documents = control
        .admin
        .documents(Some("svc"), Some("default"))
        .await
        .unwrap();
    assert_eq!(
        (
            documents.revision,
            documents.items.len(),
            documents.items[0].generation
        ),
        (second, 1, 2)
    );
    let one = control
        .admin
        .document("Service", "default", "web")
        .await
        .unwrap();
    assert_eq!(one.document["spec"]["ports"][0]["port"], 81);
    assert!(matches!(
        control.admin.document("Service", "default", "none").await,
        Err(AdminError::NotFound { .. })
    ));
    let history = control.admin.history(Some(10)).await.unwrap();
    assert_eq!(
        history
            .entries
            .iter()
            .map(|e| e.revision)
            .collect::<Vec<_>>(),
        [second, first]
    );
    let rolled = control
        .admin
        .rollback(&RollbackRequest {
            to: first,
            author: "ann".into(),
            ..RollbackRequest::default()
        })
        .await
        .unwrap();
    assert!(rolled.revision > second);
    let delete = DeleteRequest {
        ids: vec![phalanx_client::api::DocumentRef {
            kind: "service".into(),
            namespace: "default".into(),
            name: "web".into(),
        }],
        ..DeleteRequest::default()
    };
    control.admin.delete(&delete).await.unwrap();
    assert!(
        control
            .admin
            .documents(None, None)
            .await
            .unwrap()
            .items
            .is_empty()
    );
}

#[tokio::test]
async fn bad_files_are_422_with_all_places_and_a_moved_configuration_is_409() {
    let control = control().await;
    let error = control
        .try_apply(
            "apiVersion: v1\nkind: Service\nmetadata: {name: Web}\nspec:\n  prots: [{port: 0}]\n",
        )
        .await
        .unwrap_err();
    assert!(
        matches!(&error, AdminError::Invalid { .. }) && error.problems().len() >= 2,
        "{error:?}"
    );
    let file = File {
        name: "a.yaml".into(),
        text: WEB.into(),
    };
    let request = ApplyRequest {
        files: vec![file],
        expect: Some(99),
        ..ApplyRequest::default()
    };
    let error = control.admin.apply(&request).await.unwrap_err();
    assert!(
        matches!(&error, AdminError::Conflict { body } if body.revision == Some(0)),
        "{error:?}"
    );
    assert!(error.hint().is_some());
}

#[tokio::test]
async fn another_host_or_site_is_refused() {
    let control = control().await;
    for (headers, status) in [
        (vec![("host", "evil.example")], 403),
        (vec![("host", "127.0.0.1.evil.example:15080")], 403),
        (vec![("host", "[::2]:1")], 403),
        (vec![("host", "[::1].evil.example")], 403),
        (vec![("host", "localhost:evil.example")], 403),
        (vec![("host", "localhost.evil.example")], 403),
        (vec![], 403),
        (vec![LOCAL, ("host", "evil.example")], 400),
        (vec![LOCAL, ("origin", "http://evil.example")], 403),
        (vec![LOCAL, ("origin", "null")], 403),
        (vec![LOCAL, ("origin", "http://localhost")], 200),
        (vec![("host", "127.0.0.1:15080")], 200),
        (vec![("host", "[::1]:15080")], 200),
    ] {
        let (seen, body) = control.raw("GET", "/api/v1/status", &headers, "").await;
        assert_eq!(seen, status, "{headers:?}: {body}");
    }
    let hop = [LOCAL, JSON, ("origin", "http://evil.example")];
    assert_eq!(
        control
            .raw("POST", "/api/v1/apply", &hop, r#"{"files":[]}"#)
            .await
            .0,
        403
    );
}

#[tokio::test]
async fn state_changes_only_by_post_with_json() {
    let control = control().await;
    let (status, body) = control
        .raw(
            "POST",
            "/api/v1/apply",
            &[LOCAL, ("content-type", "text/plain")],
            "{}",
        )
        .await;
    assert_eq!(status, 415, "{body}");
    assert_eq!(
        control.raw("GET", "/api/v1/apply", &[LOCAL], "").await.0,
        405
    );
    assert_eq!(
        control
            .raw("POST", "/api/v1/status", &[LOCAL, JSON], "{}")
            .await
            .0,
        405
    );
    let (status, body) = control
        .raw(
            "POST",
            "/api/v1/apply",
            &[LOCAL, JSON],
            r#"{"files":[],"sudo":true}"#,
        )
        .await;
    assert!(status == 400 && body.contains("sudo"), "{body}");
    let (status, body) = control
        .raw(
            "POST",
            "/api/v1/apply",
            &[LOCAL, JSON],
            vec![b'x'; 4 * 1024 * 1024 + 1],
        )
        .await;
    assert!(status == 413 && body.contains("4 MiB"), "{body}");
}

#[tokio::test]
async fn every_error_is_json_with_a_text() {
    let control = control().await;
    for (method, path, status) in [
        ("GET", "/nowhere", 404),
        ("GET", "/api/v1/documents?kind=Pod", 404),
        ("GET", "/api/v1/documents?knd=Service", 400),
        ("GET", "/api/v1/status?revision=x", 400),
        ("GET", "/api/v1/status?revision=999", 404),
        ("GET", "/api/v1/documents/Service/default/%ff", 400),
        ("GET", "/api/v1/documents/Service/default/a%2Fb", 404),
        ("GET", "/api/v1/history?limit=%ff", 400),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404),
        ("GET", "http://evil.example/healthz", 403),
        ("POST", "/healthz", 405),
    ] {
        let (seen, body) = control.raw(method, path, &[LOCAL, JSON], "").await;
        assert_eq!(seen, status, "{path}: {body}");
        let body: phalanx_client::api::ErrorBody =
            serde_json::from_str(&body).unwrap_or_else(|e| panic!("{path}: {e}: {body}"));
        assert!(!body.error.is_empty());
    }
}

#[tokio::test]
async fn health_metrics_page_and_document_are_served() {
    let control = control().await;
    for (path, holds) in [
        ("/healthz", "ok"),
        ("/readyz", "ok"),
        ("/metrics", "\nphalanx_control_revision "),
        ("/metrics", "phalanx_control_push_seconds_bucket"),
        ("/openapi.json", "\"3.1.0\""),
        ("/", "<title>Phalanx</title>"),
    ] {
        let answer = control.admin.text(path).await.unwrap();
        assert!(
            answer.status == 200 && answer.body.contains(holds),
            "{path} lacks {holds}: {}",
            answer.body
        );
    }
}

#[tokio::test]
async fn without_proxies_everything_is_applied() {
    let control = control().await;
    let revision = control.apply(WEB).await;
    let status = control
        .admin
        .status_within(Some(revision), std::time::Duration::from_secs(5))
        .await
        .unwrap();
    assert_eq!(
        (
            status.target_revision,
            status.proxies,
            status.applied,
            status.elapsed_ms
        ),
        (revision, 0, 0, None)
    );
    assert!(status.complete() && status.revision >= revision && status.config_revision == revision);
}

#[tokio::test]
async fn a_document_stored_another_way_is_quarantined_and_said() {
    let data = tempfile::tempdir().unwrap();
    let store = Store::embedded(phalanx_store::Config::at(data.path()))
        .await
        .unwrap();
    let bad =
        r#"{"created":1,"updated":1,"generation":1,"document":{"kind":"Service","later":true}}"#;
    store
        .commit(phalanx_store::Txn::new().put("config/Service/default/odd", bad))
        .await
        .unwrap();
    store.close().await;
    let running = phalanx_control::start(config(data.path())).await.unwrap();
    let status = Admin::new(&running.admin_address().to_string())
        .status(None)
        .await
        .unwrap();
    assert_eq!(status.quarantined[0].id, "Service/default/odd");
    assert!(
        status.quarantined[0].message.contains("apiVersion"),
        "{:?}",
        status.quarantined
    );
}
