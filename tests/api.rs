//! The public interface as a list, `tests/api.txt`, so that each change of it is seen. With
//! `SOCKETSERVER_WRITE_API=1` the test writes the list.
//!
//! The list is made from the source: items that are `pub` and that `src/lib.rs` exports, methods and
//! fields, variants, implementations of traits. What a macro makes is listed by its names only.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use socketserver::Counters;

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The source files, with their text up to the unit tests.
fn sources() -> Vec<(PathBuf, String)> {
    let (mut files, mut directories) = (Vec::new(), vec![path("src")]);
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") && !path.ends_with("tests.rs")
            {
                let text = fs::read_to_string(&path).unwrap();
                let code = text.split("\n#[cfg(test)]\nmod ").next().unwrap().to_owned();
                files.push((path, code));
            }
        }
    }
    files
}

/// The identifiers in a text.
fn names(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|name| !name.is_empty())
}

/// What `src/lib.rs` exports: the names of items, and those of modules.
struct Exports {
    items: BTreeSet<String>,
    modules: BTreeSet<String>,
}

impl Exports {
    fn read() -> Self {
        let library = fs::read_to_string(path("src/lib.rs")).unwrap();
        let uses = library.split("\npub use ").skip(1).map(|rest| rest.split(';').next().unwrap());
        let items = uses.flat_map(names).map(str::to_owned).collect();
        let modules = library.lines().filter_map(|line| line.strip_prefix("pub mod "));
        let modules = modules.map(|rest| names(rest).next().unwrap().to_owned()).collect();
        Exports { items, modules }
    }

    fn contain(&self, name: &str, file: &Path) -> bool {
        let below = file.strip_prefix(path("src")).unwrap().with_extension("");
        let module = below.iter().next().unwrap().to_str().unwrap();
        self.items.contains(name) || self.modules.contains(module)
    }
}

/// A declaration with its indentation, in one line and without its body; attributes that matter
/// stand before it.
fn declarations(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let (mut attributes, mut open) = (String::new(), None::<(usize, String)>);
    for line in code.lines() {
        let text = line.trim();
        if text.is_empty() || text.starts_with("//") {
            continue;
        }
        if let Some((indent, mut declaration)) = open.take() {
            declaration = format!("{declaration} {text}");
            match is_whole(&declaration) {
                true => found.push((indent, without_body(&declaration))),
                false => open = Some((indent, declaration)),
            }
            continue;
        }
        if text.starts_with("#[") {
            if ["#[derive", "#[non_exhaustive", "#[must_use"]
                .iter()
                .any(|name| text.starts_with(name))
            {
                attributes += text.split(" =").next().unwrap().trim_end_matches(']');
                attributes += "] ";
            }
            continue;
        }
        let indent = line.len() - line.trim_start().len();
        let declaration = std::mem::take(&mut attributes) + text;
        match is_whole(&declaration) {
            true => found.push((indent, without_body(&declaration))),
            false => open = Some((indent, declaration)),
        }
    }
    found
}

/// Whether a declaration goes no further: a body, an end, or a closed list follows its last word.
fn is_whole(declaration: &str) -> bool {
    let starts = ["pub ", "fn ", "impl", "const ", "type "];
    let bare = declaration.rsplit("] ").next().unwrap();
    !starts.iter().any(|start| bare.starts_with(start))
        || declaration.ends_with(['{', ';', '}'])
        || (declaration.ends_with(',') && !declaration.contains('('))
}

fn without_body(declaration: &str) -> String {
    let end = declaration.find(" {").unwrap_or(declaration.len());
    let text = declaration[..end].trim_end_matches([';', ',', '{', ' ']);
    text.replace("( ", "(").replace(", )", ")").replace(",)", ")")
}

/// The type that an `impl` is about.
fn implementor(header: &str) -> &str {
    let of = header.split(" where ").next().unwrap();
    let of = of.split_once(" for ").map_or_else(|| without_parameters(of), |(_, of)| of);
    names(of).find(|name| name.starts_with(char::is_uppercase)).unwrap_or_default()
}

