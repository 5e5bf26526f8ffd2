//! A question in, an answer out: the rules of an authoritative server for one zone, without a socket or a clock.
//!
//! Bytes are foreign. Of a message only its header, its one question and EDNS are read, so that nothing but names can be
//! large; names are decoded and answers encoded by `hickory-proto`. What the names hold is [`Index`]'s business.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::ProtoError;
use hickory_proto::op::{
    Edns, Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode,
};
use hickory_proto::rr::rdata::{A, AAAA, HINFO, NS, SOA, SRV};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

use super::index::{Addresses, Found, Grouped, Index, NAME_SERVER, ServiceNames, Target, Zone};

/// Who asks, and how much may be said.
#[derive(Clone, Copy, Debug)]
pub struct Asker {
    pub ip: IpAddr,
    pub transport: Transport,
    /// Begins the order of equals.
    pub turn: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    /// A source that may be forged gets at most [`AMPLIFICATION_MAX`] times what came in its name.
    Udp {
        is_proven: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub bytes: Vec<u8>,
    pub code: ResponseCode,
    pub is_truncated: bool,
}

/// None for what gets no answer: no whole header, or a message that is itself an answer.
pub fn answer(index: &Index, packet: &[u8], asker: Asker) -> Option<Answer> {
    let mut decoder = BinDecoder::new(packet);
    let header = Header::read(&mut decoder).ok()?;
    if header.message_type == MessageType::Response {
        return None;
    }
    if header.op_code != OpCode::Query {
        return refusal(&header, ResponseCode::NotImp);
    }
    let Some(ask) = Ask::read(header, &mut decoder) else {
        return refusal(&header, ResponseCode::FormErr);
    };
    let limit = limit(&ask, packet.len(), asker.transport);
    let reply = ask.reply(index, asker, limit);
    encode(reply, limit).or_else(|| refusal(&header, ResponseCode::ServFail))
}

/// Says only "ask again over TCP": for a source that asks too often, in case it is not the one that does.
pub fn slip(packet: &[u8]) -> Option<Answer> {
    let mut decoder = BinDecoder::new(packet);
    let header = Header::read(&mut decoder).ok()?;
    if header.message_type == MessageType::Response || header.op_code != OpCode::Query {
        return None;
    }
    let mut reply = Ask::read(header, &mut decoder)?.begin();
    reply.metadata.truncation = true;
    encode(reply, packet.len())
}

/// A checked question.
struct Ask {
    metadata: Metadata,
    query: Query,
    edns: Option<AskEdns>,
}

struct AskEdns {
    payload: usize,
    version: u8,
    dnssec_ok: bool,
}

impl Ask {
    /// None for what makes no sense: not one question, records where a query has none, EDNS twice or damaged.
    fn read(header: Header, decoder: &mut BinDecoder<'_>) -> Option<Self> {
        let counts = header.counts;
        if (counts.queries, counts.answers, counts.authorities) != (1, 0, 0)
            || counts.additionals > ADDITIONALS_MAX
        {
            return None;
        }
        let begun = decoder.index();
        let query = Query::read(decoder).ok()?;
        // A pointer in the first name of all could only point into the header, and make the answer longer than its question.
        let spelled: usize = query.name().iter().map(|label| label.len() + 1).sum();
        if decoder.index() - begun != spelled + 1 + QUERY_FIXED {
            return None;
        }
        let mut edns = None;
        for _ in 0..counts.additionals {
            if let Some(read) = AskEdns::read(decoder)?
                && edns.replace(read).is_some()
            {
                return None;
            }
        }
        Some(Self {
            metadata: header.metadata,
            query,
            edns,
        })
    }

    fn begin(&self) -> Message {
        let mut reply = Message::response(self.metadata.id, OpCode::Query);
        reply.metadata = Metadata::response_from_request(&self.metadata);
        reply.metadata.checking_disabled = false;
        reply.metadata.authoritative = true;
        reply.add_query(self.query.clone());
        if let Some(edns) = &self.edns {
            let mut ours = Edns::new();
            ours.set_max_payload(PAYLOAD_MAX as u16);
            ours.set_dnssec_ok(edns.dnssec_ok);
            reply.set_edns(ours);
        }
        reply
    }

