//! From the bytes of a query to the bytes of its answer, without sockets.
//!
//! What is not a query gets no answer, or one of 12 bytes: never more than was sent.

use domain::base::iana::{Class, Opcode, OptRcode, Rcode};
use domain::base::message_builder::{AdditionalBuilder, AnswerBuilder, PushError};
use domain::base::opt::{Opt, OptRecord};
use domain::base::wire::ParseError;
use domain::base::{
    CharStr, Message, MessageBuilder, ParsedName, Question, Rtype, StaticCompressor, ToName, Ttl,
};
use domain::rdata::{Hinfo, ZoneRecordData};

use super::zone::{Found, OwnedName, RecordSet, Zone};

/// The largest answer over UDP, in bytes: RFC 9715 recommends it, because it fits into any packet.
const MAX_UDP: u16 = 1232;

/// The largest answer over UDP to a client without EDNS, in bytes: RFC 1035, section 4.2.1.
const PLAIN_UDP: u16 = 512;

/// The size of an OPT record without options, in bytes.
const OPT: u16 = 11;

/// How many names of a chain of aliases are looked up: a chain can be a circle.
const MAX_CHAIN: usize = 16;

/// The time to live of the answer to a query of type ANY.
const ANY_TTL: Ttl = Ttl::from_secs(3600);

type Answer = AnswerBuilder<StaticCompressor<Vec<u8>>>;
type Finished = AdditionalBuilder<StaticCompressor<Vec<u8>>>;

/// How a query has come.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// A well-formed query.
struct Query<'q> {
    message: &'q Message<[u8]>,
    question: Question<ParsedName<&'q [u8]>>,
    edns: Option<OptRecord<&'q [u8]>>,
}

