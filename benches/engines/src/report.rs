//! Tables in Markdown for the terminal and in HTML for the page.

use std::collections::BTreeMap;
use std::fmt::Write;

use peers::bench::stats::Estimate;
use peers::bench::table::Table;

use crate::outcome::{Figure, Outcome, Row};
use crate::plan::{BLOCKING_WORKERS, Kind, POOL, thousands};
use crate::plots::Plot;
use crate::run::Conditions;

/// A table of one figure: a row per cell, a column per mode.
struct Matrix {
    title: &'static str,
    figure: Figure,
    /// Whether it also shows the spread of the rounds.
    with_spread: bool,
}

const MATRICES: [Matrix; 7] = [
    Matrix { title: "Requests per second", figure: Figure::RequestsPerSecond, with_spread: true },
    Matrix {
        title: "CPU time of the server per request, µs",
        figure: Figure::ServerCpuUsPerRequest,
        with_spread: true,
    },
    Matrix {
        title: "99 % of the answers came within, µs",
        figure: Figure::P99Us,
        with_spread: false,
    },
    Matrix {
        title: "Context switches of the server per request",
        figure: Figure::SwitchesPerRequest,
        with_spread: false,
    },
    Matrix {
        title: "System calls of the server per request",
        figure: Figure::SystemCallsPerRequest,
        with_spread: false,
    },
    Matrix {
        title: "Memory per connection, KiB of user space",
        figure: Figure::KibPerConnection,
        with_spread: false,
    },
    Matrix { title: "Threads of the server", figure: Figure::Threads, with_spread: false },
];

/// Reasons for missing figures, each with a letter.
#[derive(Default)]
struct Notes {
    letters: BTreeMap<String, char>,
}

impl Notes {
    fn letter(&mut self, reason: &str) -> char {
        let next = (b'a' + self.letters.len().min(25) as u8) as char;
        *self.letters.entry(reason.to_owned()).or_insert(next)
    }

    fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> =
            self.letters.iter().map(|(reason, letter)| format!("{letter}: {reason}.")).collect();
        lines.sort();
        lines
    }
}

/// All tables in Markdown; if there are only a few loads, one table per load.
pub(crate) fn markdown(conditions: &Conditions, rows: &[Row], by_load: bool) -> String {
    let mut text = format!("# The same handler under all modes\n\n{}\n", about(conditions));
    let mut notes = Notes::default();
    if by_load {
        for row in rows {
            let _ = write!(text, "\n**{}**\n\n{}", row.name, by_mode(row, &mut notes));
        }
    } else {
        for matrix in &MATRICES {
            if let Some(table) = table(matrix, rows, &mut notes) {
                let _ = write!(text, "\n**{}**\n\n{table}", matrix.title);
            }
        }
    }
    let lines = notes.lines();
    if !lines.is_empty() {
        let _ = writeln!(text, "\nn/a:\n");
        lines.iter().for_each(|line| {
            let _ = writeln!(text, "- {line}");
        });
    }
    text.push('\n');
    for remark in remarks(conditions, rows) {
        let _ = writeln!(text, "{remark}");
    }
    text
}

fn table(matrix: &Matrix, rows: &[Row], notes: &mut Notes) -> Option<Table> {
    let shown_rows: Vec<&Row> = rows
        .iter()
        .filter(|row| {
            row.outcomes.iter().any(|outcome| outcome.figures.contains_key(&matrix.figure))
        })
        .collect();
    let modes = shown_rows.first()?.outcomes.iter().map(|outcome| outcome.mode);
    let mut table = Table::new(std::iter::once("").chain(modes));
    for row in shown_rows {
        let cells = row.outcomes.iter().map(|outcome| cell(matrix, row, outcome, notes));
        table.row(std::iter::once(row.name.clone()).chain(cells).collect::<Vec<_>>());
    }
    Some(table)
}

fn cell(matrix: &Matrix, row: &Row, outcome: &Outcome, notes: &mut Notes) -> String {
    if let Some(reason) = &outcome.absent {
        return format!("n/a {}", notes.letter(reason));
    }
    let Some(estimate) = outcome.figures.get(&matrix.figure) else {
        return "–".into();
    };
    let mut text = figure(matrix.figure, estimate.median);
    if matrix.with_spread && outcome.samples.len() > 1 {
        let _ = write!(text, " ±{:.0} %", spread(estimate));
    }
    let is_open = matches!(row.cell.kind, Kind::Open { .. });
    if matrix.figure == Figure::RequestsPerSecond && outcome.is_load_limited() && !is_open {
        text.push_str(" >"); // limited by the load generator
    }
    if outcome.errors > 0 {
        text.push_str(" !");
    }
    text
}

