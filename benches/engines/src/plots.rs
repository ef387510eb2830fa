//! Plots of a figure over the number of connections, one line per mode.

use anyhow::{Result, anyhow};
use peers::endpoint::Transport;
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::outcome::{Figure, Row};
use crate::plan::{Kind, MODES};

/// One image.
pub(crate) struct Plot {
    pub(crate) title: &'static str,
    pub(crate) file: &'static str,
    pub(crate) svg: String,
}

/// The line style of a mode. The widths differ, so that coinciding lines stay visible.
struct Style {
    colour: RGBColor,
    radius: i32,
    width: u32,
}

const fn style(red: u8, green: u8, blue: u8, radius: i32, width: u32) -> Style {
    Style { colour: RGBColor(red, green, blue), radius, width }
}

/// Colours that colour-blind readers can distinguish.
const STYLES: [Style; 6] = [
    style(0, 114, 178, 12, 8),
    style(230, 159, 0, 10, 4),
    style(120, 120, 120, 9, 4),
    style(213, 94, 0, 8, 7),
    style(0, 158, 115, 6, 3),
    style(204, 121, 167, 5, 4),
];

/// The figure in a panel.
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
        title: "99 % of the answers came within",
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

/// The points of a mode: number of connections and figure.
type Line = (usize, Vec<(f64, f64)>);

/// All panels in one image, and each panel in an image of its own.
pub(crate) fn draw(rows: &[Row]) -> Result<Vec<Plot>> {
    let together = picture((1800, 1280), (2, 2), &PANELS, rows)?;
    let mut plots = vec![Plot {
        title: "Against the number of connections (TCP)",
        file: "engines.svg",
        svg: together,
    }];
    for panel in PANELS {
        let svg = picture((1440, 840), (1, 1), &[panel], rows)?;
        plots.push(Plot { title: panel.title, file: panel.file, svg });
    }
    Ok(plots)
}

/// Panels in rows and columns, with the legend above them.
fn picture(
    size: (u32, u32),
    grid: (usize, usize),
    panels: &[Panel],
    rows: &[Row],
) -> Result<String> {
    const LEGEND: u32 = 60;
    const DISTANCE: i32 = 210;
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE).map_err(refused)?;
        let (legend, charts) = root.split_vertically(LEGEND);
        for (index, mode) in MODES.iter().enumerate() {
            let (x, y) = (120 + DISTANCE * index as i32, LEGEND as i32 / 2);
            let text = Text::new(*mode, (x + 20, y - 14), ("sans-serif", 30));
            let colour = STYLES[index].colour;
            legend.draw(&Circle::new((x, y), 10, colour.filled())).map_err(refused)?;
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
                // Values below the axis are drawn at its lower edge.
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
    let bottom = if is_linear { 0.0 } else { lowest / 1.5 };
    let top = match is_linear {
        true => highest * 1.1,
        false => (highest * 1.5).max(bottom * 11.0), // so that the axis contains a power of ten
    };
    let mut counts: Vec<f64> = points().map(|(clients, _)| *clients).collect();
    counts.sort_unstable_by(f64::total_cmp);
    counts.dedup();
    let label = match panel.figure {
        Figure::P99Us => time,
        _ => short,
    };
    let mut builder = ChartBuilder::on(area);
    builder
        .caption(panel.title, ("sans-serif", 32))
        .margin(16)
        .x_label_area_size(72)
        .y_label_area_size(112);
    let first = counts[0];
    let across = (first / 1.15..(last * 1.2).max(2.0)).log_scale().with_key_points(counts);
    // The two axes have different types, so the code is repeated.
    macro_rules! chart {
        ($up:expr) => {{
            let mut chart = builder.build_cartesian_2d(across, $up).map_err(refused)?;
            chart
                .configure_mesh()
                .light_line_style(TRANSPARENT)
                .bold_line_style(RGBColor(225, 225, 225))
                .x_desc("connections")
                .x_label_formatter(&|count| short(*count))
                .y_label_formatter(&|value| label(*value))
                .y_labels(6)
                .label_style(("sans-serif", 26))
                .draw()
                .map_err(refused)?;
            for (index, points) in lines {
                let Style { colour, radius, width } = &STYLES[*index];
                let line = LineSeries::new(points.iter().copied(), colour.stroke_width(*width));
                chart.draw_series(line).map_err(refused)?;
                let circle = |point: &(f64, f64)| Circle::new(*point, *radius, colour.filled());
                chart.draw_series(points.iter().map(circle)).map_err(refused)?;
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

/// A number in the format of an axis.
fn short(number: f64) -> String {
    match number {
        n if n >= 1e6 => format!("{}M", trimmed(n / 1e6)),
        n if n >= 1e3 => format!("{}k", trimmed(n / 1e3)),
        n => trimmed(n),
    }
}

/// A time in microseconds in the format of an axis.
fn time(micros: f64) -> String {
    match micros {
        n if n >= 1e6 => format!("{} s", trimmed(n / 1e6)),
        n if n >= 1e3 => format!("{} ms", trimmed(n / 1e3)),
        n => format!("{} µs", trimmed(n)),
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
    use super::{short, time};

    #[test]
    fn the_labels_of_an_axis_are_abbreviated() {
        assert_eq!(short(150_000.0), "150k");
        assert_eq!(short(0.01), "0.01");
        assert_eq!(short(2_500_000.0), "2.5M");
        assert_eq!(short(100.0), "100");
        assert_eq!(time(100.0), "100 µs");
        assert_eq!(time(10_000.0), "10 ms");
    }
}
