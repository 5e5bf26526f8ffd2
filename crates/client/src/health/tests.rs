use std::sync::{Arc, Mutex};

use phalanx_model::resource::Probe;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::ask::{REASON_MAX, shown};
use super::*;

fn target(address: SocketAddr, probe: Probe) -> Target {
    let check = HealthCheck {
        timeout: Duration::from_secs(5),
        interval: Duration::from_millis(20),
        ..HealthCheck::new(probe)
    };
    Target {
        address,
        check,
        authority: "shop.default.svc.mesh".into(),
        port: 8080,
        http2: false,
        tls: None,
        before: State::Unknown,
    }
}

/// Of one that is not going to answer.
fn impatient(target: Target) -> Target {
    let mut target = target;
    target.check.timeout = Duration::from_millis(300);
    target
}

/// On a host of this process alone, so that a port that was given up is not somebody else's before it is taken again.
async fn own_listener() -> TcpListener {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    TcpListener::bind((std::net::Ipv4Addr::new(127, 1 + high % 31, low, 1), 0))
        .await
        .unwrap()
}

fn http() -> Probe {
    Probe::Http {
        path: "/healthz".into(),
    }
}

/// A server that answers every connection with these bytes after the first it hears, and tells what it heard.
async fn server(answer: &'static str) -> (SocketAddr, Arc<Mutex<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let heard = Arc::new(Mutex::new(String::new()));
    let told = heard.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut bytes = [0; 4096];
            let read = stream.read(&mut bytes).await.unwrap_or(0);
            *told.lock().unwrap() = String::from_utf8_lossy(&bytes[..read]).into_owned();
            if answer == "silence" {
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_secs(60)).await;
                    drop(stream);
                });
                continue;
            }
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (address, heard)
}

