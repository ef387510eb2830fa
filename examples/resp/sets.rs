//! Sets, and the commands on them.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use super::reply::Reply;
use super::request::{Arguments, integer};
use super::store::{Done, Store};
use super::text::Text;

/// The members of a set, of which any can be taken at random.
#[derive(Default)]
pub(crate) struct Members {
    members: Vec<Text>,
    /// The index of each member.
    indexes: HashMap<Text, usize>,
    random: Random,
}

impl Members {
    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    /// Adds a member, and tells whether it is new.
    fn add(&mut self, member: &[u8]) -> bool {
        if self.indexes.contains_key(member) {
            return false;
        }
        let member = Text::from(member);
        self.indexes.insert(member.clone(), self.members.len());
        self.members.push(member);
        true
    }

    fn remove(&mut self, member: &[u8]) -> bool {
        let Some(index) = self.indexes.remove(member) else { return false };
        self.take(index);
        true
    }

    /// Takes a member whose index is forgotten; the last one moves to its place.
    fn take(&mut self, index: usize) -> Text {
        let member = self.members.swap_remove(index);
        if let Some(moved) = self.members.get(index) {
            self.indexes.insert(moved.clone(), index);
        }
        member
    }

    fn pop(&mut self) -> Option<Text> {
        if self.members.is_empty() {
            return None;
        }
        let index = self.random.below(self.members.len());
        self.indexes.remove(&self.members[index]);
        Some(self.take(index))
    }
}

/// A sequence of random numbers, which need not be secret.
struct Random(u64);

impl Default for Random {
    fn default() -> Self {
        Random(RandomState::new().hash_one(0) | 1)
    }
}

impl Random {
    /// Marsaglia's xorshift.
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

pub(crate) fn sadd(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    let added = store.update(&arguments[1], |members: &mut Members| {
        arguments.from(2).filter(|member| members.add(member)).count()
    })?;
    reply.count(added);
    Ok(())
}

pub(crate) fn srem(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    let removed = store.change(&arguments[1], |members: &mut Members| {
        arguments.from(2).filter(|member| members.remove(member)).count()
    })?;
    reply.count(removed.unwrap_or(0));
    Ok(())
}

pub(crate) fn spop(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    let Some(count) = arguments.get(2) else {
        match store.change(&arguments[1], Members::pop)?.flatten() {
            Some(member) => reply.text(&member),
            None => reply.nil(),
        }
        return Ok(());
    };
    let count = integer(count).and_then(|count| usize::try_from(count).ok());
    let count = count.ok_or("ERR value is out of range, must be positive")?;
    let popped = store.change(&arguments[1], |members: &mut Members| {
        reply.set(count.min(members.len()));
        (0..count).map_while(|_| members.pop()).for_each(|member| reply.text(&member));
    })?;
    if popped.is_none() {
        reply.set(0);
    }
    Ok(())
}

pub(crate) fn smembers(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    let members = store.view::<Members>(&arguments[1])?.map_or(&[][..], |set| &set.members);
    reply.set(members.len());
    members.iter().for_each(|member| reply.text(member));
    Ok(())
}

pub(crate) fn sismember(store: &mut Store, arguments: Arguments<'_>, reply: &mut Reply) -> Done {
    let set = store.view::<Members>(&arguments[1])?;
    reply.count(usize::from(set.is_some_and(|set| set.indexes.contains_key(&arguments[2]))));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_is_popped_once_and_removed_ones_are_not() {
        let mut set = Members::default();
        for number in 0..1000 {
            assert!(set.add(number.to_string().as_bytes()));
            assert!(!set.add(number.to_string().as_bytes()));
        }
        for number in (0..1000).step_by(3) {
            assert!(set.remove(number.to_string().as_bytes()));
        }
        let mut popped: Vec<_> = std::iter::from_fn(|| set.pop()).collect();
        popped.sort();
        popped.dedup();
        assert_eq!((popped.len(), set.len(), set.indexes.len()), (666, 0, 0));
    }
}
