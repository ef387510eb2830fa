//! The pages for users, in both languages: both link the same, the printed programs are those that
//! tests run, and figures are those of the benchmarks' pages.

#[path = "support/programs.rs"]
mod programs;
#[path = "support/tools.rs"]
mod tools;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use programs::{Program, connect, example, spawn};

/// The pages that exist in two languages.
const TRANSLATED: [[&str; 2]; 4] = [
    ["README.md", "README.zh-CN.md"],
    ["docs/from-python.md", "docs/from-python.zh-CN.md"],
    ["examples/README.md", "examples/README.zh-CN.md"],
    ["tests/python/README.md", "tests/python/README.zh-CN.md"],
];

fn path_of(page: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(page)
}

fn read(page: &str) -> String {
    let path = path_of(page);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The blocks of a page between lines of three back quotes, each with its language.
fn blocks(page: &str) -> Vec<(&str, &str)> {
    let blocks = page.split("```").skip(1).step_by(2);
    blocks.map(|block| block.split_once('\n').unwrap()).collect()
}

/// A page without its blocks of code.
fn prose(page: &str) -> String {
    page.split("```").step_by(2).collect()
}

/// The targets of the links of a text.
fn links(text: &str) -> Vec<&str> {
    text.split("](").skip(1).map(|rest| rest.split_once(')').unwrap().0).collect()
}

/// The rows of the tables of a page, without headings.
fn rows(page: &str) -> Vec<Vec<&str>> {
    let lines: Vec<_> = page.lines().collect();
    let is_row = |line: &str| line.starts_with("| ");
    let is_heading = |at: usize| lines.get(at + 1).is_some_and(|next| next.starts_with("|-"));
    let rows = (0..lines.len()).filter(|&at| is_row(lines[at]) && !is_heading(at));
    rows.map(|at| lines[at].trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

// ---- links

#[test]
fn both_languages_link_the_same_targets_or_their_translations() {
    for [english, chinese] in TRANSLATED {
        let targets = |page: &str| -> BTreeSet<String> {
            let text = prose(&read(page));
            let links = links(&text).into_iter().map(|link| link.replace(".zh-CN.md", ".md"));
            // Headings have other names, and Python's documentation has another address.
            let links = links.map(|link| link.replace("/zh-cn/3/", "/3/"));
            links
                .map(|link| match link.split_once(".md#") {
                    Some((page, _)) => format!("{page}.md"),
                    None if link.starts_with('#') => "#".to_owned(),
                    None => link,
                })
                .collect()
        };
        let (ours, theirs) = (targets(english), targets(chinese));
        let missing: Vec<_> = ours.difference(&theirs).collect();
        assert!(missing.iter().all(|link| link.ends_with(".md")), "not in {chinese}: {missing:?}");
    }
}

#[test]
fn both_languages_have_the_same_commands_and_rows() {
    for [english, chinese] in TRANSLATED {
        let (ours, theirs) = (read(english), read(chinese));
        assert_eq!(commands(&ours), commands(&theirs), "{english}");
        let (ours, theirs) = (rows(&ours), rows(&theirs));
        assert_eq!(ours.len(), theirs.len(), "{english}");
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert_eq!(ours.len(), theirs.len(), "{ours:?}");
            let files = |row: &[&str]| {
                let links = row.iter().flat_map(|cell| links(cell));
                links
                    .filter(|link| !link.contains(".md") && !link.starts_with('#'))
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            };
            assert_eq!(files(ours), files(theirs));
        }
    }
}

#[test]
fn every_example_has_a_row() {
    for page in ["examples/README.md", "examples/README.zh-CN.md"] {
        let page = read(page);
        let linked: Vec<_> = rows(&page).iter().flat_map(|row| links(row[0])).collect();
        for entry in fs::read_dir(path_of("examples")).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let file = if name.ends_with(".rs") { name.clone() } else { format!("{name}/main.rs") };
            if path_of("examples").join(&file).exists() {
                assert!(linked.contains(&&file[..]), "{file}");
            }
        }
    }
}

// ---- programs

/// A program without what a translation changes: comments, and texts.
fn bare(program: &str) -> String {
    let lines = program.lines().map(|line| line.split("//").next().unwrap().trim_end());
    lines.map(|line| line.split('"').step_by(2).collect::<String>()).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_printed_programs_are_those_that_tests_run() {
    for (pages, language, file) in [
        (TRANSLATED[0], "rust,no_run", "tests/readme/program.rs"),
        (TRANSLATED[1], "rust,no_run", "tests/python/same/program.rs"),
        (TRANSLATED[1], "python", "tests/python/same/program.py"),
    ] {
        let ran = read(file);
        let printed = pages.map(read);
        let [ours, theirs] = [&printed[0], &printed[1]].map(|page| {
            blocks(page).into_iter().find(|block| block.0 == language).expect("the program").1
        });
        assert_eq!(ours, ran, "{}", pages[0]);
        assert_eq!(bare(theirs), bare(&ran), "{}", pages[1]);
    }
}

/// The program of the README, which listens at a free port, and its URL.
fn readme_program() -> (Program, String) {
    let program = spawn(&mut Command::new(example("readme_program")));
    let line = program.next_line().unwrap();
    let url = line.strip_prefix("listening on ").unwrap().to_owned();
    (program, url)
}

#[test]
fn the_session_of_the_readme_has_this_output() {
    if !tools::have_programs(&["nc"]) {
        return;
    }
    for page in TRANSLATED[0] {
        let page = read(page);
        let (_, session) = blocks(&page).into_iter().find(|block| block.0 == "console").unwrap();
        let (command, output) = session.split_once('\n').unwrap();
        let (program, url) = readme_program();
        let command = command.strip_prefix("$ ").unwrap();
        let command = command.replace("9999", url.rsplit(':').next().unwrap());
        let ended = spawn(Command::new("sh").args(["-c", &command])).end();
        assert_eq!(ended.succeeds().stdout, output.lines().collect::<Vec<_>>());
        program.signal("INT");
        assert_eq!(program.end().status.code(), Some(0));
    }
}

#[test]
fn the_program_of_the_readme_answers_line_by_line() {
    let (program, url) = readme_program();
    let mut client = connect(&url);
    client.send("hel").expect_silence().send("lo\nx\n").expect("HELLO\nX\n");
    client.half_close().expect_end();
    program.signal("TERM");
    assert_eq!(program.end().status.code(), Some(0));
}

// ---- commands

/// The commands of a page, without their comments.
fn commands(page: &str) -> Vec<String> {
    let scripts = blocks(page).into_iter().filter(|block| block.0 == "sh");
    let lines = scripts.flat_map(|(_, script)| script.lines());
    let bare = |line: &str| line.split("  #").next().unwrap().trim().to_owned();
    lines.map(bare).filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

#[test]
fn the_benchmarks_of_the_readme_have_these_servers_and_scenarios() {
    let readme = read("README.md");
    let peers = read("docs/benchmarks/peers.md");
    let command =
        commands(&readme).into_iter().find(|line| line.contains("benches/peers/Cargo.toml -- "));
    let command = command.unwrap();
    for list in ["--servers ", "--scenarios "] {
        let list = command.split_once(list).unwrap().1.split(' ').next().unwrap();
        for name in list.split(',') {
            assert!(peers.contains(&format!("`{name}`")), "{name}");
        }
    }
}

#[test]
fn the_figures_of_the_readme_are_those_of_the_benchmarks_pages() {
    let pages =
        ["peers", "originals", "engines"].map(|name| read(&format!("docs/benchmarks/{name}.md")));
    let pages = pages.concat();
    for readme in TRANSLATED[0] {
        let text = read(readme);
        let mut seen = 0;
        for (at, _) in text.match_indices(" [") {
            let rest = &text[at + 2..];
            let Some((interval, _)) = rest.split_once(']') else { continue };
            if !interval.contains("..") {
                continue;
            }
            let before = &text[..at];
            let median = &before[before.rfind(' ').unwrap() + 1..];
            assert!(pages.contains(&format!("{median} [{interval}]")), "{median} [{interval}]");
            seen += 1;
        }
        assert!(seen >= 18, "{readme}: {seen} figures");
    }
}
