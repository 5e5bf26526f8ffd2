//! Arbitrary models, within what documents can say.

use std::sync::{Arc, LazyLock};

use phalanx_model::resource::Transcoding;
use phalanx_model::resource::transcode::{Options, Print, Validation};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use phalanx_model::identity::{SpiffeId, TrustDomain};
use phalanx_model::instance::Protocol;
use phalanx_model::name::{ClusterName, Direction, ServiceName};
use phalanx_model::reason::Reason;
use phalanx_model::resource::colour::{CanaryId, ColourPattern, EdgeColours, Network};
use phalanx_model::resource::gateway::{Chain, ChainTarget, ChainTls, GatewayPort, Share};
use phalanx_model::resource::limit::{
    Fault, FaultEffect, GlobalLimit, LimitKey, Limits, Overload, Priority, PriorityRule, Rate,
    SHARE_WHOLE,
};
use phalanx_model::resource::sessions::{Missing, SessionDirectory, SessionKey};
use phalanx_model::resource::udp::{TOKEN_MAX, Token, TokenAt, UdpLimits, UdpPort, UdpRules};
use phalanx_model::resource::*;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

fn label() -> impl Strategy<Value = String> {
    "[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?"
}

fn cluster_name() -> impl Strategy<Value = ClusterName> {
    let direction = select(vec![Direction::Inbound, Direction::Outbound]);
    let lane = proptest::option::of("[a-z0-9-]{1,32}");
    (direction, any::<u16>(), label(), label(), lane).prop_map(
        |(direction, port, namespace, name, lane)| ClusterName {
            direction,
            port,
            service: ServiceName::new(namespace, name),
            lane,
        },
    )
}

fn address() -> impl Strategy<Value = SocketAddr> {
    (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port))
}

/// From 1 ns (which stands for none in one place) to a year.
fn duration() -> impl Strategy<Value = Duration> {
    prop_oneof![
        (1u64..86_400_000).prop_map(Duration::from_millis),
        (2u64..31_536_000_000_000_000).prop_map(Duration::from_nanos),
    ]
}

/// Any text without line breaks and NUL.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        "[a-z0-9%\\\\ -]{0,12}",
        "[^\\x00\r\n]{0,12}"
    ]
}

fn header_name() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9_-]{0,12}".prop_filter("has its own field", |name| name != "host")
}

fn path() -> impl Strategy<Value = String> {
    "(/[a-zA-Z0-9.+$()*%\\\\_-]{1,6}){1,3}"
}

fn path_or_root() -> impl Strategy<Value = String> {
    prop_oneof![Just("/".to_owned()), path()]
}

fn value_match() -> impl Strategy<Value = ValueMatch> {
    prop_oneof![
        text().prop_map(ValueMatch::Exact),
        "[a-z.*+|]{1,12}".prop_map(ValueMatch::Regex)
    ]
}

fn rule_match() -> impl Strategy<Value = RuleMatch> {
    let path = prop_oneof![
        path_or_root().prop_map(PathMatch::Exact),
        path_or_root().prop_map(PathMatch::Prefix),
        "/[a-z.*+|]{1,12}".prop_map(PathMatch::Regex),
    ];
    let header =
        (header_name(), value_match()).prop_map(|(name, value)| HeaderMatch { name, value });
    let query_name = prop_oneof!["[a-zA-Z]{1,8}", "[^\\x00\r\n]{1,4}"];
    let query = (query_name, value_match()).prop_map(|(name, value)| QueryMatch { name, value });
    (
        path,
        option::of("[A-Z]{1,7}"),
        vec(header, 0..3),
        vec(query, 0..3),
        any::<bool>(),
    )
        .prop_map(|(path, method, headers, query, grpc)| RuleMatch {
            path,
            method,
            headers,
            query,
            grpc,
        })
}

fn header_edit() -> impl Strategy<Value = HeaderEdit> {
    let pairs = || vec((header_name(), text()), 0..3);
    let some = (pairs(), pairs(), vec(header_name(), 0..3))
        .prop_map(|(set, add, remove)| HeaderEdit { set, add, remove });
    prop_oneof![Just(HeaderEdit::default()), some]
}

