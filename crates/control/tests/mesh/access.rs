//! Who gets what from a control plane that asks everybody who they are.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use phalanx_client::admin::{Admin, AdminError};
use phalanx_client::api::{ApplyRequest, File, RevokeRequest, SignRequest, UserRequest};
use phalanx_client::channel::Control;
use phalanx_client::registry::to_wire;
use phalanx_client::secure::{Protocol, Secure, trusting};
use phalanx_control::access::{METHODS, Needs};
use phalanx_control::{Config, Running, start};
use phalanx_pki::clock::{Clock, SystemClock};
use phalanx_pki::credentials::{Credentials, Parts};
use phalanx_pki::identity::Identity;
use phalanx_pki::issuer::{Attestation, Order};
use phalanx_pki::key::{Key, KeyKind};
use phalanx_pki::name::{TrustDomain, Workload};
use phalanx_pki::roots::Roots;
use phalanx_proto::envoy::config::core::v3::Node;
use phalanx_proto::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use phalanx_proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use phalanx_proto::phalanx::observe::v1::ReportRequest;
use phalanx_proto::phalanx::observe::v1::observe_client::ObserveClient;
use phalanx_proto::phalanx::registry::v1::registry_client::RegistryClient;
use phalanx_proto::phalanx::registry::v1::{RegisterRequest, WatchRequest};
use phalanx_proto::phalanx::sessions::v1 as sessions;
use phalanx_proto::phalanx::sessions::v1::sessions_client::SessionsClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::{Code, Request};

use crate::{battle_instance, config};

struct Closed {
    running: Running,
    data: tempfile::TempDir,
}

