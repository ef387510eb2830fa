//! A zone: the records of a master file (RFC 1035, section 5), and how a name is found among them
//! (RFC 1034, section 4.3.2, with the wildcards of RFC 4592).

use std::collections::HashMap;

use domain::base::iana::Class;
use domain::base::name::FlattenInto as _;
use domain::base::{Name, Record, RecordData as _, Rtype, ToName, Ttl};
use domain::dep::octseq::Array;
use domain::rdata::ZoneRecordData;
use domain::zonefile::inplace::{Entry, Zonefile};

pub(crate) type OwnedName = Name<Vec<u8>>;
pub(crate) type Data = ZoneRecordData<Vec<u8>, OwnedName>;

/// The longest name in wire format, in bytes.
const MAX_NAME: usize = 255;

/// A name in wire format and lower case.
type Key = Array<MAX_NAME>;

/// The records of one zone.
pub(crate) struct Zone {
    apex: Key,
    soa: Record<OwnedName, Data>,
    /// Each name that exists, by its key: those with records, and those between them and the apex.
    nodes: HashMap<Box<[u8]>, Node>,
}

/// A name that exists, with its records, if it has any.
#[derive(Default)]
pub(crate) struct Node {
    pub(crate) sets: Vec<RecordSet>,
}

/// The records of one name and one type.
pub(crate) struct RecordSet {
    /// The name as the master file spells it.
    pub(crate) owner: OwnedName,
    pub(crate) rtype: Rtype,
    pub(crate) ttl: Ttl,
    pub(crate) data: Vec<Data>,
}