/// Replacing a prefix needs one that was matched.
fn path_rewrite(matched: &PathMatch) -> BoxedStrategy<PathRewrite> {
    let full = path_or_root().prop_map(PathRewrite::Full);
    match matched {
        PathMatch::Prefix(_) => {
            prop_oneof![full, path_or_root().prop_map(PathRewrite::Prefix)].boxed()
        }
        PathMatch::Exact(_) | PathMatch::Regex(_) => full.boxed(),
    }
}

fn backends() -> impl Strategy<Value = Vec<Backend>> {
    let backend = (
        option::weighted(0.8, cluster_name()),
        0u32..1_000_000,
        header_edit(),
        header_edit(),
    )
        .prop_map(
            |(cluster, weight, request_headers, response_headers)| Backend {
                cluster,
                weight,
                request_headers,
                response_headers,
            },
        );
    let plain = option::weighted(0.8, cluster_name()).prop_map(|cluster| {
        let (request_headers, response_headers) = Default::default();
        vec![Backend {
            cluster,
            weight: 1,
            request_headers,
            response_headers,
        }]
    });
    let several = vec(backend, 1..4)
        .prop_filter("all of weight zero", |all| all.iter().any(|b| b.weight > 0));
    prop_oneof![plain, several]
}

fn retry() -> impl Strategy<Value = Retry> {
    let backoff = prop_oneof![Just(Duration::ZERO), duration()];
    (0u32..5, vec(100u16..600, 0..3), backoff).prop_map(|(attempts, codes, backoff)| Retry {
        attempts,
        codes,
        backoff,
    })
}

fn hash_on() -> impl Strategy<Value = HashOn> {
    prop_oneof![
        "[a-z]{1,8}".prop_map(HashOn::Header),
        "[a-z]{1,8}".prop_map(HashOn::Cookie),
        Just(HashOn::SourceIp),
    ]
}

fn mirror() -> impl Strategy<Value = Mirror> {
    (cluster_name(), prop_oneof![Just(MILLION), 1..MILLION]).prop_map(|(cluster, per_million)| {
        Mirror {
            cluster,
            per_million,
        }
    })
}

fn session() -> impl Strategy<Value = Session> {
    let seconds = || (1u64..10_000_000).prop_map(Duration::from_secs);
    let kind = prop_oneof![
        option::of(seconds()).prop_map(|absolute| (Carrier::Cookie, absolute)),
        seconds().prop_map(|absolute| (Carrier::PermanentCookie, Some(absolute))),
        option::of(seconds()).prop_map(|absolute| (Carrier::Header, absolute)),
    ];
    ("[a-z.-]{1,12}", kind, option::of(seconds())).prop_map(|(name, (carrier, absolute), idle)| {
        Session {
            name,
            carrier,
            absolute,
            idle,
        }
    })
}

fn cors() -> impl Strategy<Value = Cors> {
    let origin = prop_oneof![
        Just(ValueMatch::Exact(ANY.into())),
        "https?://[a-z]{1,6}\\.[a-z]{1,3}".prop_map(ValueMatch::Exact),
        "https?://\\[\\^/:\\]\\+\\\\\\.[a-z]{1,6}".prop_map(ValueMatch::Regex),
    ];
    let tokens = || {
        prop_oneof![
            Just(vec![ANY.to_owned()]),
            vec("[a-zA-Z]{1,6}(-[a-z]{1,3})?", 0..3)
        ]
    };
    let lists = (vec(origin, 0..3), tokens(), tokens(), tokens());
    (lists, any::<bool>(), 0u32..86_400).prop_map(
        |((origins, methods, headers, exposed), credentials, max_age)| Cors {
            origins,
            credentials,
            methods,
            headers,
            exposed,
            max_age,
        },
    )
}

/// Envoy takes no time over 2^53 ns or so; nobody waits longer than a minute.
fn hedging() -> impl Strategy<Value = Hedging> {
    let method = prop_oneof!["/[a-z.]{1,8}/[A-Za-z]{1,8}", "/[a-z.]{1,8}/"];
    (1u64..60_000, 1..=HEDGES_MAX, vec(method, 0..3)).prop_map(|(ms, extra_max, grpc)| Hedging {
        delay: Duration::from_millis(ms),
        extra_max,
        grpc,
    })
}

