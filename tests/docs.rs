//! The guides for Python users: every row links tests that exist, every name of Python's module has
//! a row, and both languages have the same rows and programs. The pages on attacks, on events and on
//! limits: every test that they name exists, and every event, effect, limit and counter has a row.
//! The documentation of the interface: every item of `tests/api.txt` has an example, and every type
//! that a page of the guide names links to that page.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use socketserver::{CounterKind, Counters};

/// The guide in both languages.
const PAGES: [&str; 2] = ["docs/from-python.md", "docs/from-python.zh-CN.md"];

/// The names of Python's module: `__all__`, then those of servers in its documentation and source,
/// then those of handlers.
const NAMES: &str = "
    BaseServer TCPServer UDPServer UnixStreamServer UnixDatagramServer ThreadingMixIn
    ThreadingTCPServer ThreadingUDPServer ThreadingUnixStreamServer ThreadingUnixDatagramServer
    ForkingMixIn ForkingTCPServer ForkingUDPServer ForkingUnixStreamServer
    ForkingUnixDatagramServer BaseRequestHandler StreamRequestHandler DatagramRequestHandler

    timeout address_family socket_type request_queue_size allow_reuse_address allow_reuse_port
    max_packet_size daemon_threads block_on_close max_children active_children server_address
    RequestHandlerClass socket __init__ server_bind server_activate fileno serve_forever
    handle_request shutdown server_close __enter__ __exit__ get_request verify_request
    process_request process_request_thread finish_request shutdown_request close_request
    handle_error handle_timeout service_actions collect_children

    setup handle finish request client_address server rfile wfile connection packet rbufsize
    wbufsize disable_nagle_algorithm
";

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The cells of each row of each table, without the headings.
fn rows(page: &str) -> Vec<Vec<&str>> {
    let is_row = |line: &&str| line.starts_with("| ") && !line.starts_with("| Python |");
    let rows = page.lines().filter(is_row);
    rows.map(|row| row.trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

/// The targets of the links of a text.
fn links(text: &str) -> Vec<&str> {
    text.split("](").skip(1).map(|rest| rest.split_once(')').unwrap().0).collect()
}

/// The parts of a text in back quotes.
fn code(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// The programs of a page, without comments and string literals.
fn programs(page: &str) -> Vec<String> {
    let bare = |line: &str| {
        let code = line.split("//").next().unwrap().split("  # ").next().unwrap();
        code.split('"').step_by(2).collect::<String>().trim().to_owned()
    };
    let blocks = page.split("```").skip(1).step_by(2);
    blocks.map(|block| block.lines().map(bare).collect::<Vec<_>>().join("\n")).collect()
}

#[test]
fn every_linked_test_exists() {
    for name in PAGES {
        let page = read(name);
        for link in links(&page).into_iter().filter(|link| !link.starts_with("https://")) {
            let (path, function) = link.split_once('#').unwrap_or((link, ""));
            if path.ends_with(".rs") && !function.is_empty() {
                let file = read(&format!("docs/{path}"));
                assert!(file.contains(&format!("fn {function}(")), "{name}: {link}");
            }
        }
    }
}

#[test]
fn every_row_ends_with_a_test() {
    for name in PAGES {
        let page = read(name);
        for row in rows(&page) {
            assert_eq!(row.len(), 4, "{name}: {row:?}");
            let links = links(row[3]);
            let is_test = |link: &&str| link.starts_with("../tests/") && link.contains('#');
            assert!(!links.is_empty() && links.iter().all(is_test), "{name}: {row:?}");
        }
    }
}

#[test]
fn every_name_of_pythons_module_has_a_row() {
    for page in PAGES {
        let page = read(page);
        let of = |name: &&str| name.split('(').next().map(str::to_owned);
        let rows: Vec<_> =
            rows(&page).iter().flat_map(|row| code(row[0])).filter_map(|name| of(&name)).collect();
        for name in NAMES.split_whitespace() {
            assert!(rows.iter().any(|row| row == name), "{name}");
        }
    }
}

#[test]
fn both_languages_have_the_same_rows_and_programs() {
    let [english, chinese] = PAGES.map(read);
    let (ours, theirs) = (rows(&english), rows(&chinese));
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(links(ours[3]), links(theirs[3]));
        let sorted = |cell: &str| {
            let mut code: Vec<_> = code(cell).into_iter().map(str::to_owned).collect();
            code.sort();
            code
        };
        for cell in 0..2 {
            assert_eq!(sorted(ours[cell]), sorted(theirs[cell]), "{}", ours[0]);
        }
    }
    assert_eq!(ours.len(), theirs.len());
    let (ours, theirs) = (programs(&english), programs(&chinese));
    ours.iter().zip(&theirs).for_each(|(ours, theirs)| assert_eq!(ours, theirs));
    assert_eq!(ours.len(), theirs.len());
}

#[test]
fn the_readme_links_both_pages() {
    let readme = read("README.md");
    for page in PAGES {
        assert!(links(&readme).contains(&page), "{page}");
    }
}

/// The tests that the last cell of a row names, as file and function.
fn tests_of<'a>(row: &[&'a str]) -> Vec<(&'a str, &'a str)> {
    let names = row.last().map(|cell| code(cell)).unwrap_or_default();
    names.iter().filter_map(|name| name.split_once("::")).collect()
}

