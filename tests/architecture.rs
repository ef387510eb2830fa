//! The structure of the source: imports follow the drawing of the modules in `docs/design.md`, no two
//! types share a name, and files and functions are short.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The largest number of lines of code in a file, without blank lines, comments and tests.
const LONGEST_FILE: usize = 500;

/// The largest number of lines in a function, from its signature to its closing brace.
const LONGEST_FUNCTION: usize = 60;

/// Type names that are defined once per platform.
const PER_PLATFORM: [&str; 1] = ["SourceAddress"];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every source file, except those of unit tests and the pages of the guide, with its path below `src`.
fn files() -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    let mut directories = vec![source()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|ext| ext == "rs")
                && path.file_name().unwrap() != "tests.rs"
            {
                let name = path.strip_prefix(source()).unwrap().to_str().unwrap().to_owned();
                files.insert(name, fs::read_to_string(&path).unwrap());
            }
        }
    }
    files
}

/// The rows of the drawing, top row first; each names its modules.
fn rows() -> Vec<Vec<String>> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/design.md");
    let page = fs::read_to_string(page).unwrap();
    let (_, drawing) = page.split_once("```text\n").expect("the page has a drawing");
    let (drawing, _) = drawing.split_once("```").expect("the drawing ends");
    let mut rows: Vec<Vec<String>> = Vec::new();
    for line in drawing.lines() {
        let (modules, _) = line.split_once("  ").expect("modules, two spaces and a description");
        rows.push(modules.split('|').map(|module| module.trim().to_owned()).collect());
    }
    rows
}

/// The row of a module; the top row is 0.
fn row_of(rows: &[Vec<String>], module: &str) -> usize {
    let row = rows.iter().position(|row| row.iter().any(|name| name == module));
    row.unwrap_or_else(|| panic!("the drawing in docs/design.md lacks the module `{module}`"))
}

/// The top module that a file belongs to.
fn module_of(file: &str) -> &str {
    file.split(['/', '.']).next().unwrap()
}

/// The lines of a file without its comments and the unit tests at its end.
fn code(text: &str) -> Vec<&str> {
    let library = text.split("\n#[cfg(test)]\nmod ").next().unwrap();
    let is_code = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with("//");
    library.lines().filter(is_code).collect()
}

/// The top modules that a file imports by `crate::`.
fn imports(text: &str) -> Vec<String> {
    let code = code(text).join("\n");
    let mut found = Vec::new();
    for rest in code.split("crate::").skip(1) {
        let name: String =
            rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
        if !name.is_empty() {
            found.push(name);
        }
    }
    found
}

#[test]
fn imports_point_downward_only() {
    let rows = rows();
    let mut faults = Vec::new();
    for (file, text) in files() {
        let module = module_of(&file);
        if module == "lib" {
            continue;
        }
        for import in imports(&text) {
            if import != module && row_of(&rows, &import) <= row_of(&rows, module) {
                faults.push(format!("{file} imports `{import}`"));
            }
        }
    }
    assert!(faults.is_empty(), "these imports do not point downward:\n{}", faults.join("\n"));
}

#[test]
fn the_drawing_names_every_module_once() {
    let mut drawn: Vec<String> = rows().into_iter().flatten().collect();
    let mut modules: Vec<String> = files().keys().map(|file| module_of(file).to_owned()).collect();
    modules.dedup();
    drawn.sort();
    modules.sort();
    modules.dedup();
    assert_eq!(drawn, modules);
}

#[test]
fn no_two_types_share_a_name() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (file, text) in files() {
        for line in code(&text) {
            let line = line.trim_start();
            let line = line.strip_prefix("pub ").unwrap_or(line);
            let line = match line.strip_prefix("pub(") {
                Some(rest) => rest.split_once(") ").map_or(line, |(_, rest)| rest),
                None => line,
            };
            for kind in ["struct ", "enum ", "trait ", "union "] {
                if let Some(rest) = line.strip_prefix(kind) {
                    let name = rest.chars().take_while(|c| c.is_alphanumeric()).collect();
                    places.entry(name).or_default().push(file.clone());
                }
            }
        }
    }
    places.retain(|name, places| places.len() > 1 && !PER_PLATFORM.contains(&name.as_str()));
    assert!(places.is_empty(), "types of one name: {places:#?}");
}

#[test]
fn files_and_functions_are_short() {
    let mut faults = Vec::new();
    for (file, text) in files() {
        let code = code(&text);
        if code.len() > LONGEST_FILE {
            faults.push(format!("{file} has {} lines of code", code.len()));
        }
        let mut open: Option<(usize, usize, &str)> = None;
        for (number, line) in code.iter().enumerate() {
            let indent = line.len() - line.trim_start().len();
            let is_function = line.contains("fn ") && !line.trim_end().ends_with(';');
            match open {
                None if is_function && !line.trim_end().ends_with('}') => {
                    open = Some((number, indent, line));
                }
                Some((start, at, first)) if indent == at && line.trim() == "}" => {
                    let lines = number + 1 - start;
                    if lines > LONGEST_FUNCTION {
                        faults.push(format!("{file}: `{}` has {lines} lines", first.trim()));
                    }
                    open = None;
                }
                _ => {}
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