fn compare() -> impl Strategy<Value = Compare> {
    let path = prop_oneof![Just("$"), Just("$.a.b"), Just("$[].id")].prop_map(str::to_owned);
    (vec("[a-z-]{1,8}", 0..3), vec(path, 0..2))
        .prop_map(|(headers, paths)| Compare { headers, paths })
}

/// Two policies over one set, so that tables have both at times.
fn transcoding() -> impl Strategy<Value = Arc<Transcoding>> {
    static KNOWN: LazyLock<Vec<Arc<Transcoding>>> = LazyLock::new(|| {
        let set = include_bytes!("../../../../../fuzz/corpus/descriptors/battle.pb");
        let options = [false, true].map(|flag| Options {
            auto_mapping: flag,
            convert_grpc_status: !flag,
            ignored_query_parameters: vec!["key".to_owned()],
            print: Print {
                stream_newline_delimited: flag,
                ..Print::default()
            },
            validation: Validation {
                reject_unknown_method: flag,
                ..Validation::default()
            },
            ..Options::default()
        });
        let services = || vec!["battle.v1.Battle".to_owned()];
        let known = options.map(|options| {
            Arc::new(Transcoding::try_new(set.to_vec(), services(), options).unwrap())
        });
        known.to_vec()
    });
    select(KNOWN.clone())
}

fn forward(matched: &PathMatch) -> impl Strategy<Value = Action> + use<> {
    let rewrite = (
        option::of("[a-z]{1,8}(:[0-9]{1,4})?"),
        option::of(path_rewrite(matched)),
    );
    let limit = prop_oneof![Just(Duration::ZERO), duration()];
    let beside = (
        vec(mirror(), 0..3),
        option::of(session()),
        option::of(cors()),
        option::of(hedging()),
        option::of(select(Priority::ALL.to_vec())),
        option::of(compare()),
        option::of(transcoding()),
    );
    (
        backends(),
        rewrite,
        option::of(limit),
        option::of(duration()),
        retry(),
        option::of(hash_on()),
        beside,
    )
        .prop_map(
            |(backends, rewrite, request_timeout, attempt_timeout, retry, hash_on, beside)| {
                let (authority, path) = rewrite;
                let (mirrors, session, cors, hedging, priority, compare, transcoding) = beside;
                let rewrite = Rewrite { authority, path };
                Action::Forward(Forward {
                    backends,
                    rewrite,
                    request_timeout,
                    attempt_timeout,
                    retry,
                    hash_on,
                    mirrors,
                    compare,
                    session,
                    cors,
                    hedging,
                    priority,
                    transcoding,
                })
            },
        )
}

fn redirect(matched: &PathMatch) -> impl Strategy<Value = Action> + use<> {
    let scheme =
        option::of(select(vec!["http", "https"])).prop_map(|scheme| scheme.map(Into::into));
    let status = select(vec![301u16, 302, 303, 307, 308]);
    (
        scheme,
        option::of("[a-z.]{1,8}"),
        option::of(1u16..),
        option::of(path_rewrite(matched)),
        status,
    )
        .prop_map(|(scheme, hostname, port, path, status)| {
            Action::Redirect(Redirect {
                scheme,
                hostname,
                port,
                path,
                status,
            })
        })
}

fn rule() -> impl Strategy<Value = Rule> {
    let acting = rule_match().prop_flat_map(|matches| {
        let action = prop_oneof![
            4 => forward(&matches.path),
            1 => redirect(&matches.path),
            1 => select(Reason::ALL).prop_map(Action::Respond),
        ];
        (Just(matches), action)
    });
    (
        "[A-Za-z]{0,9}/[a-z]{0,5}",
        acting,
        header_edit(),
        header_edit(),
    )
        .prop_map(
            |(name, (matches, action), request_headers, response_headers)| Rule {
                name,
                matches,
                request_headers,
                response_headers,
                action,
            },
        )
}

pub(super) fn table() -> impl Strategy<Value = RouteTable> {
    let domain = prop_oneof![Just("*".to_owned()), "\\*?[a-z.]{1,12}(:[0-9]{1,4})?"];
    let host =
        (label(), vec(domain, 1..4), vec(rule(), 0..4)).prop_map(|(name, domains, rules)| {
            VirtualHost {
                name,
                domains,
                rules,
            }
        });
    (label(), vec(host, 0..3)).prop_map(|(name, hosts)| RouteTable { name, hosts })
}

