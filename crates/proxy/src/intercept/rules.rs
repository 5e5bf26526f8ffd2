//! The rules as text, for one transaction: what is there of ours goes, what there is to be comes.

use std::fmt::Write as _;

use super::MARK;
use crate::config::{InterceptConfig, Prefix};

/// One in a network namespace, since one sidecar intercepts there: so the next finds what the one before left.
pub(super) const TABLE: &str = "inet phalanx-intercept";

/// Named first, because only what is there can be deleted.
pub(super) fn remove() -> String {
    format!("table {TABLE}\ndelete table {TABLE}\n")
}

/// `own_ports`: where the sidecar itself is called.
pub(super) fn install(config: &InterceptConfig, own_ports: &[u16]) -> String {
    let mut text = remove();
    let _ = write!(
        text,
        "table {TABLE} {{\n{}{}}}\n",
        outgoing(config),
        incoming(config, own_ports)
    );
    text
}

/// What is sent from here. Loopback stays what it is: who calls there means what is there.
fn outgoing(config: &InterceptConfig) -> String {
    let mut rules = vec![
        "meta l4proto != tcp return".to_owned(),
        format!("meta mark {MARK:#x} return"),
        "ip daddr 127.0.0.0/8 return".to_owned(),
        "ip6 daddr ::1 return".to_owned(),
    ];
    if !config.exempt_uids.is_empty() {
        rules.push(format!("meta skuid {} return", set(&config.exempt_uids)));
    }
    rules.extend(
        config
            .exempt_addresses
            .iter()
            .map(|prefix| address("daddr", prefix)),
    );
    if !config.exempt_ports.is_empty() {
        rules.push(format!("tcp dport {} return", set(&config.exempt_ports)));
    }
    if !config.ports.is_empty() {
        rules.push(format!("tcp dport != {} return", set(&config.ports)));
    }
    rules.push(format!("meta l4proto tcp redirect to :{}", config.outbound));
    chain("outgoing", "output", &rules)
}

/// What comes for this machine; what it only passes on is none of ours.
fn incoming(config: &InterceptConfig, own_ports: &[u16]) -> String {
    let own = own_ports.iter().chain([&config.inbound, &config.outbound]);
    let mut exempt: Vec<u16> = own.chain(&config.exempt_ports).copied().collect();
    exempt.sort_unstable();
    exempt.dedup();
    let mut rules = vec![
        "meta l4proto != tcp return".to_owned(),
        "iif \"lo\" return".to_owned(),
        "fib daddr type != local return".to_owned(),
    ];
    rules.extend(
        config
            .exempt_addresses
            .iter()
            .map(|prefix| address("saddr", prefix)),
    );
    rules.push(format!("tcp dport {} return", set(&exempt)));
    rules.push(format!("meta l4proto tcp redirect to :{}", config.inbound));
    chain("incoming", "prerouting", &rules)
}

fn chain(name: &str, hook: &str, rules: &[String]) -> String {
    let mut text =
        format!("\tchain {name} {{\n\t\ttype nat hook {hook} priority -100; policy accept;\n");
    for rule in rules {
        let _ = writeln!(text, "\t\t{rule}");
    }
    text.push_str("\t}\n");
    text
}

fn address(side: &str, prefix: &Prefix) -> String {
    let family = if prefix.address.is_ipv4() {
        "ip"
    } else {
        "ip6"
    };
    format!("{family} {side} {prefix} return")
}

fn set<T: Ord + Copy + std::fmt::Display>(members: &[T]) -> String {
    let mut members: Vec<T> = members.to_vec();
    members.sort_unstable();
    members.dedup();
    let members: Vec<String> = members.iter().map(ToString::to_string).collect();
    format!("{{ {} }}", members.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exemptions_stand_before_the_redirection() {
        let config = InterceptConfig {
            ports: vec![80, 6379],
            exempt_ports: vec![22, 15006],
            exempt_addresses: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
            exempt_uids: vec![7],
            ..InterceptConfig::default()
        };
        let text = install(&config, &[15006, 15000]);
        let expected = "\
table inet phalanx-intercept
delete table inet phalanx-intercept
table inet phalanx-intercept {
\tchain outgoing {
\t\ttype nat hook output priority -100; policy accept;
\t\tmeta l4proto != tcp return
\t\tmeta mark 0x50484c58 return
\t\tip daddr 127.0.0.0/8 return
\t\tip6 daddr ::1 return
\t\tmeta skuid { 7 } return
\t\tip daddr 10.0.0.0/8 return
\t\tip6 daddr fd00::/8 return
\t\ttcp dport { 22, 15006 } return
\t\ttcp dport != { 80, 6379 } return
\t\tmeta l4proto tcp redirect to :15002
\t}
\tchain incoming {
\t\ttype nat hook prerouting priority -100; policy accept;
\t\tmeta l4proto != tcp return
\t\tiif \"lo\" return
\t\tfib daddr type != local return
\t\tip saddr 10.0.0.0/8 return
\t\tip6 saddr fd00::/8 return
\t\ttcp dport { 22, 15000, 15002, 15003, 15006 } return
\t\tmeta l4proto tcp redirect to :15003
\t}
}
";
        assert_eq!(text, expected);
    }
}