/// What the lookup of one name of a chain has added to the answer section, and what comes next.
enum Step<'z> {
    /// Records.
    Answered,
    /// An alias, whose target is the next name.
    Alias(&'z OwnedName),
    /// Nothing: another zone has the name.
    Outside,
    /// Nothing: there are no such records, or there is no such name.
    Negative(Rcode),
    /// Nothing: these servers are responsible.
    Referral(&'z RecordSet),
}

/// The answer to a message; `None` if none must be sent.
pub(crate) fn answer(zone: &Zone, message: &[u8], transport: Transport) -> Option<Vec<u8>> {
    let message = Message::from_slice(message).ok()?;
    if message.header().qr() {
        return None; // two servers could answer each other's answers for ever
    }
    if message.header().opcode() != Opcode::QUERY {
        return Some(only_header(message, Rcode::NOTIMP));
    }
    let Ok(query) = Query::parse(message) else {
        return Some(only_header(message, Rcode::FORMERR));
    };
    let answered = query.answer(zone, query.limit(transport));
    let answered = answered.or_else(|_too_long| query.truncated());
    Some(query.finish(answered.ok()?))
}

/// An answer without sections.
fn only_header(message: &Message<[u8]>, rcode: Rcode) -> Vec<u8> {
    let mut answer = MessageBuilder::new_vec();
    let (header, asked) = (answer.header_mut(), message.header());
    header.set_id(asked.id());
    header.set_opcode(asked.opcode());
    header.set_qr(true);
    header.set_rd(asked.rd());
    header.set_rcode(rcode);
    answer.finish()
}

impl<'q> Query<'q> {
    fn parse(message: &'q Message<[u8]>) -> Result<Self, ParseError> {
        let question = message.sole_question()?;
        let counts = message.header_counts();
        // A query for a zone transfer may have a record here; the others have none.
        let most = u16::from(question.qtype() == Rtype::IXFR);
        if counts.ancount() > 0 || counts.nscount() > most || question.qtype() == Rtype::OPT {
            return Err(ParseError::form_error("not a query"));
        }
        let mut edns = None;
        for record in message.additional()? {
            let record = record?;
            let owner_is_root = record.owner().is_root();
            if let Some(opt) = record.to_record::<Opt<_>>()?
                && (edns.replace(OptRecord::from(opt)).is_some() || !owner_is_root)
            {
                return Err(ParseError::form_error("one OPT record of the root: RFC 6891, 6.1.1"));
            }
        }
        Ok(Query { message, question, edns })
    }

    /// How long the answer may be, in bytes, without its OPT record.
    fn limit(&self, transport: Transport) -> usize {
        let limit = match (transport, &self.edns) {
            (Transport::Tcp, _) => u16::MAX,
            (Transport::Udp, None) => PLAIN_UDP,
            (Transport::Udp, Some(edns)) => edns.udp_payload_size().clamp(PLAIN_UDP, MAX_UDP),
        };
        usize::from(limit - self.edns.as_ref().map_or(0, |_| OPT))
    }

    /// The header and the question, spelt as it was asked.
    fn begin(&self, limit: usize) -> Result<Answer, PushError> {
        let target = StaticCompressor::new(Vec::with_capacity(usize::from(PLAIN_UDP)));
        let mut builder = MessageBuilder::from_target(target)?;
        builder.set_push_limit(limit + 1); // the first length that is refused
        builder.start_answer(self.message, Rcode::NOERROR)
    }

    /// The answer without its OPT record; an error if it is longer than the limit.
    fn answer(&self, zone: &Zone, limit: usize) -> Result<Finished, PushError> {
        let mut answer = self.begin(limit)?;
        if self.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            return Ok(answer.additional()); // `finish` sets the code
        }
        let mut step = self.look_up(zone, self.question.qname(), &mut answer)?;
        let is_authoritative = !matches!(step, Step::Outside | Step::Referral(_));
        if matches!(step, Step::Outside) {
            answer.header_mut().set_rcode(Rcode::REFUSED);
        }
        for _ in 1..MAX_CHAIN {
            let Step::Alias(target) = step else { break };
            step = self.look_up(zone, target, &mut answer)?;
        }
        answer.header_mut().set_aa(is_authoritative);
        match step {
            Step::Answered | Step::Alias(_) | Step::Outside => Ok(answer.additional()),
            Step::Negative(rcode) => {
                answer.header_mut().set_rcode(rcode);
                let mut authority = answer.authority();
                authority.push(zone.soa())?;
                Ok(authority.additional())
            }
            Step::Referral(servers) => refer(zone, servers, answer),
        }
    }

    fn look_up<'z>(
        &self,
        zone: &'z Zone,
        name: &impl ToName,
        answer: &mut Answer,
    ) -> Result<Step<'z>, PushError> {
        let rtype = self.question.qtype();
        // 249 to 254 are no types of records: TKEY, TSIG, zone transfers and mailboxes.
        if self.question.qclass() != Class::IN || (249..=254).contains(&rtype.to_int()) {
            return Ok(Step::Outside);
        }
        let node = match zone.find(name, rtype) {
            Found::Outside => return Ok(Step::Outside),
            Found::Missing => return Ok(Step::Negative(Rcode::NXDOMAIN)),
            Found::Delegated(servers) => return Ok(Step::Referral(servers)),
            Found::Node(node) => node,
        };
        if let Some(set) = node.set(rtype) {
            for data in &set.data {
                answer.push((name, Class::IN, set.ttl, data))?;
            }
            return Ok(Step::Answered);
        }
        if let Some(set) = node.set(Rtype::CNAME)
            && let ZoneRecordData::Cname(alias) = &set.data[0]
        {
            answer.push((name, Class::IN, set.ttl, alias))?;
            let is_asked = rtype == Rtype::ANY;
            return Ok(if is_asked { Step::Answered } else { Step::Alias(alias.cname()) });
        }
        if rtype == Rtype::ANY && !node.sets.is_empty() {
            // One record in place of all that there are: RFC 8482, section 4.2.
            let cpu = CharStr::from_octets(&b"RFC8482"[..]).expect("at most 255 bytes");
            answer.push((name, Class::IN, ANY_TTL, Hinfo::new(cpu, CharStr::empty())))?;
            return Ok(Step::Answered);
        }
        Ok(Step::Negative(Rcode::NOERROR))
    }

    /// The answer to a query whose answer is too long: only that this is so.
    fn truncated(&self) -> Result<Finished, PushError> {
        let mut answer = self.begin(usize::MAX - 1)?;
        answer.header_mut().set_tc(true);
        Ok(answer.additional())
    }

    /// Adds the OPT record, if the query has one.
    fn finish(&self, mut answered: Finished) -> Vec<u8> {
        if let Some(edns) = &self.edns {
            answered.clear_push_limit();
            let added = answered.opt(|opt| {
                opt.set_udp_payload_size(MAX_UDP);
                opt.set_dnssec_ok(edns.dnssec_ok());
                if edns.version() > 0 {
                    opt.set_rcode(OptRcode::BADVERS);
                }
                Ok(())
            });
            debug_assert!(added.is_ok(), "a vector has room");
        }
        answered.finish().into_target()
    }
}

