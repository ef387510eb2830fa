//! The upper bounds of the counted costs of `socketserver`'s servers. `--check` of the counting
//! commands fails if a figure exceeds its bound.
//!
//! The figures are counted and not timed, so they are the same on a busy machine.

use std::fmt;

use anyhow::{Result, bail};

use super::table::Table;

/// A figure that has a bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Figure {
    CallsPerRequest,
    CallsPerConnection,
    InstructionsPerRequest,
    BytesPerConnection,
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Figure::CallsPerRequest => "system calls / request",
            Figure::CallsPerConnection => "system calls / short-lived connection",
            Figure::InstructionsPerRequest => "user instructions / request",
            Figure::BytesPerConnection => "bytes / idle connection",
        })
    }
}

/// Servers, figures and bounds. A short-lived connection costs six calls and its share of the
/// waits, which depends on how many connections arrive at once: 6.08 to 6.17.
const BOUNDS: [(&str, Figure, f64); 8] = [
    ("ours", Figure::CallsPerRequest, 2.05),
    ("ours", Figure::CallsPerConnection, 6.25),
    ("ours", Figure::InstructionsPerRequest, 315.0),
    ("ours", Figure::BytesPerConnection, 256.0),
    ("ours-lines", Figure::CallsPerRequest, 2.05),
    ("ours-lines", Figure::CallsPerConnection, 6.25),
    ("ours-lines", Figure::InstructionsPerRequest, 451.0),
    ("ours-offload", Figure::BytesPerConnection, 256.0),
];

/// The servers that have a bound for one of `figures`.
pub(super) fn bounded(figures: &[Figure]) -> Vec<&'static str> {
    let with_bound = BOUNDS.iter().filter(|(_, figure, _)| figures.contains(figure));
    let mut names: Vec<_> = with_bound.map(|(server, ..)| *server).collect();
    names.dedup();
    names
}

/// Counted figures and their bounds.
pub(super) struct Check {
    table: Table,
    exceeded: Vec<String>,
}

impl Check {
    pub(super) fn new() -> Self {
        Check {
            table: Table::new(["server", "figure", "counted", "at most"]),
            exceeded: Vec::new(),
        }
    }

    /// Compares a figure with its bound. A figure that could not be counted fails.
    pub(super) fn add(&mut self, server: &str, figure: Figure, counted: Option<f64>) {
        let bound = BOUNDS.iter().find(|(name, of, _)| *name == server && *of == figure);
        let Some((_, _, most)) = bound else {
            return;
        };
        let shown = counted.map_or("not counted".into(), |counted| format!("{counted:.3}"));
        if counted.is_none_or(|counted| counted > *most) {
            self.exceeded.push(format!("{server}, {figure}: {shown}, at most {most}"));
        }
        self.table.row([server.into(), figure.to_string(), shown, most.to_string()]);
    }

    /// Prints the table; fails if a bound is exceeded.
    pub(super) fn end(self) -> Result<()> {
        println!("{}", self.table);
        if !self.exceeded.is_empty() {
            bail!("over the bound:\n  {}", self.exceeded.join("\n  "));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_at_its_bound_passes() {
        let mut check = Check::new();
        check.add("ours", Figure::CallsPerRequest, Some(2.05));
        assert!(check.end().is_ok());
    }

    #[test]
    fn a_figure_over_its_bound_fails() {
        let mut check = Check::new();
        check.add("ours", Figure::InstructionsPerRequest, Some(315.1));
        let error = check.end().unwrap_err().to_string();
        assert!(
            error.contains("ours, user instructions / request: 315.100, at most 315"),
            "{error}"
        );
    }

    #[test]
    fn a_figure_that_could_not_be_counted_fails() {
        let mut check = Check::new();
        check.add("ours-lines", Figure::CallsPerRequest, None);
        assert!(check.end().is_err());
    }

    #[test]
    fn every_server_with_a_bound_is_listed_once() {
        let figures = [Figure::CallsPerRequest, Figure::InstructionsPerRequest];
        assert_eq!(bounded(&figures), ["ours", "ours-lines"]);
        assert_eq!(bounded(&[Figure::BytesPerConnection]), ["ours", "ours-offload"]);
    }
}
