//! Other protocols: what a handshake begins with, questions about names, a Redis' answers, keys of an etcd.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use phalanx_control::dns;
use phalanx_control::import::read_key;
use phalanx_control::limits::redis_answers;
use phalanx_model::instance::is_callable;
use phalanx_proxy::drive::{first_bytes, name_in_hello};

/// What was read of the beginning stays true of the whole.
pub fn client_hello(bytes: &[u8]) {
    let whole = name_in_hello(bytes);
    for cut in [bytes.len() / 2, bytes.len().saturating_sub(1)] {
        let part = name_in_hello(bytes.get(..cut).unwrap_or_default());
        assert!(
            part.is_none() || part == whole,
            "{part:?} of the front, {whole:?} of all"
        );
    }
    if let Some(Some(name)) = whole {
        assert!(name.len() <= 255 && !name.bytes().any(|byte| byte.is_ascii_uppercase()));
    }
}

/// What was said of the beginning stays true of the whole, and at last something is said.
pub fn beginnings(bytes: &[u8]) {
    let (whole, _) = first_bytes(bytes, false);
    for cut in [bytes.len() / 2, bytes.len().saturating_sub(1)] {
        let (part, _) = first_bytes(bytes.get(..cut).unwrap_or_default(), false);
        assert!(
            cut == 0 || part.is_none() || part == whole,
            "{part:?} of the front, {whole:?} of all"
        );
    }
    let (last, host) = first_bytes(bytes, true);
    assert!(last.is_some() && (whole.is_none() || whole == last));
    assert!(host.is_none_or(|host| host.len() <= bytes.len()));
}

/// For every transport an answer within its bounds, or none.
pub fn dns(packet: &[u8]) {
    if let Err(why) = dns::fuzz::ask(packet) {
        panic!("{why}");
    }
}

/// Answers in flight, which end where one is none.
pub fn redis(bytes: &[u8]) {
    let mut read = pin!(redis_answers(bytes));
    match read.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(count) => assert!(count <= bytes.len() / 3),
        Poll::Pending => panic!("it waits though all is there"),
    }
}

/// A line with the key, and its value.
pub fn imports(bytes: &[u8]) {
    let mut halves = bytes.splitn(2, |byte| *byte == b'\n');
    let key = String::from_utf8_lossy(halves.next().unwrap_or_default());
    let Ok(instance) = read_key(&key, halves.next().unwrap_or_default(), "default") else {
        return;
    };
    assert!(instance.weight >= 1 && instance.ports.len() == 1);
    assert!(key.starts_with(&format!("{}/", instance.id.service.name)));
    for port in &instance.ports {
        assert!(is_callable(port.address.ip()), "{port:?}");
    }
    let short = |text: &String| text.len() <= 256 && !text.contains(['\n', '\0']);
    assert!(
        instance
            .labels
            .iter()
            .all(|(name, value)| short(name) && short(value))
    );
    assert!(short(&instance.zone));
}

/// Sessions that another process hands over: what is taken says the same when it is written again.
pub fn wills(bytes: &[u8]) {
    if let Some(will) = phalanx_proxy::udp::rewritten(bytes) {
        assert!(will.len() <= bytes.len());
        assert_eq!(phalanx_proxy::udp::rewritten(&will), Some(will));
    }
}
