//! Charts of one number a layer: how well each layer is rebuilt, how many features fire.
//!
//! Through plotters' SVG backend; axes carry their units.

use super::html::WIDTH;
use super::svg::{Anchor, Svg};
use super::Picture;
use plotters::coord::Shift;
use plotters::prelude::*;

pub(super) const FONT: &str = "sans-serif";
pub(super) const BLUE: RGBColor = RGBColor(43, 123, 186);
pub(super) const GREY: RGBColor = RGBColor(110, 110, 110);
pub(super) const FAINT: RGBColor = RGBColor(228, 228, 228);
/// What is said beside a picture.
pub(super) const QUIET: &str = "#777";
const HEIGHT: u32 = 260;

/// A plotters area; the backend writes into memory.
pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// What plotters may report; writing into memory does not fail.
pub(super) type Drawn = Result<(), Box<dyn std::error::Error>>;

/// Draws on white; a failure becomes a picture that says so.
pub(super) fn draw((width, height): (u32, u32), alt: String, paint: impl FnOnce(&Area<'_>) -> Drawn) -> Picture {
    let mut svg = String::new();
    let drawn = {
        let area = SVGBackend::with_string(&mut svg, (width, height)).into_drawing_area();
        area.fill(&WHITE).map_err(Into::into).and_then(|()| paint(&area)).and_then(|()| area.present().map_err(Into::into))
    };
    if let Err(error) = drawn {
        let mut empty = Svg::new(f64::from(width), 40.0);
        empty.text((8.0, 24.0), Anchor::Start, 12.0, "#a00", &format!("no picture: {error}"));
        return Picture::new(empty.finish(&alt), alt, width);
    }
    Picture::new(svg.trim_start().to_string(), alt, width)
}

/// Held-out fraction of variance unexplained of each target layer, `fvu[layer]`, with the line at 1
/// that a constant equal to the mean would reach.
pub fn fvu_per_layer(fvu: &[f64]) -> Picture {
    let mean = fvu.iter().sum::<f64>() / fvu.len().max(1) as f64;
    let alt = format!("Fraction of variance unexplained per layer, {} layers, mean {mean:.3}; the mean predictor has 1", fvu.len());
    let top = fvu.iter().copied().filter(|v| v.is_finite()).fold(1.0, f64::max) * 1.08;
    draw((WIDTH, HEIGHT), alt, |area| {
        let last = fvu.len() as f64 - 0.5;
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .caption(format!("Variance unexplained per layer (mean {mean:.3})"), (FONT, 15))
            .x_label_area_size(38)
            .y_label_area_size(54)
            .build_cartesian_2d(-0.5..last.max(0.5), 0.0..top)?;
        mesh(&mut chart, fvu.len(), "target layer", "FVU (0 to 1)")?;
        chart.draw_series(std::iter::once(PathElement::new([(-0.5, 1.0), (last, 1.0)], GREY.stroke_width(1))))?;
        chart.draw_series(std::iter::once(Text::new("mean predictor = 1", (-0.4, 1.0 - 0.02 * top), (FONT, 11).into_font().color(&GREY))))?;
        let dots = || fvu.iter().enumerate().filter(|(_, v)| v.is_finite()).map(|(layer, v)| (layer as f64, *v));
        chart.draw_series(LineSeries::new(dots(), BLUE.mix(0.35)))?;
        chart.draw_series(dots().map(|at| Circle::new(at, 4, BLUE.filled())))?;
        Ok(())
    })
}

/// Active features per token of each layer, `l0[layer]`.
pub fn l0_per_layer(l0: &[f64]) -> Picture {
    let mean = l0.iter().sum::<f64>() / l0.len().max(1) as f64;
    bars(l0, &format!("Active features per token and layer (mean {mean:.1})"), "L0 (features per token)")
}

/// Features of each layer that do not fire, `dead[layer]` as a fraction, 0 to 1.
pub fn dead_per_layer(dead: &[f64]) -> Picture {
    let percent: Vec<f64> = dead.iter().map(|share| 100.0 * share).collect();
    let mean = percent.iter().sum::<f64>() / percent.len().max(1) as f64;
    bars(&percent, &format!("Dead features per layer (mean {mean:.1} %)"), "dead (% of features)")
}

fn bars(values: &[f64], title: &str, unit: &str) -> Picture {
    let top = values.iter().copied().filter(|v| v.is_finite()).fold(0.0, f64::max);
    let top = if top > 0.0 { 1.08 * top } else { 1.0 };
    draw((WIDTH, HEIGHT), format!("{title}, {} layers", values.len()), |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .caption(title, (FONT, 15))
            .x_label_area_size(38)
            .y_label_area_size(54)
            .build_cartesian_2d(-0.5..(values.len() as f64 - 0.5).max(0.5), 0.0..top)?;
        mesh(&mut chart, values.len(), "layer", unit)?;
        chart.draw_series(values.iter().enumerate().filter(|(_, v)| v.is_finite()).map(|(layer, v)| {
            let layer = layer as f64;
            Rectangle::new([(layer - 0.38, 0.0), (layer + 0.38, *v)], BLUE.filled())
        }))?;
        Ok(())
    })
}

type Flat<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<plotters::coord::types::RangedCoordf64, plotters::coord::types::RangedCoordf64>>;

/// Axes with whole layers below and numbers at the side.
fn mesh(chart: &mut Flat<'_, '_>, layers: usize, x: &str, y: &str) -> Drawn {
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(FAINT)
        .axis_style(GREY)
        .x_labels(layers.clamp(2, 16) + 1)
        .x_label_formatter(&|layer| if (layer - layer.round()).abs() < 1e-6 && *layer >= 0.0 { format!("{layer:.0}") } else { String::new() })
        .y_labels(6)
        .y_label_formatter(&|value| tick(*value))
        .label_style((FONT, 12))
        .axis_desc_style((FONT, 13))
        .x_desc(x)
        .y_desc(y)
        .draw()?;
    Ok(())
}

/// A number on an axis, in as few signs as it needs.
pub(super) fn tick(value: f64) -> String {
    let size = value.abs();
    if size >= 1e4 || (size < 1e-3 && size > 0.0) {
        return format!("{value:.1e}").replace(".0e", "e");
    }
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

/// A step of 1, 2 or 5 times a power of ten with at most four to `most`.
fn nice(most: f64) -> f64 {
    let power = 10.0_f64.powf((most / 4.0).log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|k| k * power).find(|step| step * 4.0 >= most).unwrap_or(10.0 * power)
}

/// Numbers and lines of an axis with 0 at `zero` and `scale` pixels a unit, for values up to ±`most`, from
/// height `top` to `foot`.
pub(super) fn about_zero(svg: &mut Svg, most: f64, (zero, scale): (f64, f64), (top, foot): (f64, f64)) {
    let step = nice(most);
    for k in -4..=4 {
        let value = step * f64::from(k);
        if value.abs() <= 1.05 * most {
            let x = zero + scale * value;
            svg.line((x, top), (x, foot), if k == 0 { "#555" } else { "#e4e4e4" }, 1.0);
            svg.text((x, foot + 13.0), Anchor::Middle, 10.0, QUIET, &tick(value));
        }
    }
}
