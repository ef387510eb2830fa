//! A boxed handler or framing behaves as the value in the box: the box forwards every method of the
//! trait. A method that it did not forward would silently be the trait's default, so the test reads
//! the source.

use std::fs;
use std::path::Path;

/// The file of a trait, the trait, and the type that forwards it.
const FORWARDED: [(&str, &str, &str); 3] = [
    ("src/conversation/handler.rs", "Handler", "Box<H>"),
    ("src/conversation/framing.rs", "Framing", "Box<F>"),
    ("src/blocking/request/mod.rs", "RequestHandler", "Box<R>"),
];

/// The lines of the block whose first line fulfils `begins`.
fn block(source: &str, begins: impl Fn(&str) -> bool) -> Vec<&str> {
    let lines = source.lines().skip_while(|line| !begins(line));
    lines.take_while(|line| *line != "}").collect()
}

/// The names of the methods in a block.
fn methods<'a>(block: &[&'a str]) -> Vec<&'a str> {
    let heads = block.iter().filter_map(|line| line.strip_prefix("    fn "));
    heads.map(|head| head.split(['(', '<']).next().unwrap()).collect()
}

#[test]
fn a_box_forwards_every_method_of_its_trait() {
    for (path, name, forwards) in FORWARDED {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        let source = fs::read_to_string(&path).unwrap();
        let head = format!("pub trait {name}");
        let of_trait = block(&source, |line| line.starts_with(&head) && line.ends_with('{'));
        let ends = format!(" {name} for {forwards} {{");
        let of_box = block(&source, |line| line.starts_with("impl") && line.contains(&ends));
        let wanted = methods(&of_trait);
        assert!(!wanted.is_empty(), "{name} has no methods");
        assert_eq!(methods(&of_box), wanted, "{forwards} must forward every method of {name}");
        for method in wanted {
            let call = format!(").{method}(");
            let forwarded = |line: &&str| line.contains(&call);
            assert!(of_box.iter().any(forwarded), "{forwards} does not call {method}");
        }
    }
}