/// All figures of one load, a column per mode; with two modes, also their ratio.
fn by_mode(row: &Row, notes: &mut Notes) -> Table {
    let modes = row.outcomes.iter().map(|outcome| outcome.mode.to_owned());
    let ratio = match &row.outcomes[..] {
        [one, other] => Some((one, other)),
        _ => None,
    };
    let head = std::iter::once(String::new()).chain(modes);
    let mut table =
        Table::new(head.chain(ratio.map(|(one, other)| format!("{} / {}", one.mode, other.mode))));
    let is_shown = |matrix: &&Matrix| {
        row.outcomes.iter().any(|outcome| outcome.figures.contains_key(&matrix.figure))
    };
    for matrix in MATRICES.iter().filter(is_shown) {
        let cells = row.outcomes.iter().map(|outcome| cell(matrix, row, outcome, notes));
        let cells = std::iter::once(matrix.title.to_owned()).chain(cells);
        let ratio = ratio.map(|(one, other)| {
            let ratio = one.ratio_to(other, matrix.figure, &row.cell);
            ratio.map_or_else(|| "–".into(), interval)
        });
        table.row(cells.chain(ratio).collect::<Vec<_>>());
    }
    table
}

fn interval(Estimate { median, low, high }: Estimate) -> String {
    if low == high { format!("{median:.2}") } else { format!("{median:.2} [{low:.2}..{high:.2}]") }
}

/// Half the width of the interval in percent of the median.
fn spread(estimate: &Estimate) -> f64 {
    50.0 * (estimate.high - estimate.low) / estimate.median.max(f64::MIN_POSITIVE)
}

fn figure(figure: Figure, value: f64) -> String {
    match figure {
        Figure::RequestsPerSecond | Figure::Threads => thousands(value),
        Figure::P50Us | Figure::P99Us | Figure::P999Us => thousands(value),
        Figure::KibPerConnection if value >= 10.0 => format!("{value:.0}"),
        Figure::ServerCpuUsPerRequest if value >= 100.0 => format!("{value:.0}"),
        Figure::ServerCpuUsPerRequest => format!("{value:.1}"),
        _ => format!("{:.2}", value.max(0.0)),
    }
}

fn about(conditions: &Conditions) -> String {
    let Conditions { rounds, seconds, placement, kernel, cpu, .. } = conditions;
    let rounds = match rounds {
        1 => "one round".to_owned(),
        more => format!("the median of {more} interleaved rounds"),
    };
    format!(
        "An echo of 64 B; {rounds} with windows of {seconds} s; {placement}. {cpu}, Linux {kernel}.\n\
         Compare the columns, not this run with another one: the same server on the same machine \
         can drift by 30 % within minutes.\n"
    )
}

fn remarks(conditions: &Conditions, rows: &[Row]) -> Vec<String> {
    let outcomes = || rows.iter().flat_map(|row| &row.outcomes);
    let workers = match conditions.workers {
        Some(workers) => format!("{workers} workers"),
        None => format!("16 workers, and {BLOCKING_WORKERS} where the handler blocks"),
    };
    let mut remarks = vec![format!(
        "±: half of the interval that holds the median with 95 % confidence (of three rounds, all \
         of them). `pool` has {POOL} threads; `offload` {workers}; all else is as it comes."
    )];
    let windows = || outcomes().flat_map(|outcome| &outcome.samples);
    let disturbed = windows().filter(|sample| sample.is_disturbed()).count();
    if disturbed > 0 {
        remarks.push(format!(
            "In {disturbed} of {} measurements something else had over 10 % of a CPU: there, \
             requests per second and latency are worse than they were alone; the CPU time per \
             request says more.",
            windows().count()
        ));
    }
    let has_counts = |figure| outcomes().any(|outcome| outcome.figures.contains_key(&figure));
    if outcomes().any(|outcome| outcome.is_load_limited()) {
        remarks.push(
            ">: the load generator was over 95 % busy, and may limit this figure; the CPU \
             time per request shows the capacity of the server."
                .into(),
        );
    }
    if outcomes().any(|outcome| outcome.errors > 0) {
        remarks.push(
            "!: wrong bytes, failed connections or lost datagrams: the result is not valid.".into(),
        );
    }
    if has_counts(Figure::KibPerConnection) {
        remarks.push(
            "Memory: growth of the anonymous memory (PSS, children included), all clients being \
             connected. The kernel takes \
             about 4 KiB more per TCP connection, and 16 KiB or more per thread."
                .into(),
        );
    }
    if has_counts(Figure::SystemCallsPerRequest) {
        remarks.push(
            "System calls: the difference of two counted runs in lockstep; short-lived threads \
             and processes may be off by one."
                .into(),
        );
    }
    remarks
}

