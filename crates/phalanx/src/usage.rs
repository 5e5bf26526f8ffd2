//! Arguments before clap reads them, and what it says about them.

use std::ffi::OsString;

use crate::exit::Failure;

/// Moves a leading `--admin HOST:PORT`, `--roots FILE` or `--token-file FILE` behind the verb, where it means the same.
pub fn normalized(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut rest = arguments.peekable();
    let mut normalized: Vec<OsString> = rest.next().into_iter().collect();
    let mut moved = Vec::new();
    let leads = |a: &OsString| {
        LEADING
            .iter()
            .any(|flag| a.to_string_lossy().starts_with(flag))
    };
    while let Some(argument) = rest.next_if(leads) {
        let takes_next = LEADING.iter().any(|flag| argument == *flag);
        moved.push(argument);
        if takes_next {
            moved.extend(rest.next());
        }
    }
    // The verb; without one clap has to say what is missing.
    match rest.next() {
        Some(verb) => {
            normalized.push(verb);
            normalized.extend(moved);
        }
        None => normalized.extend(moved),
    }
    normalized.extend(rest);
    normalized
}

/// Whether errors are wanted as JSON too.
pub fn wants_json(arguments: &[OsString]) -> bool {
    let text: Vec<_> = arguments.iter().map(|a| a.to_string_lossy()).collect();
    let pair = |pair: &[std::borrow::Cow<'_, str>]| matches!(pair, [flag, value] if (flag == "-o" || flag == "--output") && value == "json");
    text.windows(2).any(pair)
        || text
            .iter()
            .any(|a| a == "-ojson" || a == "-o=json" || a == "--output=json")
}

/// What clap has to say, as an error like any other.
pub fn failure(error: &clap::Error) -> Failure {
    let text = error.render().to_string();
    let first = text.lines().next().unwrap_or_default();
    let first = first.strip_prefix("error: ").unwrap_or(first);
    Failure::usage(first).hint("see `phalanx --help`")
}

/// How the control plane is asked, whatever the verb.
const LEADING: [&str; 3] = ["--admin", "--roots", "--token-file"];

/// `HOST:PORT`, with or without `https://` before it.
pub fn parse_admin(text: &str) -> Result<String, String> {
    let schemes = ["http://", "https://"];
    let address = schemes.iter().find_map(|scheme| text.strip_prefix(scheme));
    let address = address.unwrap_or(text);
    let address = address.trim_end_matches('/');
    let is_host = |host: &str| {
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b);
        !host.is_empty() && host.bytes().all(is_plain)
    };
    match address.rsplit_once(':') {
        Some((host, port)) if is_host(host) && port.parse::<u16>().is_ok_and(|p| p > 0) => {
            // Who says that it speaks TLS is not asked in plain text.
            let scheme = schemes[1];
            let scheme = if text.starts_with(scheme) { scheme } else { "" };
            Ok(format!("{scheme}{address}"))
        }
        _ => Err("expected HOST:PORT, such as 127.0.0.1:15080".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    fn moved(text: &str) -> String {
        let all = normalized(arguments(text).into_iter());
        let all: Vec<_> = all.iter().map(|a| a.to_string_lossy()).collect();
        all.join(" ")
    }

    #[test]
    fn admin_may_stand_before_the_verb() {
        assert_eq!(
            moved("phalanx --admin a:1 get svc"),
            "phalanx get --admin a:1 svc"
        );
        assert_eq!(moved("phalanx --admin=a:1 ps"), "phalanx ps --admin=a:1");
        assert_eq!(
            moved("phalanx get --admin a:1 svc"),
            "phalanx get --admin a:1 svc"
        );
        assert_eq!(moved("phalanx --admin"), "phalanx --admin");
    }

    #[test]
    fn json_is_wanted_in_any_spelling() {
        for text in [
            "x -o json",
            "x -ojson",
            "x --output=json",
            "x --output json y",
        ] {
            assert!(wants_json(&arguments(text)), "{text}");
        }
        assert!(!wants_json(&arguments("x -o yaml json")));
    }

    #[test]
    fn an_address_is_checked_before_anybody_is_asked() {
        assert_eq!(
            parse_admin("http://127.0.0.1:1/").as_deref(),
            Ok("127.0.0.1:1")
        );
        assert_eq!(parse_admin("https://a:1/").as_deref(), Ok("https://a:1"));
        assert_eq!(parse_admin("[::1]:80").as_deref(), Ok("[::1]:80"));
        for wrong in ["garbage", "a:", ":1", "a:0", "a:99999", "a b:1", "http://"] {
            assert!(parse_admin(wrong).is_err(), "{wrong}");
        }
    }
}