pub(super) fn trust_domain() -> impl Strategy<Value = TrustDomain> {
    "[a-z0-9_-]{1,8}(\\.[a-z0-9-]{1,8})?".prop_map(|text| TrustDomain::parse(&text).unwrap())
}

fn id() -> impl Strategy<Value = SpiffeId> {
    (trust_domain(), label(), label()).prop_map(|(trust_domain, namespace, name)| SpiffeId {
        trust_domain,
        service: ServiceName::new(namespace, name),
    })
}

fn caller() -> impl Strategy<Value = Caller> {
    prop_oneof![
        Just(Caller::Anyone),
        id().prop_map(Caller::Id),
        label().prop_map(Caller::Namespace),
    ]
}

fn access_rule() -> impl Strategy<Value = AccessRule> {
    let path = prop_oneof![
        path_or_root().prop_map(PathMatch::Exact),
        path_or_root().prop_map(PathMatch::Prefix),
        "/[a-z]{1,6}(\\.\\*|[a-z]\\+)?".prop_map(PathMatch::Regex),
    ];
    let value = prop_oneof![
        "[a-z0-9 ]{0,12}".prop_map(ValueMatch::Exact),
        "[a-z]{1,6}(\\.\\*)?".prop_map(ValueMatch::Regex)
    ];
    let header = (header_name(), value).prop_map(|(name, value)| HeaderMatch { name, value });
    (
        vec(caller(), 0..3),
        vec("[A-Z]{1,7}", 0..3),
        vec(path, 0..3),
        vec(header, 0..3),
    )
        .prop_map(|(callers, methods, paths, headers)| AccessRule {
            callers,
            methods,
            paths,
            headers,
        })
}

/// What denies before what allows, each by name, as it comes back.
pub(super) fn access() -> impl Strategy<Value = Access> {
    let of = |effect| {
        let rules = vec(access_rule(), 0..3);
        let named = btree_map("AuthorizationPolicy/[a-z]{1,4}/[a-z]{1,4}", rules, 0..3);
        named.prop_map(move |policies| {
            let policy = |(name, rules)| AccessPolicy {
                name,
                effect,
                rules,
            };
            policies.into_iter().map(policy).collect::<Vec<_>>()
        })
    };
    (of(Effect::Deny), of(Effect::Allow)).prop_map(|(mut policies, allow)| {
        policies.extend(allow);
        Access { policies }
    })
}

fn inbound_rule() -> impl Strategy<Value = InboundRule> {
    let mode = select(vec![MtlsMode::Permissive, MtlsMode::Strict, MtlsMode::Off]);
    let rule = (mode, access(), limits());
    rule.prop_map(|(mode, access, limits)| InboundRule {
        mode,
        access,
        limits,
    })
}

fn rate() -> impl Strategy<Value = Rate> {
    let per = (50u64..100_000).prop_map(Duration::from_millis);
    (1u32..1_000_000, per, 1u32..1_000_000).prop_map(|(requests, per, burst)| Rate {
        requests,
        per,
        burst,
    })
}

fn conditions() -> impl Strategy<Value = Vec<HeaderMatch>> {
    let value = prop_oneof![
        "[a-z0-9 ]{1,12}".prop_map(ValueMatch::Exact),
        "[a-z]{1,6}(\\.\\*)?".prop_map(ValueMatch::Regex)
    ];
    let header = (header_name(), value).prop_map(|(name, value)| HeaderMatch { name, value });
    vec(header, 0..3)
}

