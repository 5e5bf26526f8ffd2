//! What is answered to which question, by the letter; and that no bytes whatever do harm.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use phalanx_model::{Instance, ServiceName};
use proptest::prelude::*;

use super::answer::{AMPLIFICATION_MAX, ANSWERS_MAX, PAYLOAD_MAX, TTL};
use super::*;
use crate::snapshot::Mesh;
use crate::snapshot::tests::incremental;
use crate::snapshot::{Compiler, Published};
use crate::world::fixture::{Fixture, instance};
use crate::world::{Fold, Verdict, VerdictState};

const ARENA: &str = r"
apiVersion: v1
kind: Service
metadata: {name: battle}
spec:
  selector: {app: battle}
  ports: [{name: game, port: 80, targetPort: 9000}, {name: admin, port: 81, targetPort: 9001}]
---
apiVersion: v1
kind: Service
metadata: {name: empty}
spec:
  selector: {app: nobody}
  ports: [{name: http, port: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: outside}
spec:
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: outside-1, labels: {kubernetes.io/service-name: outside}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.9.0.1], conditions: {ready: true}}
- {addresses: [10.9.0.2], conditions: {ready: false}}
- {addresses: [10.9.0.3], conditions: {ready: false, serving: true, terminating: true}}
---
apiVersion: v1
kind: Service
metadata: {name: sick}
spec:
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: sick-1, labels: {kubernetes.io/service-name: sick}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.9.1.1]}
- {addresses: [10.9.1.2]}
";

fn zoned(id: &str, address: &str, zone: &str) -> Instance {
    Instance {
        zone: zone.into(),
        ..instance("battle", id, address, &[("game", 9000), ("admin", 9001)])
    }
}

fn arena() -> Fixture {
    Fixture::yaml(ARENA)
        .with(zoned("b1", "10.0.0.1:15006", "az1"))
        .with(zoned("b2", "10.0.0.2:15006", "az2"))
        .with(zoned("b3", "10.0.0.3:15007", "az2"))
        .with(instance("six", "s1", "[fd00::1]:15006", &[("", 9000)]))
}

fn index(fixture: &Fixture) -> Index {
    after(fixture, None)
}

fn after(fixture: &Fixture, before: Option<&Index>) -> Index {
    let world = fixture.world();
    let mesh = Arc::new(Mesh::compile(&world));
    let server = Some("127.0.0.1".parse().unwrap());
    Index::build(mesh, &world.instances, world.revision, server, before)
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn question(text: &str, kind: RecordType) -> Message {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(name(text), kind));
    message
}

const TCP: Asker = Asker {
    ip: IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
    transport: Transport::Tcp,
    turn: 0,
};
const UDP: Asker = Asker {
    transport: Transport::Udp { is_proven: true },
    ..TCP
};
const FORGED: Asker = Asker {
    transport: Transport::Udp { is_proven: false },
    ..TCP
};

fn asked(index: &Index, message: &Message, asker: Asker) -> Message {
    let bytes = message.to_vec().unwrap();
    let said = answer(index, &bytes, asker).expect("an answer");
    Message::from_vec(&said.bytes).expect("a well-formed answer")
}

fn ask(index: &Index, text: &str, kind: RecordType) -> Message {
    asked(index, &question(text, kind), TCP)
}

/// Of the answer section, without what all have: the question's name and the TTL.
fn data(answer: &Message) -> Vec<String> {
    let owner = answer.queries[0].name();
    let record = |record: &Record| {
        assert!(record.name.eq_case(owner), "{}", record.name);
        assert_eq!((record.ttl, record.dns_class), (TTL, DNSClass::IN));
        record.data.to_string()
    };
    answer.answers.iter().map(record).collect()
}

fn sorted(answer: &Message) -> Vec<String> {
    let mut data = data(answer);
    data.sort();
    data
}