/// The header of an `impl` without `impl<…>`.
fn without_parameters(header: &str) -> &str {
    let rest = header.trim_start_matches("impl");
    let mut depth = 0;
    for (at, c) in rest.char_indices() {
        match c {
            '<' => depth += 1,
            '>' => depth -= 1,
            ' ' if depth == 0 => return &rest[at..],
            _ => {}
        }
    }
    rest
}

/// The public items of one file.
fn items(file: &Path, code: &str, exports: &Exports, list: &mut BTreeSet<String>) {
    // The item that the following declarations belong to, if it is public.
    let mut inside: Option<(&str, String)> = None;
    for (indent, declaration) in declarations(code) {
        let bare = declaration.rsplit("] ").next().unwrap();
        if indent == 0 {
            inside = None;
            if bare.starts_with("impl") {
                let name = implementor(bare);
                if exports.contain(name, file) {
                    let kind = if bare.contains(" for ") { "trait impl" } else { "impl" };
                    if kind == "trait impl" {
                        list.insert(declaration.clone());
                    }
                    inside = Some((kind, bare.to_owned()));
                }
            } else if let Some(item) = bare.strip_prefix("pub ") {
                let mut words =
                    names(item).skip_while(|word| *word == "const" && item.contains("fn "));
                let (kind, name) = (words.next().unwrap(), words.next().unwrap_or_default());
                if kind != "use" && kind != "mod" && exports.contain(name, file) {
                    list.insert(declaration.clone());
                    let kind = ["struct", "enum", "trait"].into_iter().find(|word| *word == kind);
                    inside = kind.map(|kind| (kind, name.to_owned()));
                }
            }
            continue;
        }
        let Some((kind, owner)) = &inside else { continue };
        let belongs = indent == 4
            && match *kind {
                "impl" | "struct" => bare.starts_with("pub ") && !bare.starts_with("pub ("),
                "trait" => ["fn ", "const ", "type "].iter().any(|start| bare.starts_with(start)),
                "enum" => bare.starts_with(char::is_uppercase),
                _ => false,
            };
        if belongs {
            list.insert(format!("{owner}: {declaration}"));
        }
    }
}

fn interface() -> String {
    let exports = Exports::read();
    let mut list = BTreeSet::new();
    for (file, code) in sources() {
        items(&file, &code, &exports, &mut list);
    }
    list.extend(exports.items.iter().map(|name| format!("use {name}")));
    list.extend(exports.modules.iter().map(|name| format!("pub mod {name}")));
    list.extend(
        Counters::default().iter().map(|counter| format!("Counters: pub {}", counter.name)),
    );
    list.into_iter().map(|line| line + "\n").collect()
}

#[test]
fn the_public_interface_is_the_listed_one() {
    let (listed, found) = (path("tests/api.txt"), interface());
    if std::env::var_os("SOCKETSERVER_WRITE_API").is_some_and(|value| value == "1") {
        fs::write(&listed, &found).unwrap();
    }
    let listed = fs::read_to_string(listed).unwrap();
    let (listed, found): (BTreeSet<_>, BTreeSet<_>) =
        (listed.lines().collect(), found.lines().collect());
    let gone: Vec<_> = listed.difference(&found).collect();
    let new: Vec<_> = found.difference(&listed).collect();
    assert!(
        gone.is_empty() && new.is_empty(),
        "the public interface has changed; if that is intended, write it in CHANGELOG.md and run \
         this test with SOCKETSERVER_WRITE_API=1\ngone: {gone:#?}\nnew: {new:#?}"
    );
}

#[test]
fn the_list_contains_methods_fields_variants_and_implementations() {
    let interface = interface();
    for line in [
        "impl Server: pub fn new() -> Result<Self, Error>",
        "StopReport: pub idle: usize",
        "CloseReason: Eof",
        "Handler: fn on_message(&mut self, message: &[u8], cx: &mut Context<'_>) -> HandlerResult",
        "impl AsFd for Server",
        "use TcpServer",
        "Counters: pub accepted",
    ] {
        assert!(interface.lines().any(|listed| listed == line), "{line}");
    }
    assert!(!interface.contains("pub(crate)"));
}