/// Each row names a test, and each test that it names exists.
fn expect_tests(row: &[&str]) {
    let tests = tests_of(row);
    assert!(!tests.is_empty(), "no `file::test_name`: {row:?}");
    for (file, name) in tests {
        // A name may contain modules; the last part is the function.
        let function = name.rsplit("::").next().unwrap();
        assert!(text_of(file).contains(&format!("fn {function}(")), "{file}::{name}: {row:?}");
    }
}

/// The text of a test file, with that of the folder beside it. A unit test may be in any file of `src`.
fn text_of(file: &str) -> String {
    if file == "lib" {
        return sources("src");
    }
    read(&format!("tests/{file}.rs")) + &sources(&format!("tests/{file}"))
}

#[test]
fn every_attack_names_a_test_that_exists() {
    let page = read("docs/attacks.md");
    let rows = rows(&page);
    let rows: Vec<_> = rows.iter().filter(|row| !row[0].starts_with("what an attacker")).collect();
    assert!(!rows.is_empty(), "the page has no table");
    for row in rows {
        assert_eq!(row.len(), 3, "{row:?}");
        expect_tests(row);
    }
}

/// The methods that a source file has, as far as their declarations begin so.
fn methods(path: &str, begin: &str) -> Vec<String> {
    let source = read(path);
    let names = source.lines().filter_map(|line| line.strip_prefix(begin));
    names.map(|rest| rest.split(['(', '<']).next().unwrap().to_owned()).collect()
}

#[test]
fn every_event_and_effect_has_a_row_and_every_row_a_test_that_exists() {
    let page = read("docs/events.md");
    let (_, tables) = page.split_once("## Events").expect("the tables of events and effects");
    let headings = ["event", "effect", "rule", "a thread that"];
    let rows: Vec<_> = rows(tables).into_iter().filter(|row| !headings.contains(&row[0])).collect();
    rows.iter().for_each(|row| expect_tests(row));
    let named: Vec<_> = rows.iter().flat_map(|row| code(row[0])).collect();
    let events = methods("src/conversation/handler.rs", "    fn on_");
    let events = events.into_iter().map(|event| format!("on_{event}"));
    let effects = methods("src/conversation/context.rs", "    pub fn ");
    for name in events.chain(effects) {
        assert!(named.contains(&&name[..]), "{name}");
    }
}