async fn closed() -> Closed {
    let data = tempfile::tempdir().unwrap();
    let config = Config {
        open: false,
        ..config(data.path())
    };
    let running = start(config).await.unwrap();
    Closed { running, data }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

impl Closed {
    fn roots(&self) -> Roots {
        Roots::from_pem(read(&self.data.path().join("admin/roots.pem")).as_bytes()).unwrap()
    }

    /// Over TLS, as nobody.
    fn nobody(&self) -> Admin {
        let secure = Secure::try_new(trusting(self.roots()), Protocol::Http1).unwrap();
        Admin::new(&self.running.admin_address().to_string()).with_secure(secure)
    }

    fn admin(&self) -> Admin {
        self.nobody()
            .with_token(&read(&self.data.path().join("admin/token")))
    }

    async fn user(&self, role: &str) -> Admin {
        let request = UserRequest {
            name: role.to_owned(),
            role: role.to_owned(),
            ttl_ms: None,
        };
        let added = self.admin().add_user(&request).await.unwrap();
        self.nobody().with_token(&added.token)
    }

    /// With a certificate of this service, signed by what lies in the control plane's folder.
    fn workload(&self, service: &str) -> Arc<Identity> {
        let domain = TrustDomain::default();
        let now = SystemClock.now();
        let ca =
            phalanx_pki::authority::Authority::load(&self.data.path().join("ca"), &domain, now);
        let issuer = ca.unwrap().unwrap().active().clone();
        let workload = Workload::parse(&domain, "default", service, None).unwrap();
        let key = Key::generate(KeyKind::default()).unwrap();
        let attested = Attestation::Operator {
            name: "test".into(),
        };
        let hour = std::time::Duration::from_secs(3600);
        let order = Order::new(&workload, hour, attested);
        let issued = issuer.issue_to(key.spki(), &order, now).unwrap();
        let parts = Parts {
            chain: issued.chain,
            key,
            staple: None,
            roots: self.roots(),
        };
        let identity = Identity::new(Arc::new(SystemClock));
        identity.publish(Credentials::try_new(parts, &workload, now).unwrap());
        Arc::new(identity)
    }

    fn control(&self, identity: Arc<Identity>) -> Control {
        Control::secure(&self.running.xds_address().to_string(), identity).unwrap()
    }
}

/// The status of a call with an empty message.
async fn call(control: &Control, path: String) -> (Code, String) {
    let mut grpc = tonic::client::Grpc::new(control.channel());
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    // Whoever is let in to a stream gets its head, and then nothing for a while.
    let called = grpc.server_streaming(Request::new(()), path.parse().unwrap(), codec);
    match tokio::time::timeout(SOON, called).await {
        Ok(Ok(_)) | Err(_) => (Code::Ok, String::new()),
        Ok(Err(status)) => (status.code(), status.message().to_owned()),
    }
}

#[tokio::test]
async fn every_grpc_method_refuses_who_has_no_right_to_it() {
    let closed = closed().await;
    let nobody = closed.control(trusting(closed.roots()));
    let battle = closed.control(closed.workload("battle"));
    for (service, method, needs) in METHODS {
        // A method that is there or not, it is refused before that is known.
        let method = if method == "*" { "Anything" } else { method };
        let path = || format!("/{service}/{method}");
        let (code, message) = call(&nobody, path()).await;
        match needs {
            Needs::Tls => assert_eq!(code, Code::InvalidArgument, "{service}: {message}"),
            _ => assert_eq!(code, Code::Unauthenticated, "{service}: {message}"),
        }
        let (code, message) = call(&battle, path()).await;
        let refused = matches!(code, Code::Unauthenticated | Code::PermissionDenied);
        // An empty message is about nobody, so not about itself.
        let refused = refused && !message.contains("can't speak for");
        assert_eq!(
            refused,
            matches!(needs, Needs::Role(_)),
            "{service}/{method}: {code:?}"
        );
    }
    let (code, _) = call(&nobody, "/no.such/Service".to_owned()).await;
    assert_eq!(code, Code::Unimplemented);
    let metrics = closed.admin().text("/metrics").await.unwrap().body;
    // Where a role is asked for, it is a user that is missing.
    let by_certificate =
        |needs: &Needs| !matches!(needs, Needs::Tls | Needs::Role(_) | Needs::Sessions);
    let closed_ones = METHODS.iter().filter(|(_, _, needs)| by_certificate(needs));
    let refused = format!(
        "phalanx_access_denied_total{{reason=\"no_certificate\"}} {}\n",
        closed_ones.count()
    );
    assert!(metrics.contains(&refused), "{refused} in {metrics}");
}

#[tokio::test]
async fn every_route_refuses_nobody_and_low_roles() {
    let closed = closed().await;
    let document = closed.nobody().text("/openapi.json").await.unwrap().body;
    let document: serde_json::Value = serde_json::from_str(&document).unwrap();
    let paths = document["paths"].as_object().unwrap();
    let public = [
        "/",
        "/healthz",
        "/readyz",
        "/openapi.json",
        "/api/v1/logout",
    ];
    let (viewer, operator) = (closed.user("viewer").await, closed.user("operator").await);
    let show = Secure::try_new(closed.workload("battle"), Protocol::Http1).unwrap();
    let workload = Admin::new(&closed.running.admin_address().to_string()).with_secure(show);
    let mut of_viewer = BTreeMap::new();
    let mut of_operator = BTreeMap::new();
    for (path, methods) in paths {
        for method in methods.as_object().unwrap().keys() {
            let name = format!("{method} {path}");
            let path = path.replace("{name}", "x").replace("{kind}", "service");
            let path = path
                .replace("{namespace}", "default")
                .replace("{serial}", "01");
            let status = async |who: &Admin| who.raw(method, &path).await.unwrap();
            let is_public = public.contains(&path.as_str()) || path == "/api/v1/login";
            let (nobody, workload) = (status(&closed.nobody()).await, status(&workload).await);
            if is_public {
                assert!(
                    ![401, 403].contains(&nobody) || path == "/api/v1/login",
                    "{name}: {nobody}"
                );
                continue;
            }
            assert_eq!(nobody, 401, "{name} takes nobody");
            // A workload may speak for its own service, and an empty body is about none.
            let of_sessions = name.starts_with("post /api/v1/sessions/");
            let expected = if of_sessions { 400 } else { 403 };
            assert_eq!(workload, expected, "{name} takes a workload");
            of_viewer.insert(name.clone(), status(&viewer).await != 403);
            of_operator.insert(name, status(&operator).await != 403);
        }
    }
    let is_secret = |name: &str| {
        let names = ["users", "backup", "refused", "cert"];
        names.iter().any(|part| name.contains(part))
    };
    for (name, allowed) in of_viewer {
        let is_look = name.starts_with("get ") && !is_secret(&name);
        if !name.contains("/cert") {
            assert_eq!(allowed, is_look, "{name}, viewer");
        }
    }
    for (name, allowed) in of_operator {
        if !name.contains("/cert") {
            assert_eq!(allowed, !is_secret(&name), "{name}, operator");
        }
    }
}

#[tokio::test]
async fn a_workload_registers_reports_and_follows_for_itself_only() {
    let closed = closed().await;
    let battle = closed.control(closed.workload("battle"));
    let shop = closed.control(closed.workload("shop"));
    let register = || RegisterRequest {
        instance: Some(phalanx_proto::phalanx::registry::v1::Instance {
            mutual_tls: true,
            ..to_wire(&battle_instance("b1"))
        }),
        epoch: 1,
        ttl_ms: 30_000,
    };
    let denied = RegistryClient::new(shop.channel())
        .register(register())
        .await;
    assert_eq!(denied.unwrap_err().code(), Code::PermissionDenied);
    // Nor does it take another's calls by the label that Services select by.
    let mut lured = register();
    if let Some(instance) = &mut lured.instance {
        instance.labels.insert("app".into(), "shop".into());
    }
    let lured = RegistryClient::new(battle.channel()).register(lured).await;
    assert_eq!(lured.unwrap_err().code(), Code::PermissionDenied);
    RegistryClient::new(battle.channel())
        .register(register())
        .await
        .unwrap();
    let admin = closed.admin();
    let seen = async {
        while admin
            .instances(Some("battle"), None)
            .await
            .unwrap()
            .items
            .is_empty()
        {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), seen)
        .await
        .unwrap();

    let report = |node: &str| ReportRequest {
        node: node.to_owned(),
        namespace: "default".into(),
        service: "battle".into(),
        ..ReportRequest::default()
    };
    let observe = async |control: &Control, node: &str| {
        let answer = ObserveClient::new(control.channel())
            .report(report(node))
            .await;
        answer.map_or_else(|status| status.code(), |_| Code::Ok)
    };
    assert_eq!(observe(&battle, "default/battle/b1").await, Code::Ok);
    assert_eq!(
        observe(&battle, "default/shop/s1").await,
        Code::PermissionDenied
    );
    assert_eq!(
        observe(&shop, "default/battle/b1").await,
        Code::PermissionDenied
    );

    let follow = async |control: &Control| {
        let first = DeltaDiscoveryRequest {
            node: Some(Node {
                user_agent_name: "grpc-go".into(),
                cluster: "battle".into(),
                ..node("default/battle/b1")
            }),
            type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster".into(),
            ..DeltaDiscoveryRequest::default()
        };
        let requests = tokio_stream::iter([first]);
        let requests = tokio_stream::StreamExt::chain(requests, tokio_stream::pending());
        let mut client = AggregatedDiscoveryServiceClient::new(control.channel());
        let answers = client.delta_aggregated_resources(requests).await;
        let mut answers = match answers {
            Ok(answers) => answers.into_inner(),
            Err(status) => return status.code(),
        };
        let heard = tokio::time::timeout(SOON, answers.message());
        match heard.await {
            Ok(Err(status)) => status.code(),
            _ => Code::Ok,
        }
    };
    assert_eq!(follow(&shop).await, Code::PermissionDenied);
    assert_eq!(follow(&battle).await, Code::Ok);
}

#[tokio::test]
async fn keys_of_sessions_are_told_to_their_own_service_and_to_users_only() {
    let closed = closed().await;
    let token = read(&closed.data.path().join("admin/token"));
    let show = |service: &str| sessions::ShowRequest {
        namespace: "default".into(),
        service: service.into(),
        ..sessions::ShowRequest::default()
    };
    let watch = |service: &str| sessions::WatchRequest {
        namespace: "default".into(),
        service: service.into(),
    };
    let code = |status: Result<(), tonic::Status>| status.map_or_else(|s| s.code(), |()| Code::Ok);
    let control = closed.control(closed.workload("shop"));
    let mut shop = SessionsClient::new(control.channel());
    for (service, expected) in [
        ("shop", Code::Ok),
        ("battle", Code::PermissionDenied),
        ("", Code::PermissionDenied),
    ] {
        let shown = shop.show(show(service)).await.map(drop);
        assert_eq!(code(shown), expected, "show {service}");
    }
    let own = shop.watch(watch("shop")).await.map(drop);
    assert_eq!(code(own), Code::Ok);
    let others = shop.watch(watch("battle")).await.map(drop);
    assert_eq!(code(others), Code::PermissionDenied);
    for service in ["battle", ""] {
        let mut request = Request::new(show(service));
        let bearer = format!("Bearer {}", token.trim()).parse().unwrap();
        request.metadata_mut().insert("authorization", bearer);
        assert_eq!(code(shop.show(request).await.map(drop)), Code::Ok);
    }
}

#[tokio::test]
async fn what_a_revoked_workload_has_open_is_cut_off() {
    let closed = closed().await;
    let workload = Workload::parse(&TrustDomain::default(), "default", "battle", None).unwrap();
    let key = Key::generate(KeyKind::default()).unwrap();
    let csr = phalanx_pki::csr::request(&key, &workload).unwrap();
    let request = SignRequest {
        csr: phalanx_pki::x509::pem("CERTIFICATE REQUEST", &csr),
        namespace: "default".into(),
        service: "battle".into(),
        ..SignRequest::default()
    };
    let signed = closed.admin().sign(&request).await.unwrap();
    let parts = Parts {
        chain: phalanx_pki::x509::certs_from_pem(signed.chain.as_bytes()).unwrap(),
        key,
        staple: None,
        roots: closed.roots(),
    };
    let identity = Identity::new(Arc::new(SystemClock));
    identity.publish(Credentials::try_new(parts, &workload, SystemClock.now()).unwrap());
    let revoked = closed.control(Arc::new(identity));
    let other = closed.control(closed.workload("shop"));
    let watch = async |control: &Control| {
        let mut registry = RegistryClient::new(control.channel());
        let watching = registry.watch(WatchRequest::default()).await;
        let mut stream = watching.unwrap().into_inner();
        stream.message().await.unwrap();
        stream
    };
    let (mut its, mut others) = (watch(&revoked).await, watch(&other).await);
    let request = RevokeRequest {
        serials: vec![signed.serial],
        reason: "keyCompromise".into(),
        ..RevokeRequest::default()
    };
    closed.admin().revoke(&request).await.unwrap();
    let ten = std::time::Duration::from_secs(10);
    tokio::time::timeout(ten, its.message())
        .await
        .unwrap()
        .unwrap_err();
    let again = RegistryClient::new(revoked.channel())
        .watch(WatchRequest::default())
        .await;
    assert!(again.is_err());
    let still = tokio::time::timeout(ten / 50, others.message()).await;
    assert!(still.is_err(), "who is not revoked is left alone");
    let metrics = closed.admin().text("/metrics").await.unwrap().body;
    assert!(
        metrics.contains("{port=\"xds\",reason=\"revoked\"}"),
        "{metrics}"
    );
}

fn node(id: &str) -> Node {
    Node {
        id: id.to_owned(),
        ..Node::default()
    }
}

#[tokio::test]
async fn the_history_names_who_showed_a_token_and_not_who_is_claimed() {
    let closed = closed().await;
    let operator = closed.user("operator").await;
    let request = ApplyRequest {
        files: vec![File { name: "a.yaml".into(), text: "apiVersion: v1\nkind: Service\nmetadata: {name: shop}\nspec:\n  selector: {app: shop}\n  ports: [{port: 80}]\n".into() }],
        author: "somebody-else".into(),
        ..ApplyRequest::default()
    };
    operator.apply(&request).await.unwrap();
    let history = operator.history(None).await.unwrap();
    assert_eq!(history.entries[0].author, "operator");
}

#[tokio::test]
async fn errors_say_what_is_missing() {
    let closed = closed().await;
    let address = closed.running.admin_address().to_string();
    let plain = Admin::new(&address).status(None).await.unwrap_err();
    assert!(plain.to_string().contains("speaks TLS"), "{plain}");
    assert!(plain.hint().unwrap().contains("PHALANX_ROOTS"), "{plain:?}");
    let nobody = closed.nobody().status(None).await.unwrap_err();
    assert!(
        matches!(&nobody, AdminError::Refused { status: 401, .. }),
        "{nobody}"
    );
    assert!(nobody.hint().unwrap().contains("PHALANX_TOKEN_FILE"));
    let wrong = closed
        .nobody()
        .with_token("x")
        .status(None)
        .await
        .unwrap_err();
    assert!(wrong.to_string().contains("not known"), "{wrong}");

    let other = self::closed().await;
    let secure = Secure::try_new(trusting(other.roots()), Protocol::Http1).unwrap();
    let stranger = Admin::new(&address).with_secure(secure);
    let error = stranger.status(None).await.unwrap_err();
    assert!(matches!(error, AdminError::Untrusted { .. }), "{error:?}");
    assert!(error.hint().unwrap().contains("roots.pem"), "{error}");
    // Somebody of another mesh.
    let show = Secure::try_new(other.workload("battle"), Protocol::Http1).unwrap();
    show.identity().publish_roots(closed.roots()).unwrap_err();
    let both = closed.roots().and(&other.roots()).unwrap();
    show.identity().publish_roots(both).unwrap();
    let error = Admin::new(&address)
        .with_secure(show)
        .status(None)
        .await
        .unwrap_err();
    assert!(matches!(error, AdminError::Untrusted { .. }), "{error:?}");
    let metrics = closed.admin().text("/metrics").await.unwrap().body;
    assert!(
        metrics.contains("phalanx_tls_refused_total{port=\"admin\",reason=\"unknown_ca\"} 1"),
        "{metrics}"
    );
    assert!(
        metrics.contains("phalanx_tls_refused_total{port=\"admin\",reason=\"plain\"} 1"),
        "{metrics}"
    );
}

type Tls = tokio_rustls::client::TlsStream<tokio::net::TcpStream>;

impl Closed {
    /// To the admin port, as nobody, with nothing said yet.
    async fn line(&self) -> Tls {
        let address = self.running.admin_address();
        let secure = Secure::try_new(trusting(self.roots()), Protocol::Http1).unwrap();
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let connected = secure.connect(stream, &address.to_string()).await;
        connected.unwrap().0
    }

    /// The status line of the answer to some bytes.
    async fn raw(&self, request: &str) -> String {
        let mut line = self.line().await;
        let _ = line.write_all(request.as_bytes()).await;
        first_line(&mut line).await
    }
}

async fn first_line(line: &mut Tls) -> String {
    let mut heard = Vec::new();
    let head = async {
        let mut bytes = [0; 4096];
        while !heard.windows(4).any(|four| four == b"\r\n\r\n") {
            match line.read(&mut bytes).await {
                Ok(count) if count > 0 => heard.extend_from_slice(&bytes[..count]),
                _ => break,
            }
        }
    };
    let _ = tokio::time::timeout(SOON, head).await;
    let text = String::from_utf8_lossy(&heard).into_owned();
    text.lines().next().unwrap_or_default().to_owned()
}

const SOON: std::time::Duration = std::time::Duration::from_secs(10);

#[tokio::test]
async fn no_way_of_writing_a_path_or_a_method_leads_around_the_roles() {
    let closed = closed().await;
    let request = UserRequest {
        name: "looker".to_owned(),
        role: "viewer".to_owned(),
        ttl_ms: None,
    };
    let token = closed.admin().add_user(&request).await.unwrap().token;
    let host = closed.running.admin_address();
    let body = r#"{"name":"evil","role":"admin"}"#;
    let post = format!(
        "content-type: application/json\r\ncontent-length: {}\r\n",
        body.len()
    );
    let paths = [
        "/api/v1/users",
        "//api/v1/users",
        "/api//v1/users",
        "/api/v1/users/",
        "/api/v1/./users",
        "/api/v1/status/../users",
        "/api/v1/status/%2e%2e/users",
        "/%61pi/v1/users",
        "/api/v1/users%00",
        "/api/v1/users%2f",
        "/api/v1/users;role=admin",
        "/API/V1/USERS",
        "/api/v1/users?role=admin",
        "/api/v1/users#x",
        "*",
        "api/v1/users",
        "http://127.0.0.1/api/v1/users",
    ];
    let proofs = [
        String::new(),
        format!("authorization: Bearer {token}\r\n"),
        format!("cookie: __Host-phalanx={token}\r\n"),
        format!("authorization: Bearer x\r\nauthorization: Bearer {token}\r\n"),
        format!("authorization: Bearer {token}\r\nx-forwarded-for: 127.0.0.1\r\n"),
    ];
    for proof in &proofs {
        for path in paths {
            for method in [
                "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH",
            ] {
                let extra = match method {
                    "POST" => post.as_str(),
                    "DELETE" => "content-type: application/json\r\n",
                    _ => "x-http-method-override: POST\r\n",
                };
                let body = if method == "POST" { body } else { "" };
                let text = format!(
                    "{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{proof}{extra}\r\n{body}"
                );
                let answer = closed.raw(&text).await;
                assert!(!answer.contains(" 2"), "{method} {path} {proof}: {answer}");
            }
        }
    }
    let users = closed.admin().users().await.unwrap().items;
    let names: Vec<&str> = users.iter().map(|user| user.name.as_str()).collect();
    assert_eq!(names, ["admin", "looker"]);
}

#[tokio::test]
async fn a_page_of_another_site_can_do_nothing_with_the_cookie() {
    let closed = closed().await;
    let token = read(&closed.data.path().join("admin/token"));
    let host = closed.running.admin_address();
    let send = async |origin: &str, kind: &str| {
        let body = r#"{"name":"evil","role":"admin"}"#;
        let text = format!(
            "POST /api/v1/users HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncookie: a=b; __Host-phalanx={}\r\n{origin}content-type: {kind}\r\ncontent-length: {}\r\n\r\n{body}",
            token.trim(),
            body.len()
        );
        closed.raw(&text).await
    };
    for origin in [
        "origin: https://evil.example\r\n".to_owned(),
        "origin: null\r\n".to_owned(),
        format!("origin: http://{host}\r\n"),
        format!("origin: https://{host}.evil.example\r\n"),
        format!("origin: https://{host}\r\norigin: https://evil.example\r\n"),
    ] {
        let answer = send(&origin, "application/json").await;
        assert!(!answer.contains(" 2"), "{origin}: {answer}");
    }
    for kind in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
    ] {
        let answer = send("", kind).await;
        assert!(answer.contains("415"), "{kind}: {answer}");
    }
    let own = format!("origin: https://{host}\r\n");
    let answer = send(&own, "application/json").await;
    assert!(answer.contains("200"), "{answer}");
}

#[tokio::test]
async fn whoever_holds_connections_and_proves_nothing_keeps_nobody_out() {
    let closed = closed().await;
    let address = closed.running.admin_address();
    let token = read(&closed.data.path().join("admin/token"));
    let me = format!(
        "GET /api/v1/me HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\n\r\n",
        token.trim()
    );
    let mut known = closed.line().await;
    known.write_all(me.as_bytes()).await.unwrap();
    assert!(first_line(&mut known).await.contains("200"));

    // More than there are seats, each time.
    let mut silent = Vec::new();
    for _ in 0..150 {
        silent.push(tokio::net::TcpStream::connect(address).await.unwrap());
    }
    let admin = closed.admin().with_timeout(SOON);
    admin.proxies().await.unwrap();
    let mut strangers = Vec::new();
    for _ in 0..150 {
        strangers.push(closed.line().await);
    }
    admin.proxies().await.unwrap();
    known.write_all(me.as_bytes()).await.unwrap();
    assert!(
        first_line(&mut known).await.contains("200"),
        "a user is not pushed out"
    );
}