/// What a zone knows of a name.
pub(crate) enum Found<'z> {
    /// The name is not in the zone.
    Outside,
    /// The name exists, or a wildcard stands for it.
    Node(&'z Node),
    /// These name servers are responsible for it.
    Delegated(&'z RecordSet),
    /// There is no such name.
    Missing,
}

impl Node {
    pub(crate) fn set(&self, rtype: Rtype) -> Option<&RecordSet> {
        self.sets.iter().find(|set| set.rtype == rtype)
    }
}

impl Zone {
    /// Reads a master file. Relative names are below `origin` until `$ORIGIN` sets another one.
    ///
    /// # Errors
    ///
    /// What is wrong with the file, in one line.
    pub(crate) fn parse(text: &[u8], origin: &str) -> Result<Self, String> {
        let mut file = Zonefile::from(text);
        file.extend_from_slice(b"\n"); // the last line may lack its end
        file.set_default_class(Class::IN);
        file.set_origin(origin.parse().map_err(|error| format!("the origin {origin:?}: {error}"))?);
        let mut records: Vec<Record<OwnedName, Data>> = Vec::new();
        while let Some(entry) = file.next_entry().map_err(|error| error.to_string())? {
            let Entry::Record(record) = entry else {
                return Err("$INCLUDE is not supported".to_owned());
            };
            records.push(record.flatten_into());
        }
        let mut soas = records.iter().filter(|record| record.data().rtype() == Rtype::SOA);
        let (Some(soa), None) = (soas.next(), soas.next()) else {
            return Err("a zone has exactly one SOA record".to_owned());
        };
        let (apex, soa) = (key(soa.owner()), negative_soa(soa.clone()));
        let mut zone = Zone { apex, soa, nodes: HashMap::new() };
        records.into_iter().try_for_each(|record| zone.add(record))?;
        zone.check()?;
        Ok(zone)
    }

    fn add(&mut self, record: Record<OwnedName, Data>) -> Result<(), String> {
        let (owner, class, ttl) = (record.owner().clone(), record.class(), record.ttl());
        let (key, data) = (key(&owner), record.into_data());
        let refuse = |why| Err(format!("{owner} {}: {why}", data.rtype()));
        let Some(ancestors) = self.ancestors(key.as_ref()) else {
            return refuse("the name is not in the zone");
        };
        if class != Class::IN {
            return refuse("only class IN is supported");
        }
        // The parser takes `@` for the origin only where it is the owner.
        let is_name = matches!(data.rtype(), Rtype::CNAME | Rtype::MX | Rtype::NS | Rtype::SRV);
        if is_name && data.to_string().split(' ').any(|name| name.starts_with('@')) {
            return refuse("write the name of the origin in place of @");
        }
        if data.rtype() == Rtype::DNAME {
            return refuse("DNAME is not supported");
        }
        if data.rtype() == Rtype::NS && key.as_ref().starts_with(b"\x01*") {
            return refuse("a wildcard cannot delegate, see section 4.2 of RFC 4592");
        }
        for ancestor in ancestors {
            self.nodes.entry(ancestor.into()).or_default();
        }
        let sets = &mut self.nodes.entry(key.as_ref().into()).or_default().sets;
        match sets.iter_mut().find(|set| set.rtype == data.rtype()) {
            Some(set) => {
                // The records of a set have one TTL: section 5.2 of RFC 2181.
                set.ttl = set.ttl.min(ttl);
                if !set.data.contains(&data) {
                    set.data.push(data);
                }
            }
            None => sets.push(RecordSet { owner, rtype: data.rtype(), ttl, data: vec![data] }),
        }
        Ok(())
    }

    /// The keys of a name and of all names above it down to the apex, the apex first; `None` if it
    /// is not in the zone.
    fn ancestors<'n>(&self, name: &'n [u8]) -> Option<impl Iterator<Item = &'n [u8]> + use<'n>> {
        let (mut starts, mut count, mut at) = ([0_u8; MAX_NAME / 2 + 1], 0, 0);
        loop {
            starts[count] = at as u8;
            count += 1;
            if name.len() - at <= self.apex.len() {
                break;
            }
            at += 1 + usize::from(name[at]);
        }
        let is_inside = name[at..] == *self.apex.as_ref();
        is_inside.then(|| (0..count).rev().map(move |label| &name[usize::from(starts[label])..]))
    }

    fn check(&self) -> Result<(), String> {
        for node in self.nodes.values() {
            if let Some(cname) = node.set(Rtype::CNAME)
                && (node.sets.len() > 1 || cname.data.len() > 1)
            {
                return Err(format!(
                    "{} CNAME: a CNAME is the only record of its name",
                    cname.owner
                ));
            }
        }
        Ok(())
    }

    /// The SOA record of a negative answer: with the TTL that RFC 2308 gives it.
    pub(crate) fn soa(&self) -> &Record<OwnedName, Data> {
        &self.soa
    }

    /// Finds a name, for a question about records of this type.
    pub(crate) fn find(&self, name: &impl ToName, rtype: Rtype) -> Found<'_> {
        let key = key(name);
        let Some(mut names) = self.ancestors(key.as_ref()).map(Iterator::peekable) else {
            return Found::Outside;
        };
        let mut encloser: &[u8] = self.apex.as_ref();
        while let Some(name) = names.next() {
            let Some(node) = self.nodes.get(name) else {
                return self.wildcard(encloser).map_or(Found::Missing, Found::Node);
            };
            let is_apex = name.len() == self.apex.len();
            // The parent of a delegated zone answers for its DS record: RFC 4035, section 3.1.4.1.
            let is_parents = rtype == Rtype::DS && names.peek().is_none();
            if let Some(servers) = node.set(Rtype::NS)
                && !is_apex
                && !is_parents
            {
                return Found::Delegated(servers);
            }
            if names.peek().is_none() {
                return Found::Node(node);
            }
            encloser = name;
        }
        Found::Outside
    }

    /// The wildcard right below this name.
    fn wildcard(&self, encloser: &[u8]) -> Option<&Node> {
        let mut key = [0; MAX_NAME + 2];
        key[..2].copy_from_slice(b"\x01*");
        key[2..][..encloser.len()].copy_from_slice(encloser);
        self.nodes.get(&key[..2 + encloser.len()])
    }

    /// The addresses of a name server, as the zone has them: glue, if its name is delegated.
    pub(crate) fn addresses(&self, name: &impl ToName) -> impl Iterator<Item = &RecordSet> {
        let sets = self.nodes.get(key(name).as_ref()).map_or(&[][..], |node| &node.sets);
        sets.iter().filter(|set| set.rtype.is_glue())
    }
}

/// The key of a name.
fn key(name: &impl ToName) -> Key {
    let mut key = Key::default();
    name.compose_canonical(&mut key).expect("a name has at most 255 bytes");
    key
}