/// One HTML page that needs no other file.
pub(crate) fn html(conditions: &Conditions, rows: &[Row], plots: &[Plot], json: &str) -> String {
    let mut page = String::from(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>socketserver: the same handler under all modes</title>\n<style>\n\
         body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; \
         padding: 0 1em; color: #222; background: #fff }\n\
         table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5em 0 }\n\
         th, td { padding: .2em .7em; border-bottom: 1px solid #ddd; text-align: right }\n\
         th:first-child, td:first-child { text-align: left }\n\
         .na { color: #888 }\n svg { max-width: 100%; height: auto }\n\
         details { margin: .3em 0 }\n</style></head><body>\n\
         <h1>The same handler under all modes</h1>\n",
    );
    let _ = writeln!(page, "<p>{}</p>", escaped(&about(conditions)));
    for plot in plots {
        let _ = writeln!(page, "<h2>{}</h2>\n{}", escaped(plot.title), plot.svg);
    }
    let mut notes = Notes::default();
    for matrix in &MATRICES {
        if let Some(table) = table(matrix, rows, &mut notes) {
            let _ = writeln!(page, "<h2>{}</h2>\n{}", escaped(matrix.title), html_table(&table));
        }
    }
    let items = notes.lines().into_iter().map(|line| format!("<li>{}</li>", escaped(&line)));
    let _ = writeln!(page, "<p>n/a:</p><ul>{}</ul>", items.collect::<String>());
    for remark in remarks(conditions, rows) {
        let _ = writeln!(page, "<p>{}</p>", escaped(&remark));
    }
    let _ = writeln!(page, "<h2>Every load by itself</h2>");
    for row in rows {
        if let Some(table) = details(row) {
            let _ = writeln!(
                page,
                "<details><summary>{}</summary>{}</details>",
                escaped(&row.name),
                html_table(&table)
            );
        }
    }
    let data = json.replace("</", "<\\/");
    let _ = writeln!(page, "<script type=\"application/json\" id=\"results\">{data}</script>");
    page + "</body></html>\n"
}

/// All figures of one load.
fn details(row: &Row) -> Option<Table> {
    const COLUMNS: [(&str, Figure); 8] = [
        ("requests/s", Figure::RequestsPerSecond),
        ("p50 µs", Figure::P50Us),
        ("p99 µs", Figure::P99Us),
        ("p99.9 µs", Figure::P999Us),
        ("CPU µs/request", Figure::ServerCpuUsPerRequest),
        ("switches/request", Figure::SwitchesPerRequest),
        ("KiB/connection", Figure::KibPerConnection),
        ("load busy", Figure::LoadBusy),
    ];
    if matches!(row.cell.kind, Kind::Idle | Kind::Calls) {
        return None; // one figure each, shown above
    }
    let mut table =
        Table::new(["mode"].into_iter().chain(COLUMNS.map(|(name, _)| name)).chain(["errors"]));
    for outcome in row.outcomes.iter().filter(|outcome| outcome.absent.is_none()) {
        let values = COLUMNS.map(|(_, wanted)| {
            outcome.figures.get(&wanted).map_or_else(
                || "–".to_owned(),
                |Estimate { median, low, high }| {
                    let [median, low, high] =
                        [median, low, high].map(|value| figure(wanted, *value));
                    format!("{median} [{low}..{high}]")
                },
            )
        });
        let cells = std::iter::once(outcome.mode.to_owned()).chain(values);
        table.row(cells.chain([outcome.errors.to_string()]).collect::<Vec<_>>());
    }
    Some(table)
}

/// The same table in HTML.
fn html_table(table: &Table) -> String {
    let mut html = String::from("<table>");
    for (number, row) in table.rows().iter().enumerate() {
        html.push_str("<tr>");
        for cell in row {
            let tag = if number == 0 { "th" } else { "td" };
            let class = if cell.starts_with("n/a") { " class=\"na\"" } else { "" };
            let _ = write!(html, "<{tag}{class}>{}</{tag}>", escaped(cell));
        }
        html.push_str("</tr>\n");
    }
    html + "</table>"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