fn bad(answer: &Answer) -> &str {
    match answer {
        Answer::Bad(reason) => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn two_hundreds_are_good_and_the_question_names_the_service_and_the_port() {
    for status in ["200 OK", "204 No Content", "299 Odd"] {
        let answer = Box::leak(format!("HTTP/1.1 {status}\r\n\r\n").into_boxed_str());
        let (address, heard) = server(answer).await;
        assert_eq!(
            ask(&target(address, http()), None).await,
            Answer::Good,
            "{status}"
        );
        let heard = heard.lock().unwrap().to_lowercase();
        assert!(heard.starts_with("get /healthz http/1.1\r\n"), "{heard}");
        for line in ["host: shop.default.svc.mesh", "x-phalanx-port: 8080"] {
            assert!(heard.contains(line), "{heard}");
        }
    }
}

#[tokio::test]
async fn other_answers_and_none_are_bad_and_say_why() {
    for (answer, expected) in [
        ("HTTP/1.1 503 Service Unavailable\r\n\r\n", "answered 503"),
        ("HTTP/1.1 302 Found\r\nlocation: /\r\n\r\n", "answered 302"),
        ("", "closed the connection without an answer"),
        ("silence", "no answer within 300ms"),
        ("SSH-2.0-OpenSSH\r\n\r\n", "no HTTP answer"),
    ] {
        let (address, _) = server(answer).await;
        let asked = match answer {
            "silence" => impatient(target(address, http())),
            _ => target(address, http()),
        };
        let answer = ask(&asked, None).await;
        assert!(bad(&answer).contains(expected), "{answer:?}");
    }
    // Held, but nobody listens.
    let held = tokio::net::TcpSocket::new_v4().unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = held.local_addr().unwrap();
    for probe in [
        http(),
        Probe::Tcp,
        Probe::Grpc {
            service: String::new(),
        },
    ] {
        assert_eq!(
            bad(&ask(&target(address, probe), None).await),
            "connection refused"
        );
    }
}

#[tokio::test]
async fn sidecar_that_lets_us_not_through_says_nothing_about_its_application() {
    for reason in ["unauthenticated", "denied"] {
        let text = format!("HTTP/1.1 403 Forbidden\r\nx-phalanx-reason: {reason}\r\n\r\n");
        let (address, _) = server(Box::leak(text.into_boxed_str())).await;
        assert_eq!(ask(&target(address, http()), None).await, Answer::Void);
        // Without a sidecar it is the application's own word.
        let mut alone = target(address, http());
        alone.port = 0;
        assert_eq!(bad(&ask(&alone, None).await), "answered 403");
    }
}

#[tokio::test]
async fn a_head_without_end_is_bad_and_bounded() {
    let endless =
        Box::leak(format!("HTTP/1.1 200 OK\r\nx: {}", "a".repeat(1 << 20)).into_boxed_str());
    let (address, _) = server(endless).await;
    assert!(!bad(&ask(&target(address, http()), None).await).is_empty());
}

#[tokio::test]
async fn a_connection_is_all_that_tcp_asks_for() {
    let (address, _) = server("silence").await;
    assert_eq!(ask(&target(address, Probe::Tcp), None).await, Answer::Good);
}

#[tokio::test]
async fn who_speaks_no_http2_has_no_grpc_health() {
    let (address, _) = server("HTTP/1.1 400 Bad Request\r\n\r\n").await;
    let service = String::new();
    let answer = ask(&target(address, Probe::Grpc { service }), None).await;
    assert!(!bad(&answer).is_empty());
}

type Findings = Arc<Mutex<Vec<(u8, Finding)>>>;

fn checker() -> (Checker<u8>, Findings) {
    let findings = Findings::default();
    let told = findings.clone();
    let checker = Checker::spawn(4, None, move |key: &u8, finding| {
        told.lock().unwrap().push((*key, finding));
    });
    (checker, findings)
}

async fn until(findings: &Findings, what: impl Fn(&[(u8, Finding)]) -> bool) {
    for _ in 0..3000 {
        if what(&findings.lock().unwrap()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{:?}", findings.lock().unwrap());
}

#[tokio::test]
async fn a_checker_finds_out_that_an_endpoint_goes_and_comes_back() {
    let listener = own_listener().await;
    let address = listener.local_addr().unwrap();
    let (checker, findings) = checker();
    checker.set([(1, target(address, Probe::Tcp))].into());
    let last = |state: State| {
        move |all: &[(u8, Finding)]| {
            all.iter()
                .rev()
                .find(|(_, f)| f.is_transition)
                .is_some_and(|(_, f)| f.state == state)
        }
    };
    until(&findings, last(State::Healthy)).await;
    drop(listener);
    until(&findings, last(State::Unhealthy)).await;
    let transition = findings
        .lock()
        .unwrap()
        .iter()
        .rev()
        .find(|(_, f)| f.is_transition)
        .cloned();
    assert_eq!(transition.unwrap().1.reason, "connection refused");
    let _listener = TcpListener::bind(address).await.unwrap();
    until(&findings, last(State::Healthy)).await;
}

#[tokio::test]
async fn who_is_no_target_any_more_is_not_asked_and_who_stays_keeps_what_is_known() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = target(listener.local_addr().unwrap(), Probe::Tcp);
    let (checker, findings) = checker();
    checker.set([(1, target.clone()), (2, target.clone())].into());
    until(&findings, |all| {
        all.iter().any(|f| f.0 == 1) && all.iter().any(|f| f.0 == 2)
    })
    .await;
    checker.set(
        [(
            2,
            Target {
                before: State::Unhealthy,
                ..target.clone()
            },
        )]
        .into(),
    );
    tokio::time::sleep(Duration::from_millis(50)).await;
    findings.lock().unwrap().clear();
    until(&findings, |all| all.len() > 3).await;
    let findings = findings.lock().unwrap();
    assert!(
        findings
            .iter()
            .all(|(key, f)| *key == 2 && !f.is_transition),
        "{findings:?}"
    );
}

#[tokio::test]
async fn no_more_are_asked_at_once_than_allowed() {
    let (address, _) = server("silence").await;
    let (checker, findings) = checker();
    let targets = (0..40).map(|key| (key, impatient(target(address, http()))));
    let began = Instant::now();
    checker.set(targets.collect());
    tokio::time::sleep(Duration::from_millis(650)).await;
    // 4 at a time, 300 ms each.
    let found = findings.lock().unwrap().len() as u128;
    let rounds = began.elapsed().as_millis() / 300;
    assert!(found <= 4 * rounds, "{found} in {rounds} rounds");
    drop(checker);
}

#[tokio::test]
async fn what_the_asked_one_says_is_shown_without_its_control_characters() {
    let (address, _) = server("HTTP/1.1 503 Busy\r\n\r\n").await;
    assert_eq!(
        bad(&ask(&target(address, http()), None).await),
        "answered 503"
    );
    assert_eq!(shown("a\u{1b}[2Jb\r\nc"), "a[2Jbc");
    assert_eq!(shown(&"x".repeat(5000)).len(), REASON_MAX);
}

/// Connections that are open at the moment, of a server that reads, says `greeting` and nothing else, and never closes.
async fn tar_pit(greeting: &'static [u8]) -> (SocketAddr, Arc<std::sync::atomic::AtomicUsize>) {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let open = Arc::new(AtomicUsize::new(0));
    let count = open.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let count = count.clone();
            count.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let _ = stream.write_all(greeting).await;
                let mut bytes = [0; 4096];
                while stream.read(&mut bytes).await.is_ok_and(|read| read > 0) {}
                count.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    (address, open)
}

#[tokio::test]
async fn questions_that_are_given_up_leave_no_connection_behind() {
    // Nothing, and the SETTINGS of HTTP/2 without an answer.
    for greeting in [&b""[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0]] {
        for (probe, http2) in [
            (http(), false),
            (http(), true),
            (
                Probe::Grpc {
                    service: String::new(),
                },
                true,
            ),
        ] {
            let (address, open) = tar_pit(greeting).await;
            let asked = Target {
                http2,
                ..impatient(target(address, probe))
            };
            let mut asking = tokio::task::JoinSet::new();
            for _ in 0..10 {
                let asked = asked.clone();
                asking.spawn(async move { ask(&asked, None).await });
            }
            for answer in asking.join_all().await {
                assert!(!bad(&answer).is_empty());
            }
            for _ in 0..500 {
                if open.load(std::sync::atomic::Ordering::SeqCst) == 0 {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert_eq!(
                open.load(std::sync::atomic::Ordering::SeqCst),
                0,
                "{asked:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_question_that_ends_in_a_defect_is_asked_again() {
    let (address, _) = server("HTTP/1.1 200 OK\r\n\r\n").await;
    let (_targets, wanted) = watch::channel(Targets::from([(1, target(address, http()))]));
    let (found, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let mut asking = Asking {
        wanted,
        at_once: 1,
        identity: None,
        watched: BTreeMap::new(),
        due: BTreeMap::new(),
        questions: JoinSet::new(),
        asked: HashMap::new(),
        serial: 0,
        found: move |_: &i32, finding: Finding| found.send(finding.state).unwrap(),
    };
    asking.take();
    let ((_, serial), key) = asking.due.pop_first().unwrap();
    asking.question(key, serial, async { panic!("a defect, in a test") });
    tokio::spawn(asking.run());
    let state = tokio::time::timeout(Duration::from_secs(10), heard.recv());
    assert_eq!(state.await.unwrap(), Some(State::Healthy));
}
