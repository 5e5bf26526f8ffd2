//! Strict, permissive and off; and nothing where it is not known which.

use phalanx_model::instance::Protocol;
use phalanx_model::name::Direction;
use phalanx_model::resource::*;

use crate::pki::*;
use crate::support::*;

#[test]
fn strict_refuses_plain_text_by_name_and_permissive_takes_it() {
    let app = Upstream::start(|_, _| ok("in"));
    for (mode, status, reason) in [
        (MtlsMode::Strict, 401, "unauthenticated"),
        (MtlsMode::Permissive, 200, ""),
        (MtlsMode::Off, 200, ""),
    ] {
        let pair = Pair::start(app.address, mode);
        let mut client = Client::connect(pair.called.inbound);
        let answer = client.get("battle", "/");
        assert_eq!(
            (answer.status(), answer.reason()),
            (status, reason),
            "{mode:?}"
        );
        let counted = refused(&pair.called, Direction::Inbound, "plain_text");
        assert_eq!(counted, u64::from(mode == MtlsMode::Strict));
        if mode == MtlsMode::Strict {
            assert!(client.is_closed());
        }
    }
}

#[test]
fn permissive_takes_both_and_off_takes_no_handshake() {
    let app = Upstream::start(|_, _| ok("in"));
    let pair = Pair::start(app.address, MtlsMode::Permissive);
    assert_eq!(pair.get("/").status(), 200);
    let pair = Pair::start(app.address, MtlsMode::Off);
    let answer = pair.get("/");
    assert_eq!((answer.status(), answer.reason()), (503, "connect_failed"));
    assert!(refused(&pair.called, Direction::Inbound, "tls_off") > 0);
}

#[test]
fn mode_is_that_of_the_port_that_is_asked_for() {
    let (open, closed) = (
        Upstream::start(|_, _| ok("open")),
        Upstream::start(|_, _| ok("closed")),
    );
    let issuer = issuer();
    let battle = identity(&issuer, "battle");
    let mut rules = inbound(MtlsMode::Strict, Access::default());
    rules.ports.insert(
        8081,
        InboundRule {
            mode: MtlsMode::Permissive,
            ..InboundRule::default()
        },
    );
    let sidecar = called(&battle, rules)
        .app(8080, closed.address, Protocol::Auto)
        .app(8081, open.address, Protocol::Auto)
        .start();
    let ask = |port| {
        let head = "GET / HTTP/1.1\r\nhost: battle\r\nx-phalanx-port";
        Client::connect(sidecar.inbound).ask(&format!("{head}: {port}\r\n\r\n"))
    };
    assert_eq!(ask(8081).text(), "open");
    assert_eq!(ask(8080).reason(), "unauthenticated");
    let config = Shown::of(&identity(&issuer, "gateway")).config();
    let head = "GET / HTTP/1.1\r\nx-phalanx-port: 8080";
    assert!(
        super::pki::ask(&config, sidecar.inbound, head)
            .unwrap()
            .ends_with("closed")
    );
}

#[test]
fn sidecar_with_an_identity_lets_nobody_in_until_it_knows_what_to_ask() {
    let app = Upstream::start(|_, _| ok("in"));
    let mut pair = Pair::start(app.address, MtlsMode::Permissive);
    pair.called.change(|setup| setup.inbound = None);
    let mut plain = Client::connect(pair.called.inbound);
    for answer in [pair.get("/"), plain.get("battle", "/")] {
        assert_eq!(
            (answer.status(), answer.reason()),
            (503, "no_healthy_upstream")
        );
    }
    assert_eq!(app.requests(), 0);
    let rules = inbound(MtlsMode::Strict, Access::default());
    pair.called.change(|setup| setup.inbound = Some(rules));
    assert_eq!(pair.get("/").status(), 200);
    assert_eq!(plain.get("battle", "/").reason(), "unauthenticated");
}

#[test]
fn sidecar_without_identity_is_plain_and_obeys_strict_all_the_same() {
    let app = Upstream::start(|_, _| ok("in"));
    let setup = Setup::default().app(8080, app.address, Protocol::Auto);
    let mut sidecar = setup.start();
    let ask = |sidecar: &Sidecar| Client::connect(sidecar.inbound).get("battle", "/").status();
    assert_eq!(ask(&sidecar), 200);
    let rules = inbound(MtlsMode::Strict, Access::default());
    sidecar.change(|setup| setup.inbound = Some(rules));
    assert_eq!(ask(&sidecar), 401);
}

#[test]
fn tls_without_a_certificate_is_told_so() {
    let app = Upstream::start(|_, _| ok("in"));
    for mode in [MtlsMode::Strict, MtlsMode::Permissive] {
        let pair = Pair::start(app.address, mode);
        let answer = ask(
            &Shown::default().config(),
            pair.called.inbound,
            "GET / HTTP/1.1",
        );
        let answer = answer.unwrap();
        assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
        assert!(
            answer.contains("x-phalanx-reason: unauthenticated"),
            "{answer}"
        );
        is_refused(&pair.called, Direction::Inbound, "no_certificate", 1);
    }
    assert_eq!(app.requests(), 0);
}
