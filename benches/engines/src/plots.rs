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
struct Panel {
    title: &'static str,
    file: &'static str,
    figure: Figure,
    is_idle: bool,
}

const PANELS: [Panel; 3] = [
    Panel {
        title: "Requests per second",
        file: "throughput.svg",
        figure: Figure::RequestsPerSecond,
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

/// Told apart without colours, too: by their order in the legend and their marks.
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

/// All three beside each other, and each by itself.
pub(crate) fn draw(rows: &[Row]) -> Result<Vec<Plot>> {
    let mut together = String::new();
    {
        let root = SVGBackend::with_string(&mut together, (1000, 330)).into_drawing_area();
        root.fill(&WHITE).map_err(refused)?;
        for (area, panel) in root.split_evenly((1, 3)).iter().zip(&PANELS) {
            draw_panel(area, panel, &lines(panel, rows))?;
        }
        root.present().map_err(refused)?;
    }
    let mut plots = vec![Plot {
        title: "Against the number of connections (TCP)",
        file: "engines.svg",
        svg: together,
    }];
    for panel in &PANELS {
        let mut svg = String::new();
        {
            let root = SVGBackend::with_string(&mut svg, (720, 420)).into_drawing_area();
            root.fill(&WHITE).map_err(refused)?;
            draw_panel(&root, panel, &lines(panel, rows))?;
            root.present().map_err(refused)?;
        }
        plots.push(Plot { title: panel.title, file: panel.file, svg });
    }
    Ok(plots)
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
    let Some((&(first, _), &(last, _))) = points()
        .min_by(|a, b| a.0.total_cmp(&b.0))
        .zip(points().max_by(|a, b| a.0.total_cmp(&b.0)))
    else {
        return Ok(()); // nothing was measured
    };
    let highest = points().map(|(_, value)| *value).fold(0.0, f64::max);
    let lowest = points().map(|(_, value)| *value).fold(f64::MAX, f64::min);
    let is_linear = panel.figure == Figure::RequestsPerSecond;
    let bottom = if is_linear { 0.0 } else { 10_f64.powf(lowest.log10().floor()) };
    let top = if is_linear { highest * 1.1 } else { 10_f64.powf(highest.log10().ceil()) };
    let mut builder = ChartBuilder::on(area);
    builder
        .caption(panel.title, ("sans-serif", 15))
        .margin(8)
        .x_label_area_size(34)
        .y_label_area_size(54);
    let across = (first..(last * 1.2)).log_scale();
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
                .y_labels(6)
                .label_style(("sans-serif", 11))
                .draw()
                .map_err(refused)?;
            for (index, points) in lines {
                let colour = COLOURS[*index];
                chart
                    .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))
                    .map_err(refused)?
                    .label(MODES[*index])
                    .legend(move |(x, y)| Circle::new((x + 8, y), 4, colour.filled()));
                chart
                    .draw_series(points.iter().map(|point| Circle::new(*point, 3, colour.filled())))
                    .map_err(refused)?;
            }
            chart
                .configure_series_labels()
                .position(if is_linear {
                    SeriesLabelPosition::LowerRight
                } else {
                    SeriesLabelPosition::UpperLeft
                })
                .background_style(WHITE.mix(0.8))
                .border_style(RGBColor(200, 200, 200))
                .label_font(("sans-serif", 11))
                .draw()
                .map_err(refused)?;
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