#[test]
fn every_limit_has_a_row_and_every_row_a_test_that_exists() {
    let page = read("docs/limits.md");
    let (limits, _) = page.split_once("## Counters").expect("the tables of limits");
    let rows: Vec<_> = rows(limits).into_iter().filter(|row| row[0] != "limit").collect();
    for row in &rows {
        assert_eq!(row.len(), 7, "{row:?}");
        expect_tests(row);
    }
    let named: Vec<_> = rows.iter().flat_map(|row| code(row[0])).collect();
    let bare = |name: &str| name.strip_prefix("Limits::").unwrap_or(name).to_owned();
    let named: Vec<_> = named.into_iter().map(bare).collect();
    for name in methods("src/limits.rs", "    pub fn ") {
        assert!(named.contains(&name), "{name}");
    }
    for name in ["Server::max_connections", "Server::max_memory"] {
        assert!(named.iter().any(|row| row == name), "{name}");
    }
    let verdicts: Vec<_> = rows.iter().flat_map(|row| code(row[2])).collect();
    let errors = read("src/error.rs");
    let (_, variants) = errors.split_once("pub enum Limit {").expect("the enum");
    let (variants, _) = variants.split_once("\n}").expect("its end");
    for name in variants.lines().filter_map(|line| line.trim().strip_suffix(',')) {
        if !name.starts_with("//") {
            assert!(verdicts.contains(&&format!("Limit::{name}")[..]), "Limit::{name}");
        }
    }
}

#[test]
fn every_counter_has_a_row_with_its_kind_and_its_documentation() {
    let page = read("docs/limits.md");
    let (limits, counters) = page.split_once("## Counters").expect("the table of counters");
    let rows: Vec<_> = rows(counters).into_iter().filter(|row| row[0] != "counter").collect();
    let counters: Vec<_> = Counters::default().iter().collect();
    for (row, counter) in rows.iter().zip(&counters) {
        let kind = match counter.kind {
            CounterKind::Total => "total",
            CounterKind::Gauge => "gauge",
            _ => "maximum",
        };
        assert_eq!(row[..2], [&format!("`{}`", counter.name)[..], kind]);
        assert_eq!(without_links(row[2]), without_links(counter.help));
    }
    assert_eq!(rows.len(), counters.len());
    let limits = self::rows(limits);
    for name in limits.iter().flat_map(|row| code(row.get(3).copied().unwrap_or_default())) {
        assert!(counters.iter().any(|counter| counter.name == name), "{name}");
    }
}

/// A text without the targets of its links: "[`Sender`](crate::Sender)" is "`Sender`".
fn without_links(text: &str) -> String {
    let mut parts = text.split("](");
    let mut bare = parts.next().unwrap().to_owned();
    for part in parts {
        bare.push_str(part.split_once(')').expect("the end of a link").1);
    }
    bare.replace('[', "")
}

/// The text of all source files in a directory and those in it, if it exists.
fn sources(path: &str) -> String {
    let mut directories = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(path)];
    let mut sources = String::new();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                sources.push_str(&fs::read_to_string(path).unwrap());
            }
        }
    }
    sources
}

/// The documentation of the declarations in `src`: of `Type` and of `Type::method`.
fn documentation() -> BTreeMap<String, String> {
    let sources = sources("src");
    let (mut found, mut docs, mut owner) = (BTreeMap::new(), String::new(), String::new());
    for line in sources.lines().map(str::trim) {
        if line.starts_with("///") || line.starts_with("#[doc = ") {
            docs.push_str(line.trim_start_matches("///"));
            docs.push('\n');
        } else if line.is_empty() || line.starts_with('}') {
            docs.clear();
        } else if let Some((kind, name)) = declared(line) {
            if ["struct", "enum", "trait", "type"].contains(&kind) {
                owner = name.to_owned();
            }
            let is_method = ["fn", "const"].contains(&kind) && !owner.is_empty();
            let name = if is_method { format!("{owner}::{name}") } else { name.to_owned() };
            // What is declared for each system is documented once.
            let docs = std::mem::take(&mut docs);
            found.entry(name).and_modify(|all: &mut String| all.push_str(&docs)).or_insert(docs);
        } else if line.starts_with("impl") {
            owner = implementor(line).to_owned();
        }
        if line.starts_with("mod ") || line.starts_with("use ") {
            owner.clear();
        }
    }
    found
}

