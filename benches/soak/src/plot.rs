//! The plot: memory, descriptors, threads and open connections over time, a line per mode.

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::site::{Site, lock};
use crate::verdict::{FIGURES, Figure};

/// Colours that colour-blind readers can distinguish.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(120, 120, 120),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
];

/// An SVG image: thin lines under load, circles at rest.
pub(crate) fn draw(sites: &[Site]) -> Result<String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (2100, 1100)).into_drawing_area();
        root.fill(&WHITE).map_err(refused)?;
        let (legend, charts) = root.split_vertically(50);
        let note = "lines: every second under load; circles: at rest";
        legend.draw(&Text::new(note, (1180, 16), ("sans-serif", 18))).map_err(refused)?;
        for (number, site) in sites.iter().enumerate() {
            let x = 60 + 180 * number as i32;
            let colour = COLOURS[number % COLOURS.len()];
            legend.draw(&Circle::new((x, 25), 8, colour.filled())).map_err(refused)?;
            let text = Text::new(site.mode, (x + 16, 14), ("sans-serif", 22));
            legend.draw(&text).map_err(refused)?;
        }
        for (area, figure) in charts.split_evenly((2, 3)).iter().zip(&FIGURES) {
            draw_figure(area, figure, sites)?;
        }
        root.present().map_err(refused)?;
    }
    Ok(svg)
}

fn draw_figure(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    figure: &Figure,
    sites: &[Site],
) -> Result<()> {
    let points = |samples: &[crate::site::Sample]| -> Vec<(f64, f64)> {
        samples.iter().map(|sample| (sample.at / 60.0, (figure.of)(sample))).collect()
    };
    let lines: Vec<_> = sites.iter().map(|site| points(&lock(&site.loaded))).collect();
    let rests: Vec<_> = sites.iter().map(|site| points(&lock(&site.rested))).collect();
    let all = || lines.iter().chain(&rests).flatten();
    let right = all().map(|point| point.0).fold(0.1, f64::max);
    let top = all().map(|point| point.1).fold(1.0, f64::max) * 1.05;
    let mut chart = ChartBuilder::on(area)
        .caption(figure.name, ("sans-serif", 24))
        .margin(14)
        .x_label_area_size(45)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..right, 0.0..top)
        .map_err(refused)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(RGBColor(225, 225, 225))
        .x_desc("minutes")
        .label_style(("sans-serif", 18))
        .draw()
        .map_err(refused)?;
    for (number, (line, rest)) in lines.into_iter().zip(rests).enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let style = colour.mix(0.6).stroke_width(1);
        chart.draw_series(LineSeries::new(line, style)).map_err(refused)?;
        let circle = |point: (f64, f64)| Circle::new(point, 4, colour.filled());
        chart.draw_series(rest.into_iter().map(circle)).map_err(refused)?;
    }
    Ok(())
}

fn refused<E: std::error::Error + Send + Sync>(error: E) -> anyhow::Error {
    anyhow!("cannot draw: {error}")
}
