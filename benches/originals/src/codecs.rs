//! The codec of the example `dns` against the other one that it could have: how long it takes to
//! read a query and to build an answer with one record.

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use domain::base::iana::{Class, Rcode};
use domain::base::{Message, MessageBuilder, Name, Rtype, StaticCompressor, Ttl};
use domain::rdata::A;
use hickory_proto::op::{Edns, Message as HickoryMessage};
use hickory_proto::rr::{RData, Record};
use peers::bench::stats;
use peers::bench::table::Table;

/// The options of the comparison of codecs.
#[derive(Debug, clap::Args)]
pub struct CodecsArgs {
    /// How many slices each codec gets
    #[arg(long, default_value_t = 11)]
    rounds: usize,
}

/// How many queries a slice has.
const QUERIES: u32 = 200_000;

const NAME: &str = "www.example.com.";
const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const TTL: u32 = 300;
const UDP_SIZE: u16 = 1232;

/// A query for the address of a name, with EDNS.
fn query() -> Result<Vec<u8>> {
    let mut question = MessageBuilder::new_vec().question();
    question.push((NAME.parse::<Name<Vec<u8>>>()?, Rtype::A))?;
    let mut additional = question.additional();
    additional.opt(|opt| {
        opt.set_udp_payload_size(UDP_SIZE);
        Ok(())
    })?;
    Ok(additional.finish())
}

fn with_domain(query: &[u8]) -> Result<Vec<u8>> {
    let message = Message::from_slice(query)?;
    let question = message.sole_question()?;
    let target = StaticCompressor::new(Vec::with_capacity(512));
    let mut answer = MessageBuilder::from_target(target)?.start_answer(message, Rcode::NOERROR)?;
    answer.header_mut().set_aa(true);
    answer.push((question.qname(), Class::IN, Ttl::from_secs(TTL), A::new(ADDRESS)))?;
    let mut additional = answer.additional();
    if message.opt().is_some() {
        additional.opt(|opt| {
            opt.set_udp_payload_size(UDP_SIZE);
            Ok(())
        })?;
    }
    Ok(additional.finish().into_target())
}

fn with_hickory(query: &[u8]) -> Result<Vec<u8>> {
    let message = HickoryMessage::from_vec(query)?;
    let question = message.queries.first().context("no question")?;
    let mut answer = HickoryMessage::response(message.metadata.id, message.metadata.op_code);
    answer.metadata.authoritative = true;
    let record = Record::from_rdata(question.name().clone(), TTL, RData::A(ADDRESS.into()));
    answer.add_query(question.clone());
    answer.add_answer(record);
    if message.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_SIZE);
        answer.set_edns(edns);
    }
    Ok(answer.to_vec()?)
}

/// Runs the comparison and prints it.
pub fn run(args: &CodecsArgs) -> Result<()> {
    let query = query()?;
    ensure!(with_domain(&query)? == with_hickory(&query)?, "the answers differ");
    let nanoseconds = |answer: fn(&[u8]) -> Result<Vec<u8>>| -> Result<f64> {
        let begun = Instant::now();
        for _ in 0..QUERIES {
            black_box(answer(black_box(&query))?);
        }
        Ok(begun.elapsed().as_nanos() as f64 / f64::from(QUERIES))
    };
    let (mut ours, mut other, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..args.rounds {
        ours.push(nanoseconds(with_domain)?);
        other.push(nanoseconds(with_hickory)?);
        ratios.extend(ours.last().zip(other.last()).map(|(ours, other)| ours / other));
    }
    let mut table = Table::new(["", "ns, domain", "ns, hickory-proto", "ratio"]);
    let median = |figures: Vec<f64>| stats::median(figures).unwrap_or(f64::NAN);
    let ratio = stats::estimate(&ratios).context("no round")?;
    table.row([
        "query and answer".to_owned(),
        format!("{:.0}", median(ours)),
        format!("{:.0}", median(other)),
        format!("{:.2} [{:.2}..{:.2}]", ratio.median, ratio.low, ratio.high),
    ]);
    println!("{table}");
    Ok(())
}