    fn reply(&self, index: &Index, asker: Asker, limit: usize) -> Message {
        let mut reply = self.begin();
        let refused = |mut reply: Message, code| {
            reply.metadata.authoritative = false;
            reply.metadata.response_code = code;
            reply
        };
        if self.edns.as_ref().is_some_and(|edns| edns.version > 0) {
            return refused(reply, ResponseCode::BADVERS);
        }
        let (name, kind) = (self.query.name(), self.query.query_type());
        let found = index.resolve(name);
        if matches!(found, Found::Foreign) || self.query.query_class() != DNSClass::IN {
            return refused(reply, ResponseCode::Refused);
        }
        match kind {
            RecordType::AXFR | RecordType::IXFR => return refused(reply, ResponseCode::Refused),
            RecordType::OPT | RecordType::TSIG => return refused(reply, ResponseCode::FormErr),
            _ => {}
        }
        let zone = index.zone(asker.ip);
        let mut writer = Writer {
            reply: &mut reply,
            index,
            zone,
            turn: asker.turn,
            limit,
        };
        writer.write(name, kind, found);
        reply
    }
}

impl AskEdns {
    /// One record of the additional section: outside none when it can't be read, inside none when it is no EDNS.
    fn read(decoder: &mut BinDecoder<'_>) -> Option<Option<Self>> {
        let name = Name::read(decoder).ok()?;
        let mut short = || Some(decoder.read_u16().ok()?.unverified());
        let (kind, payload) = (short()?, short()?);
        let (high, low, length) = (short()?, short()?, short()?);
        decoder.read_slice(usize::from(length)).ok()?;
        if kind != u16::from(RecordType::OPT) {
            return Some(None);
        }
        let [_, version] = high.to_be_bytes();
        name.is_root().then_some(Some(Self {
            payload: usize::from(payload),
            version,
            dnssec_ok: low & 0x8000 != 0,
        }))
    }
}

/// Bytes that the answer may have.
fn limit(ask: &Ask, asked: usize, transport: Transport) -> usize {
    let payload = ask.edns.as_ref().map_or(PAYLOAD_MIN, |edns| edns.payload);
    let payload = payload.clamp(PAYLOAD_MIN, PAYLOAD_MAX);
    match transport {
        Transport::Tcp => usize::from(u16::MAX),
        Transport::Udp { is_proven: true } => payload,
        Transport::Udp { is_proven: false } => payload.min(AMPLIFICATION_MAX * asked),
    }
}

/// Fills an answer.
struct Writer<'a> {
    reply: &'a mut Message,
    index: &'a Index,
    zone: Option<&'a Zone>,
    turn: u64,
    limit: usize,
}

impl Writer<'_> {
    fn write(&mut self, name: &Name, kind: RecordType, found: Found<'_>) {
        if matches!(found, Found::Missing) {
            self.reply.metadata.response_code = ResponseCode::NXDomain;
            return self.nothing(name);
        }
        if kind == RecordType::ANY {
            // RFC 8482: one record that says so instead of all there are.
            let hinfo = HINFO::from_bytes(Box::from(*b"RFC8482"), Box::default());
            self.say(name, RData::HINFO(hinfo));
            return;
        }
        match (found, kind) {
            (Found::Apex, RecordType::SOA) => self.say(name, soa(self.index)),
            (Found::Apex, RecordType::NS) => {
                if let Some(ns) = name_server() {
                    self.say(name, RData::NS(NS(ns)));
                }
            }
            (Found::NameServer(IpAddr::V4(ip)), RecordType::A) => self.say(name, a(&ip)),
            (Found::NameServer(IpAddr::V6(ip)), RecordType::AAAA) => self.say(name, aaaa(&ip)),
            (Found::Addresses(addresses), RecordType::A) => self.all(name, &addresses.v4, a),
            (Found::Addresses(addresses), RecordType::AAAA) => self.all(name, &addresses.v6, aaaa),
            (Found::Port { service, targets }, RecordType::SRV) => {
                self.targets(name, service, targets);
            }
            _ => {}
        }
        if self.reply.answers.is_empty() && !self.reply.metadata.truncation {
            self.nothing(name);
        }
    }

    fn say(&mut self, name: &Name, data: RData) {
        // The owner is the question's own name: it keeps its case, and is packed to a pointer.
        let record = Record::from_rdata(name.clone(), TTL, data);
        self.reply.add_answer(record);
    }

    /// Truncates what can't fit without writing it.
    fn is_too_much(&mut self, count: usize, least: usize) -> bool {
        let too_much = count.min(ANSWERS_MAX) * least > self.limit;
        self.reply.metadata.truncation |= too_much;
        too_much
    }

    fn all<T>(&mut self, name: &Name, items: &Grouped<T>, data: fn(&T) -> RData) {
        if self.is_too_much(items.count(), RECORD_LEAST) {
            return;
        }
        for (item, _) in items.ordered(self.zone, self.turn).take(ANSWERS_MAX) {
            self.say(name, data(item));
        }
    }

    fn targets(&mut self, name: &Name, service: &ServiceNames, targets: &Grouped<Target>) {
        if self.is_too_much(targets.count(), SERVICE_RECORD_LEAST) {
            return;
        }
        let has_local = targets
            .ordered(self.zone, self.turn)
            .next()
            .is_some_and(|(_, is_local)| is_local);
        for (target, is_local) in targets.ordered(self.zone, self.turn).take(ANSWERS_MAX) {
            let Some(host) = host(name, &target.instance) else {
                continue;
            };
            // By RFC 2782 order means nothing and priority all.
            let priority = u16::from(has_local && !is_local);
            let record = SRV::new(priority, target.weight, target.port, host.clone());
            self.say(name, RData::SRV(record));
            if let Some(addresses) = service.instance(&target.instance) {
                self.glue(&host, addresses);
            }
        }
    }

    fn glue(&mut self, host: &Name, addresses: &Addresses) {
        let v4 = addresses.v4.ordered(None, 0).map(|(ip, _)| a(ip));
        let v6 = addresses.v6.ordered(None, 0).map(|(ip, _)| aaaa(ip));
        let left = ANSWERS_MAX.saturating_sub(self.reply.additionals.len());
        for data in v4.chain(v6).take(left) {
            let record = Record::from_rdata(host.clone(), TTL, data);
            self.reply.add_additional(record);
        }
    }

    /// A negative answer, and how long it holds (RFC 2308).
    fn nothing(&mut self, name: &Name) {
        let apex = name.trim_to(2);
        let record = Record::from_rdata(apex, TTL, soa(self.index));
        self.reply.add_authority(record);
    }
}