fn limits() -> impl Strategy<Value = Vec<Limits>> {
    let by = prop_oneof![
        Just(LimitKey::All),
        Just(LimitKey::Caller),
        header_name().prop_map(LimitKey::Header)
    ];
    let global = (rate(), by, any::<bool>());
    let global = global.prop_map(|(rate, by, closed)| GlobalLimit { rate, by, closed });
    let effect = prop_oneof![
        (1u64..100_000).prop_map(|ms| FaultEffect::Delay(Duration::from_millis(ms))),
        (400u16..600).prop_map(FaultEffect::Status),
        (1u8..=16).prop_map(FaultEffect::Grpc)
    ];
    let fault =
        (effect, 0..=SHARE_WHOLE, conditions()).prop_map(|(effect, share, headers)| Fault {
            effect,
            share,
            headers,
        });
    let priority = || select(Priority::ALL.to_vec());
    let rule = (priority(), conditions());
    let rule = rule.prop_map(|(priority, headers)| PriorityRule { priority, headers });
    let bounds = (1u32..100, 100u32..10_000, 1u64..1_000);
    let overload =
        (bounds, vec(rule, 0..3), priority()).prop_map(|(bounds, priorities, default)| {
            let (min_in_flight, max_in_flight, delay) = bounds;
            Overload {
                min_in_flight,
                max_in_flight,
                queue_delay: Duration::from_millis(delay),
                priorities,
                default,
            }
        });
    let said = (
        option::of(rate()),
        option::of(global),
        vec(fault, 0..3),
        option::of(overload),
        option::of(path_or_root()),
    );
    btree_map("BackendPolicy/[a-z]{1,4}/[a-z]{1,4}", said, 0..3).prop_map(|policies| {
        let policy = |(policy, (local, global, faults, overload, probe))| Limits {
            policy,
            local,
            global,
            faults,
            overload,
            probe,
        };
        policies.into_iter().map(policy).collect()
    })
}

fn colours() -> impl Strategy<Value = EdgeColours> {
    let colour = || "[a-z0-9-]{1,32}";
    let pattern = prop_oneof![
        colour().prop_map(ColourPattern::Exact),
        colour().prop_map(ColourPattern::Prefix),
        Just(ColourPattern::Prefix(String::new())),
    ];
    // Each once, as documents say it.
    let network = select(vec![
        "10.10.0.0/16",
        "192.0.2.7/32",
        "fd00::/8",
        "0.0.0.0/0",
    ]);
    let networks = btree_map(network, colour(), 0..3);
    let networks = networks.prop_map(|networks| {
        let networks = networks.into_iter();
        let network = |(text, colour): (&str, _)| (text.parse::<Network>().unwrap(), colour);
        networks.map(network).collect::<Vec<_>>()
    });
    let canary = (
        option::of("[a-z-]{1,8}"),
        option::of("[A-Za-z]{1,8}"),
        any::<bool>(),
    );
    let canary = canary.prop_map(|(header, cookie, generate)| CanaryId {
        header,
        cookie,
        generate,
    });
    let said = (vec(pattern, 0..3), networks, option::of(colour()), canary);
    said.prop_map(|(taken, networks, default, canary)| EdgeColours {
        taken,
        networks,
        default,
        canary,
    })
}

pub(super) fn inbound() -> impl Strategy<Value = Listener> {
    let ports = btree_map(1u16.., inbound_rule(), 0..3);
    let rules = (inbound_rule(), ports, colours()).prop_map(|(default, ports, colours)| Inbound {
        default,
        ports,
        colours,
    });
    (address(), trust_domain(), rules).prop_map(|(address, trust_domain, rules)| Listener {
        name: "inbound".into(),
        address,
        direction: Direction::Inbound,
        protocol: ListenerProtocol::Inbound {
            trust_domain,
            rules,
        },
    })
}

pub(super) fn listener() -> impl Strategy<Value = Listener> {
    prop_oneof![plain_listener(), inbound(), gateway(), udp_listener()]
}

/// For datagrams.
fn udp_listener() -> impl Strategy<Value = Listener> {
    let at = select(vec![TokenAt::Prefix, TokenAt::Suffix]);
    let token = (at, 1..=TOKEN_MAX, any::<(bool, bool)>());
    let token = token.prop_map(|(at, len, (strip, required))| Token {
        at,
        len,
        strip,
        required,
    });
    let limits = (1u32.., 1u32.., any::<u32>(), any::<u64>());
    let rules = (1u64..=3600, option::of(token), limits);
    let rules = rules.prop_map(
        |(idle, token, (sessions, of_source, packets, bytes))| UdpRules {
            idle_timeout: Duration::from_secs(idle),
            token,
            limits: UdpLimits {
                sessions,
                sessions_per_source: of_source,
                packets_per_second_per_source: packets,
                bytes_per_second_per_source: bytes,
            },
        },
    );
    let networks = prop_oneof![Just("10.0.0.0/8"), Just("10.1.0.0/16"), Just("fd00::/8")];
    let networks =
        networks.prop_map(|text| text.parse::<Network>().unwrap_or_else(|_| unreachable!()));
    let by_source = vec((networks, shares()), 0..3);
    let of = (label(), address(), shares(), by_source, rules);
    of.prop_map(|(name, address, backends, by_source, rules)| Listener {
        name: format!("udp/{address}"),
        address,
        direction: Direction::Outbound,
        protocol: ListenerProtocol::Udp(UdpPort {
            name: format!("UDPRoute/default/{name}"),
            backends,
            by_source,
            rules,
        }),
    })
}