/// The kind and the name of what a line declares: a method of a trait, or a public item.
fn declared(line: &str) -> Option<(&str, &str)> {
    let line = line.strip_prefix("pub ").or(line.starts_with("fn ").then_some(line))?;
    let line = if line.contains(" fn ") { line.trim_start_matches("const ") } else { line };
    let (kind, rest) = line.split_once(' ')?;
    let end = rest.find(|c: char| !c.is_alphanumeric() && !"_$".contains(c));
    Some((kind, &rest[..end.unwrap_or(rest.len())]))
}

/// The type of an `impl` block, without its path and its parameters.
fn implementor(line: &str) -> &str {
    let of = match line.split_once(" for ") {
        Some((_, of)) => of,
        None if line.starts_with("impl<") => line.split_once("> ").map_or("", |(_, of)| of),
        None => &line["impl".len()..],
    };
    let path = of.trim_start().split(['<', ' ', '{']).next().unwrap();
    path.rsplit("::").next().unwrap()
}

/// The items of the public interface, as `Type`, `function` and `Type::method`.
fn interface() -> BTreeSet<String> {
    let mut items = BTreeSet::new();
    for line in read("tests/api.txt").lines() {
        if let Some(name) = line.strip_prefix("use ") {
            // Modules are exported by the paths of their items.
            if name.starts_with(char::is_uppercase) {
                items.insert(name.to_owned());
            }
        } else if line.starts_with("pub ") || line.starts_with("#[") {
            let (_, item) = line.split_once("pub ").unwrap();
            if let Some((kind, name)) = declared(&line[line.len() - item.len() - "pub ".len()..])
                && kind != "mod"
            {
                items.insert(name.to_owned());
            }
        } else if let Some((owner, item)) = line.split_once(": ") {
            let item = item.trim_start_matches("#[must_use] ");
            if let Some(("fn" | "const", name)) = declared(item) {
                let owner = if owner.starts_with("impl") { implementor(owner) } else { owner };
                items.insert(format!("{owner}::{name}"));
            }
        }
    }
    // Only the crate itself can call these.
    items.remove("HandlerMode::build");
    items.remove("RequestMode::build_requests");
    items
}

/// The examples of a documentation.
fn examples(docs: &str) -> String {
    docs.split("```").skip(1).step_by(2).collect()
}

#[test]
fn every_public_item_has_an_example_or_is_shown_in_that_of_its_type() {
    let documentation = documentation();
    // The declaration of Python's classes is one macro.
    let docs = |name: &str| documentation.get(name).or(documentation.get("$name")).unwrap();
    let mut without = Vec::new();
    let interface = interface();
    for name in
        ["Server", "broadcast", "Builder::serve_with", "Request::read_line", "Hooks::on_accept"]
    {
        assert!(interface.contains(name), "{name}: {interface:#?}");
    }
    for item in interface {
        let is_shown = item.split_once("::").is_some_and(|(owner, name)| {
            let examples = examples(docs(owner));
            [format!(".{name}("), format!("::{name}"), format!("fn {name}(")]
                .iter()
                .any(|call| examples.contains(call))
        });
        if !is_shown && examples(docs(&item)).is_empty() {
            without.push(item);
        }
    }
    assert!(without.is_empty(), "no example: {without:#?}");
}

#[test]
fn every_type_that_a_page_of_the_guide_names_links_to_that_page() {
    let documentation = documentation();
    let mut faults = Vec::new();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/guide")).unwrap() {
        let path = entry.unwrap().path();
        let page = path.file_stem().unwrap().to_str().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let names = text.split("[`").skip(1).filter_map(|rest| rest.split(['`', ':']).next());
        for name in names.collect::<BTreeSet<_>>() {
            // Modules are none of the items.
            let is_module = ["guide", "testing"].contains(&name);
            let Some(docs) = documentation.get(name).filter(|_| !is_module) else {
                continue;
            };
            if !docs.contains(&format!("(crate::guide::{page})")) {
                faults.push(format!("{name} does not link to guide::{page}"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
