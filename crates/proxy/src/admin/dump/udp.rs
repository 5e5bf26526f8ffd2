//! Sockets for datagrams.

use std::net::SocketAddr;

use phalanx_model::resource::colour::Network;
use phalanx_model::resource::gateway::Share;
use phalanx_model::resource::udp::{Token, TokenAt, UdpLimits, UdpPort, UdpRules};
use serde_json::{Value, json};

pub fn listener(address: SocketAddr, port: &UdpPort) -> Value {
    // By name, so that what is added is missed here.
    let UdpPort {
        name,
        backends,
        by_source,
        rules:
            UdpRules {
                idle_timeout,
                token,
                limits:
                    UdpLimits {
                        sessions,
                        sessions_per_source,
                        packets_per_second_per_source,
                        bytes_per_second_per_source,
                    },
            },
    } = port;
    let backend = |share: &Share| {
        let cluster = share.cluster.as_ref().map(ToString::to_string);
        json!({ "cluster": cluster, "weight": share.weight })
    };
    let shares = |shares: &[Share]| shares.iter().map(backend).collect::<Vec<_>>();
    let of_source = |(network, of_network): &(Network, Vec<Share>)| json!({ "network": network.to_string(), "backends": shares(of_network) });
    json!({
        "address": address.to_string(),
        "protocol": "udp",
        "name": name,
        "backends": shares(backends),
        "by_source": by_source.iter().map(of_source).collect::<Vec<_>>(),
        "idle_timeout": format!("{idle_timeout:?}"),
        "token": token.as_ref().map(self::token),
        "limits": {
            "sessions": sessions,
            "sessions_per_source": sessions_per_source,
            "packets_per_second_per_source": packets_per_second_per_source,
            "bytes_per_second_per_source": bytes_per_second_per_source,
        },
    })
}

fn token(token: &Token) -> Value {
    let Token {
        at,
        len,
        strip,
        required,
    } = token;
    let at = match at {
        TokenAt::Prefix => "prefix",
        TokenAt::Suffix => "suffix",
    };
    json!({ at: len, "strip": strip, "required": required })
}
