//! All pages of the repository: every link between them has a target, also in the package that is
//! published.

#[path = "support/pages.rs"]
mod pages;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use pages::{pages, read, root};

/// The text of a page without its programs and without what is in back quotes.
fn prose(page: &str) -> String {
    let blocks = page.split("```").step_by(2);
    blocks.map(|text| text.split('`').step_by(2).collect::<String>()).collect()
}

/// The relative links of a page: the path from the root of the repository, and the anchor.
fn links(page: &Path) -> Vec<(PathBuf, String)> {
    let text = prose(&read(page));
    let targets =
        text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link);
    let relative = |link: &&str| !link.contains("://") && !link.contains("::") && *link != "crate";
    let links = targets.filter(relative).map(|link| {
        let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
        let path = match path {
            "" => page.to_owned(),
            path => clean(&page.parent().unwrap().join(path)),
        };
        (path, anchor.to_owned())
    });
    links.collect()
}

/// A path without `..`.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => assert!(clean.pop(), "{}", path.display()),
            part => clean.push(part),
        }
    }
    clean
}

/// The anchors of the headings of a page.
fn anchors(page: &str) -> Vec<String> {
    let headings = page.lines().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| {
        let text = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        text.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect()
    };
    headings.map(anchor).collect()
}

/// The pages of the guide, whose links rustdoc checks.
fn is_guide(page: &Path) -> bool {
    page.starts_with("src")
}

#[test]
fn every_link_of_every_page_has_a_target() {
    let mut faults = Vec::new();
    for page in pages().into_iter().filter(|page| !is_guide(page)) {
        for (path, anchor) in links(&page) {
            let target = root().join(&path);
            let found = match path.extension().is_some_and(|end| end == "md") {
                _ if !target.exists() => false,
                true if !anchor.is_empty() => anchors(&read(&path)).contains(&anchor),
                // In a source file, the anchor is the name of a test.
                false if !anchor.is_empty() => read(&path).contains(&format!("fn {anchor}(")),
                _ => true,
            };
            if !found {
                faults.push(format!("{}: {}#{anchor}", page.display(), path.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_link_of_a_packaged_page_has_its_target_in_the_package() {
    // In the package itself, the test above has looked at these files.
    if root().join("Cargo.toml.orig").exists() {
        return;
    }
    let output = Command::new(env!("CARGO"))
        .args(["package", "--list", "--allow-dirty", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let list = String::from_utf8(output.stdout).unwrap();
    let files: BTreeSet<&Path> = list.lines().map(Path::new).collect();
    let is_packaged = |path: &Path| {
        // A link to a folder needs one file in it.
        files.contains(path) || files.iter().any(|file| file.starts_with(path))
    };
    let mut faults = Vec::new();
    for page in pages().into_iter().filter(|page| files.contains(&**page) && !is_guide(page)) {
        for (path, _) in links(&page) {
            if !is_packaged(&path) {
                faults.push(format!("{}: {}", page.display(), path.display()));
            }
        }
    }
    assert!(faults.is_empty(), "not in the package:\n{}", faults.join("\n"));
    for file in [
        "README.md",
        "CHANGELOG.md",
        "docs/design.md",
        "contrib/echo.service",
        "src/guide/limits.md",
    ] {
        assert!(files.contains(Path::new(file)), "{file}");
    }
}

#[test]
fn every_page_of_the_guide_is_in_its_table() {
    let guide = fs::read_to_string(root().join("src/guide.rs")).unwrap();
    for page in pages().iter().filter(|page| is_guide(page)) {
        let name = page.file_stem().unwrap().to_str().unwrap();
        assert!(guide.contains(&format!("[`{name}`] |")), "{name} is not in the table");
        assert!(guide.contains(&format!("    {name}: \"guide/{name}.md\";")), "{name}");
    }
}

/// The documentation names files by their paths, since rustdoc has no link to them.
#[test]
fn every_file_that_the_documentation_names_exists() {
    let mut directories = vec![root().join("src")];
    let mut named = BTreeSet::new();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let text = fs::read_to_string(path).unwrap();
            let parts = text.split('`').skip(1).step_by(2);
            let is_file = |part: &&str| {
                ["docs/", "examples/", "contrib/", "tests/"]
                    .iter()
                    .any(|folder| part.starts_with(folder))
            };
            named.extend(parts.filter(is_file).map(str::to_owned));
        }
    }
    assert!(named.contains("docs/events.md"), "{named:?}");
    for file in named {
        assert!(root().join(&file).exists(), "{file}");
    }
}