fn negative_soa(mut soa: Record<OwnedName, Data>) -> Record<OwnedName, Data> {
    if let ZoneRecordData::Soa(data) = soa.data() {
        let ttl = soa.ttl().min(data.minimum());
        soa.set_ttl(ttl);
    }
    soa
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone() -> Zone {
        Zone::parse(include_bytes!("example.zone"), ".").unwrap()
    }

    fn found(zone: &Zone, name: &str, rtype: Rtype) -> String {
        match zone.find(&name.parse::<OwnedName>().unwrap(), rtype) {
            Found::Outside => "outside".to_owned(),
            Found::Missing => "missing".to_owned(),
            Found::Delegated(servers) => format!("delegated at {}", servers.owner),
            Found::Node(node) => match node.set(rtype) {
                Some(set) => format!("{} records", set.data.len()),
                None => "no data".to_owned(),
            },
        }
    }

    #[test]
    fn a_name_is_found_whatever_its_case_and_what_is_above_it_exists() {
        let zone = zone();
        assert_eq!(found(&zone, "EXAMPLE.com", Rtype::NS), "2 records");
        assert_eq!(found(&zone, "a.B.c.example.COM", Rtype::A), "1 records");
        assert_eq!(found(&zone, "b.c.example.com", Rtype::A), "no data");
        assert_eq!(found(&zone, "x.b.c.example.com", Rtype::A), "missing");
        assert_eq!(found(&zone, "com", Rtype::A), "outside");
        assert_eq!(found(&zone, ".", Rtype::A), "outside");
        assert_eq!(found(&zone, "notexample.com", Rtype::A), "outside");
        assert_eq!(found(&zone, "example.org", Rtype::A), "outside");
    }

    #[test]
    fn a_wildcard_stands_for_names_that_do_not_exist_and_for_nothing_else() {
        let text = "$ORIGIN example.\n@ 60 SOA . . 1 1 1 1 1\n* 60 TXT \"t\"\nhost1 60 A 192.0.2.1\n\
             _ssh._tcp.host1 60 SRV 0 0 22 host1\nsubdel 60 NS ns.example.com.\n*.sub 60 A 192.0.2.2\n";
        let zone = Zone::parse(text.as_bytes(), ".").unwrap();
        // The examples of section 2.2.1 of RFC 4592.
        assert_eq!(found(&zone, "host3.example", Rtype::TXT), "1 records");
        assert_eq!(found(&zone, "foo.bar.example", Rtype::TXT), "1 records");
        assert_eq!(found(&zone, "host3.example", Rtype::A), "no data");
        assert_eq!(found(&zone, "host1.example", Rtype::MX), "no data");
        assert_eq!(found(&zone, "_tcp.host1.example", Rtype::TXT), "no data");
        assert_eq!(found(&zone, "_telnet._tcp.host1.example", Rtype::SRV), "missing");
        assert_eq!(found(&zone, "host.subdel.example", Rtype::A), "delegated at subdel.example");
        assert_eq!(found(&zone, "ghost.*.example", Rtype::TXT), "missing");
        assert_eq!(found(&zone, "*.example", Rtype::TXT), "1 records");
        assert_eq!(found(&zone, "sub.example", Rtype::TXT), "no data");
    }

    #[test]
    fn the_parent_answers_for_the_ds_record_of_a_delegated_zone() {
        let zone = zone();
        assert_eq!(found(&zone, "sub.example.com", Rtype::DS), "no data");
        assert_eq!(found(&zone, "sub.example.com", Rtype::A), "delegated at sub.example.com");
        assert_eq!(found(&zone, "x.sub.example.com", Rtype::DS), "delegated at sub.example.com");
    }

    #[test]
    fn a_file_that_is_not_a_zone_is_refused_with_the_reason() {
        let soa = "$ORIGIN x.\n@ 60 SOA . . 1 1 1 1 1\n";
        for (text, reason) in [
            ("", "exactly one SOA"),
            (&format!("{soa}y 60 SOA . . 1 1 1 1 1"), "exactly one SOA"),
            (&format!("{soa}y. 60 A 192.0.2.1"), "not in the zone"),
            (&format!("{soa}y 60 A 192.0.2"), "expected IPv4 address"),
            (&format!("{soa}y 60 MX 1 @"), "in place of @"),
            (&format!("{soa}y 60 CNAME a\ny 60 A 192.0.2.1"), "only record"),
            (&format!("{soa}y 60 CNAME a\ny 60 CNAME b"), "only record"),
            (&format!("{soa}y 60 DNAME a"), "DNAME"),
            (&format!("{soa}* 60 NS a"), "wildcard"),
            (&format!("{soa}$INCLUDE other"), "$INCLUDE"),
        ] {
            let error = Zone::parse(text.as_bytes(), ".").err().expect(reason);
            assert!(error.contains(reason), "{error:?} is not about {reason:?}");
        }
    }
}
