//! The policy for dependencies, as in `deny.toml`, without cargo-deny: what a program gets that uses the
//! crate, under which licences, and from where.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The strings of the list `allow` in a section of `deny.toml`.
fn allowed(section: &str) -> BTreeSet<String> {
    let policy = read("deny.toml");
    let (_, rest) = policy.split_once(&format!("\n[{section}]")).expect("the section");
    let (_, rest) = rest.split_once("\nallow = [").expect("its list");
    let (list, _) = rest.split_once(']').expect("the end of the list");
    list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The packages of the dependency tree of the crate on this system, with their licences; build
/// dependencies too, those of tests and examples not.
fn packages() -> Vec<(String, String)> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--all-features", "--edges", "normal,build"])
        .args(["--prefix", "none", "--no-dedupe", "--format", "{p}|{l}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).unwrap();
    let packages = tree.lines().filter_map(|line| line.split_once('|'));
    packages
        .map(|(package, licence)| {
            (package.split(' ').next().unwrap().to_owned(), licence.to_owned())
        })
        .collect()
}

#[test]
fn the_crate_depends_on_the_packages_of_the_policy_and_no_others() {
    let names: BTreeSet<_> = packages().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, allowed("bans"), "a new dependency needs a reason, and a line in deny.toml");
}

#[test]
fn every_dependency_has_one_of_the_licences_of_the_policy() {
    let allowed = allowed("licenses");
    for (name, licence) in packages() {
        let mut choices = licence.split(" OR ");
        assert!(choices.any(|choice| allowed.contains(choice)), "{name}: {licence}");
    }
}

/// Those of tests and examples too.
#[test]
fn every_package_comes_from_crates_io_with_a_checksum() {
    let lock = read("Cargo.lock");
    for package in lock.split("[[package]]\n").skip(1) {
        let is_own = package.starts_with("name = \"socketserver\"\n");
        let source = "\nsource = \"registry+https://github.com/rust-lang/crates.io-index\"\n";
        let is_from_registry = package.contains(source) && package.contains("\nchecksum = \"");
        assert!(is_own || is_from_registry, "{package}");
    }
}
