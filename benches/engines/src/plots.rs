//! Plots: a figure against the number of connections, one line per mode.

use anyhow::{Result, anyhow};
use peers::endpoint::Transport;
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::outcome::{Figure, Row};
use crate::plan::{Kind, MODES};

/// One picture.
pub(crate) struct Plot {
    pub(crate) title: &'static str,
    pub(crate) file: &'static str,
    pub(crate) svg: String,
}

/// What a panel shows.
#[derive(Clone, Copy)]
struct Panel {
    title: &'static str,
    file: &'static str,
    figure: Figure,
    is_idle: bool,
}

const PANELS: [Panel; 4] = [
    Panel {
        title: "Requests per second",
        file: "throughput.svg",
        figure: Figure::RequestsPerSecond,
        is_idle: false,
    },
    Panel {
        title: "Server's CPU time per request, µs",
        file: "cpu.svg",
        figure: Figure::ServerCpuUsPerRequest,
        is_idle: false,
    },
    Panel {
        title: "99th percentile of latency, µs",
        file: "p99.svg",
        figure: Figure::P99Us,
        is_idle: false,
    },
    Panel {
        title: "Memory per idle connection, KiB",
        file: "memory.svg",
        figure: Figure::KibPerConnection,
        is_idle: true,
    },
];

/// Told apart by those who see fewer colours, too.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(120, 120, 120),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
];

/// A mode's points: connections, and the figure.
type Line = (usize, Vec<(f64, f64)>);

/// All beside each other, and each by itself.
pub(crate) fn draw(rows: &[Row]) -> Result<Vec<Plot>> {
    let together = picture((900, 640), (2, 2), &PANELS, rows)?;
    let mut plots = vec![Plot {
        title: "Against the number of connections (TCP)",
        file: "engines.svg",
        svg: together,
    }];
    for panel in PANELS {
        let svg = picture((720, 420), (1, 1), &[panel], rows)?;
        plots.push(Plot { title: panel.title, file: panel.file, svg });
    }
    Ok(plots)
}

/// Panels in rows and columns, and above them which colour is which mode.
fn picture(
    size: (u32, u32),
    grid: (usize, usize),
    panels: &[Panel],
    rows: &[Row],
) -> Result<String> {
    const LEGEND: u32 = 30;
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE).map_err(refused)?;
        let (legend, charts) = root.split_vertically(LEGEND);
        for (index, mode) in MODES.iter().enumerate() {
            let (x, y) = (60 + 105 * index as i32, LEGEND as i32 / 2);
            let text = Text::new(*mode, (x + 10, y - 7), ("sans-serif", 14));
            legend.draw(&Circle::new((x, y), 5, COLOURS[index].filled())).map_err(refused)?;
            legend.draw(&text).map_err(refused)?;
        }
        for (area, panel) in charts.split_evenly(grid).iter().zip(panels) {
            draw_panel(area, panel, &lines(panel, rows))?;
        }
        root.present().map_err(refused)?;
    }
    Ok(svg)
}

fn lines(panel: &Panel, rows: &[Row]) -> Vec<Line> {
    let is_shown = |row: &&Row| {
        let kind = if panel.is_idle { Kind::Idle } else { Kind::Closed };
        row.cell.kind == kind && row.cell.transport == Transport::Tcp && row.cell.depth == 1
    };
    let of_mode = |mode: &str| -> Vec<(f64, f64)> {
        rows.iter()
            .filter(is_shown)
            .filter_map(|row| {
                let outcome = row.outcomes.iter().find(|outcome| outcome.mode == mode)?;
                // What was hardly there at all is drawn at the lower edge.
                let value = outcome.median(panel.figure)?.max(0.01);
                Some((row.cell.clients as f64, value))
            })
            .collect()
    };
    let lines = MODES.iter().enumerate().map(|(index, mode)| (index, of_mode(mode)));
    lines.filter(|(_, points)| !points.is_empty()).collect()
}

fn draw_panel(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    panel: &Panel,
    lines: &[Line],
) -> Result<()> {
    let points = || lines.iter().flat_map(|(_, points)| points);
    let Some(last) = points().map(|(clients, _)| *clients).max_by(f64::total_cmp) else {
        return Ok(()); // nothing was measured
    };
    let highest = points().map(|(_, value)| *value).fold(0.0, f64::max);
    let lowest = points().map(|(_, value)| *value).fold(f64::MAX, f64::min);
    let is_linear =
        matches!(panel.figure, Figure::RequestsPerSecond | Figure::ServerCpuUsPerRequest);
    let bottom = if is_linear { 0.0 } else { 10_f64.powf(lowest.log10().floor()) };
    let top = if is_linear { highest * 1.1 } else { 10_f64.powf(highest.log10().ceil()) };
    let mut builder = ChartBuilder::on(area);
    builder
        .caption(panel.title, ("sans-serif", 15))
        .margin(8)
        .x_label_area_size(34)
        .y_label_area_size(54);
    let across = (1.0..(last * 1.2).max(2.0)).log_scale();
    // The two axes are of different types, so that the same is said twice.
    macro_rules! chart {
        ($up:expr) => {{
            let mut chart = builder.build_cartesian_2d(across, $up).map_err(refused)?;
            chart
                .configure_mesh()
                .light_line_style(TRANSPARENT)
                .bold_line_style(RGBColor(225, 225, 225))
                .x_desc("connections")
                .x_label_formatter(&|count| short(*count))
                .y_label_formatter(&|value| short(*value))
                .x_labels(4)
                .y_labels(6)
                .label_style(("sans-serif", 11))
                .draw()
                .map_err(refused)?;
            for (index, points) in lines {
                let colour = COLOURS[*index];
                chart
                    .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))
                    .map_err(refused)?;
                chart
                    .draw_series(points.iter().map(|point| Circle::new(*point, 3, colour.filled())))
                    .map_err(refused)?;
            }
        }};
    }
    if is_linear {
        chart!(bottom..top);
    } else {
        chart!((bottom..top).log_scale());
    }
    Ok(())
}

/// A number as an axis has it.
fn short(number: f64) -> String {
    match number {
        n if n >= 1e6 => format!("{}M", trimmed(n / 1e6)),
        n if n >= 1e3 => format!("{}k", trimmed(n / 1e3)),
        n => trimmed(n),
    }
}

fn trimmed(number: f64) -> String {
    let text = format!("{number:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn refused<E: std::error::Error + Send + Sync>(error: E) -> anyhow::Error {
    anyhow!("cannot draw: {error}")
}

#[cfg(test)]
mod tests {
    use super::short;

    #[test]
    fn axes_are_short() {
        assert_eq!(short(150_000.0), "150k");
        assert_eq!(short(0.01), "0.01");
        assert_eq!(short(2_500_000.0), "2.5M");
        assert_eq!(short(100.0), "100");
    }
}