/// The code of an answer without records, after a look at its SOA.
fn negative(index: &Index, text: &str, kind: RecordType) -> ResponseCode {
    let answer = ask(index, text, kind);
    assert!(answer.answers.is_empty(), "{text} {kind}: {answer}");
    assert!(answer.metadata.authoritative, "{text} {kind}");
    let [soa] = answer.authorities.as_slice() else {
        panic!("{text} {kind} has no SOA: {answer}");
    };
    assert_eq!((&soa.name, soa.ttl), (&name("svc.mesh."), TTL));
    let RData::SOA(soa) = &soa.data else {
        panic!("{soa}");
    };
    assert_eq!(soa.minimum, TTL);
    answer.metadata.response_code
}

use RecordType::{A, AAAA, ANY, AXFR, NS, SOA, SRV, TXT};
use ResponseCode::{NXDomain, NoError, Refused};

#[test]
fn a_service_is_its_healthy_instances() {
    let index = index(&arena());
    let battle = ask(&index, "battle.default.svc.mesh.", A);
    assert_eq!(sorted(&battle), ["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
    let meta = battle.metadata;
    assert!(meta.authoritative && !meta.recursion_available && !meta.truncation);
    assert_eq!((meta.id, meta.response_code), (7, NoError));
    assert!(battle.authorities.is_empty() && battle.edns.is_none());
    assert_eq!(
        data(&ask(&index, "six.default.svc.mesh.", AAAA)),
        ["fd00::1"]
    );
    let outside = ask(&index, "outside.default.svc.mesh.", A);
    assert_eq!(
        data(&outside),
        ["10.9.0.1"],
        "not ready, or going, is not healthy"
    );
}

#[test]
fn where_none_is_healthy_dns_answers_what_data_planes_would_use() {
    let sick = ServiceName::new("default", "sick");
    let asked = |unhealthy: &[&str]| {
        let verdict = |address: &&str| {
            let verdict = Verdict {
                state: VerdictState::Unhealthy,
                reason: String::new(),
                by: String::new(),
                since_ms: 0,
            };
            (address.parse().unwrap(), verdict)
        };
        let of = unhealthy.iter().map(verdict).collect();
        let mut world = arena().world();
        world.health = Arc::new([(sick.clone(), Arc::new(of))].into());
        let mesh = Arc::new(Mesh::compile(&world));
        let index = Index::build(mesh, &world.instances, world.revision, None, None);
        let targets = ask(&index, "_http._tcp.sick.default.svc.mesh.", SRV);
        let addresses = sorted(&ask(&index, "sick.default.svc.mesh.", A));
        assert_eq!(data(&targets).len(), addresses.len());
        addresses
    };
    assert_eq!(asked(&["10.9.1.1:8080"]), ["10.9.1.2"]);
    let all = asked(&["10.9.1.1:8080", "10.9.1.2:8080"]);
    assert_eq!(all, ["10.9.1.1", "10.9.1.2"]);
}

#[test]
fn what_exists_without_such_data_is_no_error_and_what_does_not_is_nxdomain() {
    let index = index(&arena());
    for (text, kind) in [
        ("battle.default.svc.mesh.", AAAA),
        ("battle.default.svc.mesh.", TXT),
        ("battle.default.svc.mesh.", SOA),
        ("six.default.svc.mesh.", A),
        ("empty.default.svc.mesh.", A),
        ("b1.battle.default.svc.mesh.", SRV),
        ("_game._tcp.battle.default.svc.mesh.", A),
        ("_http._tcp.empty.default.svc.mesh.", SRV),
        // Nothing is at these, but below them.
        ("_tcp.battle.default.svc.mesh.", SRV),
        ("default.svc.mesh.", A),
        ("svc.mesh.", A),
        ("ns.svc.mesh.", AAAA),
    ] {
        assert_eq!(negative(&index, text, kind), NoError, "{text} {kind}");
    }
    for text in [
        "nobody.default.svc.mesh.",
        "battle.elsewhere.svc.mesh.",
        "elsewhere.svc.mesh.",
        "b9.battle.default.svc.mesh.",
        "_game._udp.battle.default.svc.mesh.",
        "_udp.battle.default.svc.mesh.",
        "_other._tcp.battle.default.svc.mesh.",
        "game._tcp.battle.default.svc.mesh.",
        "_tcp.six.default.svc.mesh.",
        "x._game._tcp.battle.default.svc.mesh.",
        "x.b1.battle.default.svc.mesh.",
        "*.svc.mesh.",
    ] {
        for kind in [A, SRV, ANY] {
            assert_eq!(negative(&index, text, kind), NXDomain, "{text} {kind}");
        }
    }
}

#[test]
fn labels_of_any_bytes_are_missing_like_others() {
    let index = index(&arena());
    let mut message = question("svc.mesh.", A);
    let odd: [&[u8]; 4] = [b"\xff\x00.", b"default", b"svc", b"mesh"];
    for labels in [&odd[..], &[b"\xff", b"svc", b"mesh"]] {
        let name = Name::from_labels(labels.iter().copied()).unwrap();
        message.queries[0].set_name(name);
        let answer = asked(&index, &message, TCP);
        assert_eq!(answer.metadata.response_code, NXDomain);
    }
}

#[test]
fn a_named_port_leads_to_where_traffic_is_sent() {
    let index = index(&arena());
    let answer = ask(&index, "_game._tcp.battle.default.svc.mesh.", SRV);
    assert_eq!(
        sorted(&answer),
        [
            "0 1 15006 b1.battle.default.svc.mesh.",
            "0 1 15006 b2.battle.default.svc.mesh.",
            "0 1 15007 b3.battle.default.svc.mesh.",
        ]
    );
    let admin = ask(&index, "_admin._tcp.battle.default.svc.mesh.", SRV);
    assert_eq!(admin.answers.len(), 3, "by the other port");
    for record in &answer.answers {
        let RData::SRV(srv) = &record.data else {
            panic!("{record}");
        };
        let address = data(&ask(&index, &srv.target.to_ascii(), A));
        let glue = answer.additionals.iter().find(|r| r.name == srv.target);
        assert_eq!(address, [glue.unwrap().data.to_string()]);
    }
    let outside = ask(&index, "_http._tcp.outside.default.svc.mesh.", SRV);
    assert_eq!(
        data(&outside),
        ["0 1 8080 10-9-0-1.outside.default.svc.mesh."]
    );
    let target = ask(&index, "10-9-0-1.outside.default.svc.mesh.", A);
    assert_eq!(data(&target), ["10.9.0.1"]);
}

#[test]
fn registered_services_without_a_manifest_have_names_too() {
    let ports = [("grpc", 7000), ("http", 7001)];
    let fixture = arena().with(instance("wild", "w1", "10.0.0.9:15006", &ports));
    let index = index(&fixture);
    let answer = ask(&index, "_grpc._tcp.wild.default.svc.mesh.", SRV);
    assert_eq!(data(&answer), ["0 1 15006 w1.wild.default.svc.mesh."]);
}

#[test]
fn an_id_that_is_no_label_still_has_a_name_that_resolves() {
    let odd = ["Ünique_ID.7", "UPPER", "-", &"x".repeat(100)];
    let mut fixture = Fixture::yaml(ARENA);
    for (at, id) in odd.iter().enumerate() {
        fixture = fixture.with(zoned(id, &format!("10.0.1.{at}:15006"), ""));
    }
    let index = index(&fixture);
    let answer = ask(&index, "_game._tcp.battle.default.svc.mesh.", SRV);
    assert_eq!(answer.answers.len(), odd.len());
    let mut addresses = Vec::new();
    for record in &answer.answers {
        let RData::SRV(srv) = &record.data else {
            panic!("{record}");
        };
        let label = srv.target.iter().next().unwrap();
        phalanx_model::name::check_label(std::str::from_utf8(label).unwrap()).unwrap();
        addresses.extend(data(&ask(&index, &srv.target.to_ascii(), A)));
    }
    addresses.sort();
    assert_eq!(addresses, ["10.0.1.0", "10.0.1.1", "10.0.1.2", "10.0.1.3"]);
}

#[test]
fn the_same_id_in_two_services_behind_one_selector_leads_to_two_targets() {
    let mut other = instance("battle-v2", "b1", "10.0.0.7:15006", &[("game", 9000)]);
    other.labels.insert("app".into(), "battle".into());
    let index = index(&arena().with(other));
    let answer = ask(&index, "_game._tcp.battle.default.svc.mesh.", SRV);
    let mut resolved = Vec::new();
    for record in &answer.answers {
        let RData::SRV(srv) = &record.data else {
            panic!("{record}");
        };
        let addresses = data(&ask(&index, &srv.target.to_ascii(), A));
        assert_eq!(addresses.len(), 1, "{}", srv.target);
        resolved.extend(addresses);
    }
    resolved.sort();
    assert_eq!(resolved, ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.7"]);
    let both = ask(&index, "b1.battle.default.svc.mesh.", A);
    assert_eq!(sorted(&both), ["10.0.0.1", "10.0.0.7"]);
}

#[test]
fn the_apex_names_the_zone_and_its_server() {
    let index = index(&arena());
    let soa = ask(&index, "svc.mesh.", SOA);
    let serial = arena().world().revision;
    assert_eq!(
        data(&soa),
        [format!(
            "ns.svc.mesh. hostmaster.svc.mesh. {serial} 3600 600 86400 5"
        )]
    );
    assert_eq!(data(&ask(&index, "svc.mesh.", NS)), ["ns.svc.mesh."]);
    assert_eq!(data(&ask(&index, "ns.svc.mesh.", A)), ["127.0.0.1"]);
}

#[test]
fn case_means_nothing_and_comes_back_as_it_was() {
    let index = index(&arena());
    let odd = "bAtTlE.DEFault.SvC.mESh.";
    let answer = ask(&index, odd, A);
    assert_eq!(answer.answers.len(), 3);
    assert!(answer.queries[0].name().eq_case(&name(odd)));
    data(&answer);
    let srv = ask(&index, "_GAME._Tcp.Battle.default.svc.mesh.", SRV);
    assert_eq!(srv.answers.len(), 3);
    assert!(data(&srv)[0].ends_with(".battle.default.svc.mesh."));
}

#[test]
fn whoever_asks_from_a_zone_hears_of_it_first() {
    let index = index(&arena());
    let from = |ip: &str, turn| Asker {
        ip: ip.parse().unwrap(),
        turn,
        ..TCP
    };
    let message = question("battle.default.svc.mesh.", A);
    let mut firsts = std::collections::BTreeSet::new();
    for turn in 0..6 {
        let near = data(&asked(&index, &message, from("10.0.0.2", turn)));
        assert_eq!(near[2], "10.0.0.1", "az1 comes last for az2");
        firsts.insert(near[0].clone());
        let other = data(&asked(&index, &message, from("10.0.0.1", turn)));
        assert_eq!(other[0], "10.0.0.1");
        let nobody = data(&asked(&index, &message, from("192.0.2.1", turn)));
        assert_eq!(nobody.len(), 3);
    }
    assert_eq!(firsts.len(), 2, "within a zone they take turns");
    let message = question("_game._tcp.battle.default.svc.mesh.", SRV);
    let targets = data(&asked(&index, &message, from("10.0.0.1", 0)));
    let priority = |target: &String| target.starts_with("0 ");
    assert_eq!(targets.iter().filter(|t| priority(t)).count(), 1);
    assert!(targets[0].contains(" b1."), "{targets:?}");
    let targets = data(&asked(&index, &message, from("192.0.2.1", 0)));
    assert!(targets.iter().all(priority), "no zone, no preference");
}

#[test]
fn whoever_is_nowhere_gets_everyone_in_turn() {
    let index = index(&arena());
    let message = question("battle.default.svc.mesh.", A);
    let first = |turn| data(&asked(&index, &message, Asker { turn, ..TCP }))[0].clone();
    let mut counts = std::collections::BTreeMap::new();
    for count in 0..3000 {
        *counts.entry(first(scattered(count))).or_insert(0) += 1;
    }
    assert!(
        counts.values().all(|n| (850..1150).contains(n)),
        "{counts:?}"
    );
}

#[test]
fn an_address_of_two_zones_has_none() {
    let fixture = arena().with(zoned("b4", "10.0.0.1:16000", "az9"));
    assert_eq!(index(&fixture).zone("10.0.0.1".parse().unwrap()), None);
    assert!(index(&fixture).zone("10.0.0.2".parse().unwrap()).is_some());
}

#[test]
fn other_zones_other_classes_and_transfers_are_refused() {
    let index = index(&arena());
    for (text, kind) in [
        ("example.com.", A),
        ("mesh.", A),
        (".", NS),
        ("xsvc.mesh.", A),
        ("battle.default.svc.mesh.example.com.", A),
        ("svc.mesh.", AXFR),
        ("svc.mesh.", RecordType::IXFR),
    ] {
        let answer = ask(&index, text, kind);
        assert_eq!(answer.metadata.response_code, Refused, "{text} {kind}");
        assert!(!answer.metadata.authoritative && answer.authorities.is_empty());
    }
    for class in [DNSClass::CH, DNSClass::ANY] {
        let mut message = question("battle.default.svc.mesh.", A);
        message.queries[0].set_query_class(class);
        let answer = asked(&index, &message, TCP);
        assert_eq!(answer.metadata.response_code, Refused);
    }
}

#[test]
fn any_is_answered_by_one_small_record() {
    let index = index(&arena());
    let answer = ask(&index, "battle.default.svc.mesh.", ANY);
    let [record] = answer.answers.as_slice() else {
        panic!("{answer}");
    };
    assert_eq!(record.record_type(), RecordType::HINFO);
}

#[test]
fn other_opcodes_are_not_implemented() {
    let index = index(&arena());
    for op_code in [OpCode::Status, OpCode::Notify, OpCode::Update] {
        let mut message = question("svc.mesh.", SOA);
        message.metadata.op_code = op_code;
        let answer = asked(&index, &message, TCP);
        assert_eq!(answer.metadata.response_code, ResponseCode::NotImp);
        assert_eq!((answer.metadata.id, answer.metadata.op_code), (7, op_code));
    }
}

#[test]
fn what_makes_no_sense_is_a_format_error_and_an_answer_gets_none() {
    let index = index(&arena());
    let code = |bytes: &[u8]| {
        let said = answer(&index, bytes, TCP)?;
        assert_eq!(said.bytes.get(..2), bytes.get(..2), "the same id");
        Some(said.code)
    };
    let whole = question("battle.default.svc.mesh.", A).to_vec().unwrap();
    for cut in 0..12 {
        assert_eq!(code(&whole[..cut]), None, "{cut} bytes are no header");
    }
    for cut in 12..whole.len() {
        assert_eq!(code(&whole[..cut]), Some(ResponseCode::FormErr), "{cut}");
    }
    let with = |at: usize, value: u8| {
        let mut bytes = whole.clone();
        bytes[at] = value;
        code(&bytes)
    };
    assert_eq!(with(2, 0x80), None, "QR");
    for (at, what) in [(5, "questions"), (7, "answers"), (9, "authorities")] {
        assert_eq!(with(at, 2), Some(ResponseCode::FormErr), "two {what}");
    }
    assert_eq!(with(5, 0), Some(ResponseCode::FormErr), "no question");
    assert_eq!(
        with(10, 0xff),
        Some(ResponseCode::FormErr),
        "65,280 records"
    );
    // A name that points at itself, and one that points ahead.
    for pointer in [[0xc0, 12], [0xc0, 14]] {
        let bytes = [&whole[..12], &pointer, &[0, 1, 0, 1]].concat();
        assert_eq!(code(&bytes), Some(ResponseCode::FormErr), "{pointer:?}");
    }
}

fn with_edns(mut message: Message, payload: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    message.set_edns(edns);
    message
}

#[test]
fn edns_is_answered_by_edns() {
    let index = index(&arena());
    let message = with_edns(question("battle.default.svc.mesh.", A), 4096);
    let edns = asked(&index, &message, UDP).edns.unwrap();
    assert_eq!(usize::from(edns.max_payload()), PAYLOAD_MAX);
    assert_eq!(edns.version(), 0);
    assert!(!edns.flags().dnssec_ok);

    let mut newer = message.clone();
    newer
        .edns
        .as_mut()
        .unwrap()
        .set_version(1)
        .set_dnssec_ok(true);
    let answer = asked(&index, &newer, UDP);
    // BADSIG has the same number.
    assert_eq!(u16::from(answer.metadata.response_code), 16);
    let edns = answer.edns.unwrap();
    assert!(edns.version() == 0 && edns.flags().dnssec_ok);

    let mut twice = message.to_vec().unwrap();
    let opt = twice[twice.len() - 11..].to_vec();
    twice.extend(opt);
    twice[11] = 2;
    let said = answer::answer(&index, &twice, UDP).unwrap();
    assert_eq!(said.code, ResponseCode::FormErr);
}

fn crowd(count: usize) -> Fixture {
    (0..count).fold(Fixture::yaml(ARENA), |fixture, at| {
        let address = format!("10.1.{}.{}:15006", at / 250, at % 250);
        let id = format!("{at:0>63}");
        fixture.with(zoned(
            &id,
            &address,
            if at % 10 == 0 { "az1" } else { "az2" },
        ))
    })
}

#[test]
fn udp_answers_end_at_what_both_sides_take_and_send_to_tcp() {
    let index = index(&crowd(60));
    let plain = question("battle.default.svc.mesh.", A);
    for (message, most, whole) in [
        (plain.clone(), 512, false),
        (with_edns(plain.clone(), 100), 512, false),
        (with_edns(plain.clone(), 900), 900, false),
        (with_edns(plain.clone(), 1000), 1000, false),
        (with_edns(plain.clone(), 1232), 1232, true),
        (with_edns(plain.clone(), 65_535), 1232, true),
    ] {
        let said = answer(&index, &message.to_vec().unwrap(), UDP).unwrap();
        assert!(said.bytes.len() <= most, "{} > {most}", said.bytes.len());
        assert_eq!(said.is_truncated, !whole, "{most}");
        let read = Message::from_vec(&said.bytes).unwrap();
        assert_eq!(read.metadata.truncation, !whole);
        assert_eq!(read.answers.len(), if whole { 60 } else { 0 });
        assert_eq!(read.edns.is_some(), message.edns.is_some());
    }
    let all = asked(&index, &plain, TCP);
    assert_eq!((all.answers.len(), all.metadata.truncation), (60, false));
}

#[test]
fn a_crowd_fits_one_tcp_answer_and_everyone_has_a_turn() {
    let index = index(&crowd(400));
    let message = question("_game._tcp.battle.default.svc.mesh.", SRV);
    let mut seen = std::collections::BTreeSet::new();
    for turn in 0..100 {
        let turn = scattered(turn);
        let answer = asked(&index, &message, Asker { turn, ..TCP });
        assert!(!answer.metadata.truncation);
        assert_eq!(answer.answers.len(), ANSWERS_MAX);
        seen.extend(data(&answer));
    }
    assert_eq!(seen.len(), 400);
}

#[test]
fn a_source_that_may_be_forged_gets_three_times_its_question() {
    let index = index(&crowd(60));
    for text in [
        "battle.default.svc.mesh.",
        "_game._tcp.battle.default.svc.mesh.",
        "outside.default.svc.mesh.",
        "nobody.default.svc.mesh.",
        "svc.mesh.",
        "example.com.",
    ] {
        for kind in [A, AAAA, SRV, SOA, NS, ANY, TXT, AXFR] {
            for message in [
                question(text, kind),
                with_edns(question(text, kind), 65_535),
            ] {
                let bytes = message.to_vec().unwrap();
                let said = answer(&index, &bytes, FORGED).unwrap();
                let most = AMPLIFICATION_MAX * bytes.len();
                assert!(said.bytes.len() <= most, "{text} {kind}");
                let slipped = slip(&bytes).unwrap();
                assert!(slipped.bytes.len() <= bytes.len() && slipped.is_truncated);
            }
        }
    }
    let few = asked(&index, &question("outside.default.svc.mesh.", A), FORGED);
    assert_eq!(few.answers.len(), 1, "what is small is answered");
}

#[test]
fn a_change_of_one_service_leaves_the_records_of_others() {
    let before = index(&arena());
    let same = after(&arena(), Some(&before));
    let battle = |index: &Index| match index.resolve(&name("battle.default.svc.mesh.")) {
        index::Found::Addresses(addresses) => std::ptr::from_ref(addresses) as usize,
        found => panic!("{found:?}"),
    };
    assert_eq!(battle(&same), battle(&before));
    let other = arena().with(instance("wild", "w1", "10.0.0.9:1", &[("x", 1)]));
    let other = after(&other, Some(&before));
    assert_eq!(battle(&other), battle(&before));
    assert_eq!(ask(&other, "wild.default.svc.mesh.", A).answers.len(), 1);
    let fourth = arena().with(zoned("b4", "10.0.0.4:15006", "az1"));
    let fourth = after(&fourth, Some(&before));
    assert_ne!(battle(&fourth), battle(&before));
    assert_eq!(ask(&fourth, "battle.default.svc.mesh.", A).answers.len(), 4);
}

/// A question as bytes, with something wrong somewhere.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let names = [
        "battle.default.svc.mesh.",
        "_game._tcp.battle.default.svc.mesh.",
        "svc.mesh.",
    ];
    let whole = (
        proptest::sample::select(names.to_vec()),
        any::<u16>(),
        any::<bool>(),
    );
    let changes = proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..6);
    (whole, changes, any::<proptest::sample::Index>()).prop_map(
        |((text, kind, edns), changes, cut)| {
            let message = question(text, RecordType::from(kind % 300));
            let message = if edns {
                with_edns(message, kind)
            } else {
                message
            };
            let mut bytes = message.to_vec().unwrap();
            for (at, value) in changes {
                *at.get_mut(&mut bytes) = value;
            }
            if kind % 3 == 0 {
                bytes.truncate(cut.index(bytes.len()));
            }
            bytes
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_do_harm(bytes in prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..600),
        damaged(),
    ]) {
        thread_local! {
            static INDEX: Index = index(&arena());
        }
        INDEX.with(|index| {
            for asker in [TCP, UDP, FORGED] {
                let Some(said) = answer(index, &bytes, asker) else { continue };
                let read = Message::from_vec(&said.bytes).expect("well-formed");
                assert_eq!(read.metadata.message_type, MessageType::Response);
                assert!(!read.metadata.recursion_available);
                assert_eq!(&said.bytes[..2], &bytes[..2]);
                if asker.transport == FORGED.transport {
                    assert!(said.bytes.len() <= AMPLIFICATION_MAX * bytes.len());
                }
            }
            if let Some(slipped) = slip(&bytes) {
                assert!(slipped.bytes.len() <= AMPLIFICATION_MAX * bytes.len());
            }
        });
    }
}

fn names(published: &Published, before: Option<&Index>) -> Index {
    let instances = &published.world.instances;
    let mesh = published.mesh.clone();
    Index::build(mesh, instances, published.revision, None, before)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(incremental::cases()))]
    #[test]
    fn names_that_followed_all_changes_are_those_made_from_nothing(
        batches in prop::collection::vec(prop::collection::vec(incremental::step(), 1..6), 1..12),
    ) {
        let mut fold = Fold::boot(Vec::new(), 0);
        let mut compiler = Compiler::default();
        let mut index = None;
        for (at, batch) in batches.iter().enumerate() {
            for step in batch {
                fold.apply(step.stored(at as u64 + 1));
            }
            let published = compiler.compile(fold.world());
            let next = names(&published, index.as_ref());
            prop_assert!(next.holds_the_same(&names(&published, None)));
            index = Some(next);
        }
    }
}
