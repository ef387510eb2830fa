//! Sorted sets, and the commands on them.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};

use super::lists::range;
use super::reply::Reply;
use super::request::{Arguments, integer};
use super::store::{Done, Fault, NOT_A_FLOAT, NOT_AN_INTEGER, SYNTAX, Store};
use super::text::Text;

/// A score, which is a number.
#[derive(Clone, Copy, PartialEq)]
struct Score(f64);

impl Eq for Score {}

impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Score {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// The members of a sorted set, in the order of their scores.
#[derive(Default)]
pub(crate) struct Sorted {
    scores: HashMap<Text, f64>,
    order: BTreeSet<(Score, Text)>,
}

impl Sorted {
    pub(crate) fn len(&self) -> usize {
        self.scores.len()
    }

    fn set(&mut self, member: &[u8], score: f64) {
        // There is one zero.
        let score = score + 0.0;
        let member = Text::from(member);
        if let Some(before) = self.scores.insert(member.clone(), score) {
            self.order.remove(&(Score(before), member.clone()));
        }
        self.order.insert((Score(score), member));
    }

    /// Takes the member with the lowest score.
    fn pop(&mut self) -> Option<(f64, Text)> {
        let (Score(score), member) = self.order.pop_first()?;
        self.scores.remove(&member);
        Some((score, member))
    }
}

/// The options of `ZADD`.
#[derive(Default)]
struct Options {
    only_new: bool,
    only_existing: bool,
    only_greater: bool,
    only_less: bool,
    count_changes: bool,
    increment: bool,
}

impl Options {
    /// The options, and the index of the first score.
    fn read(arguments: Arguments<'_>) -> Result<(Self, usize), Fault> {
        let mut options = Options::default();
        let mut index = 2;
        loop {
            let option = match index {
                _ if arguments.is(index, "NX") => &mut options.only_new,
                _ if arguments.is(index, "XX") => &mut options.only_existing,
                _ if arguments.is(index, "GT") => &mut options.only_greater,
                _ if arguments.is(index, "LT") => &mut options.only_less,
                _ if arguments.is(index, "CH") => &mut options.count_changes,
                _ if arguments.is(index, "INCR") => &mut options.increment,
                _ => break,
            };
            *option = true;
            index += 1;
        }
        let rest = arguments.len() - index;
        let Options { only_new, only_existing, only_greater, only_less, increment, .. } = options;
        if rest == 0 || !rest.is_multiple_of(2) {
            Err(SYNTAX)
        } else if only_new && only_existing {
            Err("ERR XX and NX options at the same time are not compatible")
        } else if (only_greater && (only_less || only_new)) || (only_less && only_new) {
            Err("ERR GT, LT, and/or NX options at the same time are not compatible")
        } else if increment && rest > 2 {
            Err("ERR INCR option supports a single increment-element pair")
        } else {
            Ok((options, index))
        }
    }

    /// The score that a member gets, if it gets one.
    fn score(&self, before: Option<f64>, given: f64) -> Result<Option<f64>, Fault> {
        let Some(before) = before else {
            return Ok((!self.only_existing).then_some(given));
        };
        let score = if self.increment { before + given } else { given };
        if score.is_nan() {
            return Err("ERR resulting score is not a number (NaN)");
        }
        let refused = self.only_new
            || (self.only_greater && score <= before)
            || (self.only_less && score >= before);
        Ok((!refused).then_some(score))
    }
}

fn score(text: &[u8]) -> Result<f64, Fault> {
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse::<f64>().ok());
    number.filter(|number| !number.is_nan()).ok_or(NOT_A_FLOAT)
}

pub(crate) fn zadd(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    let (options, first) = Options::read(arguments)?;
    for (number, _) in arguments.pairs(first) {
        score(number)?;
    }
    let (added, changed, last) = store.update(&arguments[1], |sorted: &mut Sorted| {
        let (mut added, mut changed, mut last) = (0, 0, None);
        for (number, member) in arguments.pairs(first) {
            let before = sorted.scores.get(member).copied();
            last = options.score(before, score(number)?)?;
            if let Some(score) = last {
                added += usize::from(before.is_none());
                changed += usize::from(before != Some(score));
                sorted.set(member, score);
            }
        }
        Ok::<_, Fault>((added, changed, last))
    })??;
    match (options.increment, last) {
        (true, Some(score)) => reply.double(score),
        (true, None) => reply.nil(),
        (false, _) => reply.count(if options.count_changes { changed } else { added }),
    }
    Ok(())
}

pub(crate) fn zscore(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    let sorted = store.view::<Sorted>(&arguments[1])?;
    match sorted.and_then(|sorted| sorted.scores.get(&arguments[2])) {
        Some(score) => reply.double(*score),
        None => reply.nil(),
    }
    Ok(())
}

pub(crate) fn zrange(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    let (mut reversed, mut with_scores) = (false, false);
    for index in 4..arguments.len() {
        match index {
            _ if arguments.is(index, "REV") => reversed = true,
            _ if arguments.is(index, "WITHSCORES") => with_scores = true,
            _ => return Err(SYNTAX),
        }
    }
    let start = integer(&arguments[2]).ok_or(NOT_AN_INTEGER)?;
    let stop = integer(&arguments[3]).ok_or(NOT_AN_INTEGER)?;
    let Some(sorted) = store.view::<Sorted>(&arguments[1])? else {
        reply.array(0);
        return Ok(());
    };
    let range = range(start, stop, sorted.len());
    let pairs = with_scores && reply.resp3;
    reply.array(if with_scores && !pairs { 2 * range.len() } else { range.len() });
    let mut put = |(Score(score), member): &(Score, Text)| {
        if pairs {
            reply.array(2);
        }
        reply.text(member);
        if with_scores {
            reply.double(*score);
        }
    };
    let members = sorted.order.iter();
    match reversed {
        false => members.skip(range.start).take(range.len()).for_each(&mut put),
        true => members.rev().skip(range.start).take(range.len()).for_each(&mut put),
    }
    Ok(())
}

pub(crate) fn zpopmin(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    let count = match arguments.get(2) {
        None => 1,
        Some(count) => integer(count)
            .and_then(|count| usize::try_from(count).ok())
            .ok_or("ERR value is out of range, must be positive")?,
    };
    // With a count, a RESP3 reply has pairs.
    let pairs = arguments.len() > 2 && reply.resp3;
    let popped = store.change(&arguments[1], |sorted: &mut Sorted| {
        let count = count.min(sorted.len());
        reply.array(if pairs { count } else { 2 * count });
        for (score, member) in (0..count).map_while(|_| sorted.pop()) {
            if pairs {
                reply.array(2);
            }
            reply.text(&member);
            reply.double(score);
        }
    })?;
    if popped.is_none() {
        reply.array(0);
    }
    Ok(())
}