/// Adds the servers of a delegated zone, and their addresses. If those do not fit that cannot be
/// looked up elsewhere, the answer is too long: RFC 9471.
fn refer(zone: &Zone, servers: &RecordSet, answer: Answer) -> Result<Finished, PushError> {
    let names = || {
        servers.data.iter().filter_map(|data| match data {
            ZoneRecordData::Ns(server) => Some(server.nsdname()),
            _ => None,
        })
    };
    let mut authority = answer.authority();
    for data in &servers.data {
        authority.push((&servers.owner, Class::IN, servers.ttl, data))?;
    }
    let mut additional = authority.additional();
    for name in names() {
        let is_needed = name.ends_with(&servers.owner);
        for set in zone.addresses(name) {
            for data in &set.data {
                match additional.push((name, Class::IN, set.ttl, data)) {
                    Err(too_long) if is_needed => return Err(too_long),
                    _ => {}
                }
            }
        }
    }
    Ok(additional)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn zone() -> Zone {
        Zone::parse(include_bytes!("example.zone"), ".").unwrap()
    }

    /// A query with an OPT record.
    fn query(name: &str, rtype: Rtype) -> Vec<u8> {
        let mut question = MessageBuilder::new_vec().question();
        question.push((name.parse::<OwnedName>().unwrap(), rtype)).unwrap();
        let mut additional = question.additional();
        let largest = additional.opt(|opt| {
            opt.set_udp_payload_size(u16::MAX);
            Ok(())
        });
        largest.unwrap();
        additional.finish()
    }

    /// Checks what holds for the answer to any bytes.
    fn check(zone: &Zone, message: &[u8]) {
        for (transport, limit) in
            [(Transport::Udp, usize::from(MAX_UDP)), (Transport::Tcp, usize::from(u16::MAX))]
        {
            let Some(answer) = answer(zone, message, transport) else { continue };
            assert!(answer.len() <= limit);
            assert!(answer[..2] == message[..2] && answer[2] & 0x80 != 0);
            let is_malformed = matches!(answer[3] & 15, 1 | 4);
            assert!(!is_malformed || answer.len() <= message.len());
        }
    }

    #[test]
    fn an_answer_or_less_than_a_header_gets_no_answer() {
        let mut message = query("example.com", Rtype::SOA);
        assert!(answer(&zone(), &message[..11], Transport::Udp).is_none());
        assert!(answer(&zone(), &message, Transport::Udp).is_some());
        message[2] |= 0x80;
        assert!(answer(&zone(), &message, Transport::Udp).is_none());
    }

    #[test]
    fn a_query_that_is_cut_anywhere_is_answered_by_a_header() {
        let message = query("www.example.com", Rtype::A);
        for end in 12..message.len() {
            let answer = answer(&zone(), &message[..end], Transport::Udp).unwrap();
            assert_eq!((answer.len(), answer[3] & 15), (12, 1), "of {end} bytes");
        }
    }

    proptest! {
        #[test]
        fn random_bytes_are_never_a_panic_nor_amplified(
            message in prop::collection::vec(any::<u8>(), 0..600)
        ) {
            check(&zone(), &message);
        }

        #[test]
        fn a_query_with_random_bytes_in_it_is_never_a_panic_nor_amplified(
            changes in prop::collection::vec((0..44_usize, any::<u8>()), 1..6),
            name in prop::sample::select(vec!["www.example.com", "x.sub.example.com", "."]),
            rtype in any::<u16>(),
        ) {
            let mut message = query(name, Rtype::from_int(rtype));
            let length = message.len();
            changes.into_iter().for_each(|(at, byte)| message[at % length] = byte);
            check(&zone(), &message);
        }
    }
}