/// Of a data plane at the edge: one chain in plain text, or chains by names in the handshake.
fn gateway() -> impl Strategy<Value = Listener> {
    let plain = chain_target().prop_map(|target| {
        vec![Chain {
            names: Vec::new(),
            tls: ChainTls::Off,
            target,
        }]
    });
    let chains = prop_oneof![plain, secure_chains()];
    let of = (label(), label(), prop_oneof!["", "/[a-z/]{1,8}"]);
    (of, address(), chains, colours()).prop_map(|(of, address, chains, colours)| {
        let (namespace, name, certificates_in) = of;
        Listener {
            name: format!("gateway/{namespace}/{name}/{address}"),
            address,
            direction: Direction::Outbound,
            protocol: ListenerProtocol::Gateway(GatewayPort {
                gateway: ServiceName::new(namespace, name),
                certificates_in,
                colours,
                chains,
            }),
        }
    })
}

/// Each name stands in one chain; one of them may be for whatever else comes.
fn secure_chains() -> impl Strategy<Value = Vec<Chain>> {
    let secure = prop_oneof![
        (btree_set(label(), 1..3), label()).prop_map(|(certificates, table)| (
            ChainTls::Terminate(certificates.into_iter().collect()),
            ChainTarget::Http(table)
        )),
        shares().prop_map(|shares| (ChainTls::Passthrough, ChainTarget::Stream(shares))),
    ];
    let name = "(\\*\\.)?[a-z]{1,4}\\.(org|com)";
    (vec(secure, 1..4), btree_set(name, 3..9), any::<bool>()).prop_map(|(chains, names, any)| {
        let (mut names, count) = (names.into_iter(), chains.len());
        let each = names.len() / count;
        let chain = |(place, (tls, target))| Chain {
            names: match any && place + 1 == count {
                true => Vec::new(),
                false => names.by_ref().take(each).collect(),
            },
            tls,
            target,
        };
        chains.into_iter().enumerate().map(chain).collect()
    })
}

fn chain_target() -> impl Strategy<Value = ChainTarget> {
    prop_oneof![
        label().prop_map(ChainTarget::Http),
        shares().prop_map(ChainTarget::Stream)
    ]
}

fn shares() -> impl Strategy<Value = Vec<Share>> {
    let share = (option::weighted(0.8, cluster_name()), 1u32..=1_000_000);
    vec(
        share.prop_map(|(cluster, weight)| Share { cluster, weight }),
        0..5,
    )
}

fn plain_listener() -> impl Strategy<Value = Listener> {
    let protocol = prop_oneof![
        label().prop_map(|route_table| ListenerProtocol::Http { route_table }),
        cluster_name().prop_map(|cluster| ListenerProtocol::Tcp { cluster }),
    ];
    let direction = select(vec![Direction::Inbound, Direction::Outbound]);
    (label(), address(), direction, protocol).prop_map(|(name, address, direction, protocol)| {
        Listener {
            name,
            address,
            direction,
            protocol,
        }
    })
}

fn peer_tls() -> impl Strategy<Value = PeerTls> {
    btree_set(id(), 0..4).prop_map(|ids| PeerTls {
        ids: ids.into_iter().collect(),
    })
}