/// Without the additional section if only that makes it too long, without everything if that isn't enough.
fn encode(mut reply: Message, limit: usize) -> Option<Answer> {
    let mut bytes = whole(&reply).ok()?;
    if bytes.len() > limit && !reply.additionals.is_empty() {
        reply.additionals.clear();
        bytes = whole(&reply).ok()?;
    }
    if bytes.len() > limit {
        reply = reply.truncate();
        bytes = whole(&reply).ok()?;
    }
    if bytes.len() > limit {
        reply.edns = None;
        bytes = whole(&reply).ok()?;
    }
    Some(Answer {
        bytes,
        code: reply.metadata.response_code,
        is_truncated: reply.metadata.truncation,
    })
}

fn whole(reply: &Message) -> Result<Vec<u8>, ProtoError> {
    reply.to_vec()
}

/// Only a header.
fn refusal(header: &Header, code: ResponseCode) -> Option<Answer> {
    let mut reply = Message::error_msg(header.id, header.op_code, code);
    reply.metadata.recursion_desired = header.recursion_desired;
    encode(reply, usize::from(u16::MAX))
}

fn soa(index: &Index) -> RData {
    let mname = name_server().unwrap_or_default();
    let rname = zone_name(b"hostmaster").unwrap_or_default();
    let serial = index.serial();
    RData::SOA(SOA::new(mname, rname, serial, REFRESH, RETRY, EXPIRE, TTL))
}

fn name_server() -> Option<Name> {
    zone_name(NAME_SERVER.as_bytes())
}

fn zone_name(label: &[u8]) -> Option<Name> {
    Name::from_labels([label, b"svc", b"mesh"]).ok()
}

/// `<instance>.<service>.<namespace>.svc.mesh` of the question `_<port>._tcp.<service>.<namespace>.svc.mesh`.
fn host(question: &Name, instance: &str) -> Option<Name> {
    let service = question.trim_to(4).to_lowercase();
    let labels = std::iter::once(instance.as_bytes()).chain(service.iter());
    Name::from_labels(labels).ok()
}

fn a(ip: &Ipv4Addr) -> RData {
    RData::A(A(*ip))
}

fn aaaa(ip: &Ipv6Addr) -> RData {
    RData::AAAA(AAAA(*ip))
}

/// Seconds, of everything and of nothing: a change is seen by everyone after that.
pub const TTL: u32 = 5;
/// Bytes of a question's type and class.
const QUERY_FIXED: usize = 4;
/// The largest UDP answer that no path breaks up (DNS flag day 2020), also what we say we take.
pub const PAYLOAD_MAX: usize = 1232;
/// Without EDNS.
const PAYLOAD_MIN: usize = 512;
/// Of a UDP answer over its question, for a source that may be forged.
pub const AMPLIFICATION_MAX: usize = 3;
/// Records of a set, or of the additional section, that are told at once; others come in another turn. With the longest
/// names they fit one TCP answer, and the encoder packs no more than 120 names.
pub const ANSWERS_MAX: usize = 100;
/// EDNS and a signature, generously.
const ADDITIONALS_MAX: u16 = 4;
/// Bytes of an address record: pointer, type, class, TTL, length, address.
const RECORD_LEAST: usize = 16;
/// The same of a service record with the shortest target.
const SERVICE_RECORD_LEAST: usize = 12 + 6 + 15;
/// Nobody copies the zone; the usual values.
const REFRESH: i32 = 3600;
const RETRY: i32 = 600;
const EXPIRE: i32 = 86_400;