pub(super) fn cluster() -> impl Strategy<Value = Cluster> {
    let protocol = select(vec![
        Protocol::Auto,
        Protocol::Http1,
        Protocol::H2c,
        Protocol::Grpc,
        Protocol::Tcp,
    ]);
    let slow_start = (duration(), 1u32..=100).prop_map(|(window, min_weight_percent)| SlowStart {
        window,
        min_weight_percent,
    });
    let starting = (
        select(vec![
            LoadBalancer::P2c,
            LoadBalancer::LeastRequest,
            LoadBalancer::RoundRobin,
        ]),
        option::of(slow_start),
    );
    let at_once = select(vec![
        LoadBalancer::Random,
        LoadBalancer::RingHash,
        LoadBalancer::Maglev,
    ]);
    let balancer = prop_oneof![starting, at_once.prop_map(|balancer| (balancer, None))];
    let balancer = (balancer, 1u32..=100);
    let idle = prop_oneof![Just(Duration::ZERO), duration()];
    let pool = (any::<u32>(), duration(), idle).prop_map(
        |(max_requests_per_connection, connect_timeout, idle_timeout)| ConnectionPool {
            max_requests_per_connection,
            connect_timeout,
            idle_timeout,
        },
    );
    let breaker = any::<[u32; 4]>().prop_map(
        |[
            max_connections,
            max_pending_requests,
            max_requests,
            max_retries,
        ]| {
            CircuitBreaker {
                max_connections,
                max_pending_requests,
                max_requests,
                max_retries,
            }
        },
    );
    let statistics = (0u32..5000, 0u32..5000);
    let times = (duration(), duration());
    let outlier = (0u32..10, 0u32..10, times, 0u32..=100, statistics).prop_map(
        |(consecutive_5xx, consecutive_gateway, times, max_ejection_percent, statistics)| {
            let (interval, base_ejection) = times;
            let (success_rate_stdev, latency_factor) = statistics;
            OutlierDetection {
                consecutive_5xx,
                consecutive_gateway,
                interval,
                base_ejection,
                max_ejection_percent,
                success_rate_stdev,
                latency_factor,
            }
        },
    );
    let budget = (0u32..=100, any::<u32>()).prop_map(|(percent, min_concurrency)| RetryBudget {
        percent,
        min_concurrency,
    });
    (
        cluster_name(),
        protocol,
        balancer,
        pool,
        breaker,
        outlier,
        budget,
        (option::of(peer_tls()), option::of(directory())),
    )
        .prop_map(
            |(
                name,
                protocol,
                ((load_balancer, slow_start), panic_percent),
                connection_pool,
                circuit_breaker,
                outlier_detection,
                retry_budget,
                (tls, directory),
            )| Cluster {
                name,
                protocol,
                load_balancer,
                slow_start,
                panic_percent,
                connection_pool,
                circuit_breaker,
                outlier_detection,
                retry_budget,
                tls,
                directory,
            },
        )
}

fn directory() -> impl Strategy<Value = SessionDirectory> {
    let key = prop_oneof![
        "[a-z][a-z-]{0,8}".prop_map(SessionKey::Header),
        "[A-Za-z][A-Za-z_]{0,8}".prop_map(SessionKey::Cookie),
    ];
    (
        ("[a-z]{1,8}", "[a-z]{1,8}"),
        key,
        select(Missing::ALL.to_vec()),
    )
        .prop_map(|((namespace, name), key, missing)| SessionDirectory {
            service: ServiceName::new(namespace, name),
            key,
            missing,
        })
}

pub(super) fn assignment() -> impl Strategy<Value = Assignment> {
    let health = select(vec![Health::Healthy, Health::Draining, Health::Unhealthy]);
    let zone = prop_oneof![Just(String::new()), "az[0-9]"];
    let words = (
        (zone, any::<bool>()),
        "v?[0-9]?",
        "[a-z0-9]{0,6}",
        any::<u16>(),
        any::<bool>(),
        (any::<bool>(), "([0-9a-f]{2}){0,3}"),
    );
    let endpoints: BoxedStrategy<BTreeMap<_, _>> =
        btree_map(address(), (1u32..=128, health, words), 0..8).boxed();
    let overprovision = option::of(100u32..1000);
    (cluster_name(), endpoints, overprovision).prop_map(|(cluster, endpoints, overprovision)| {
        let endpoints = endpoints.into_iter().map(
            |(
                address,
                (weight, health, ((zone, is_far), version, instance, target, mutual_tls, udp)),
            )| Endpoint {
                address,
                weight,
                zone,
                is_far,
                health,
                version,
                instance,
                target,
                mutual_tls,
                datagrams: udp.0,
                token: udp.1,
            },
        );
        Assignment {
            cluster,
            endpoints: endpoints.collect(),
            overprovision,
        }
    })
}
