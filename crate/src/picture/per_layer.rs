//! One number a layer: how well each layer is rebuilt, how many features fire, how many never do.

use super::axes::{chart, Axis};
use super::canvas::{font, stroke, BLUE, QUIET};
use super::frame::Frame;
use super::html::WIDTH;
use super::Picture;
use plotters::prelude::*;

const SIZE: (f64, f64) = (WIDTH as f64, 240.0);

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn top(values: &[f64]) -> f64 {
    values.iter().copied().filter(|v| v.is_finite()).fold(0.0, f64::max)
}

/// Held-out fraction of variance unexplained of each target layer, `fvu[layer]`, with the line at 1
/// that a constant equal to the mean would reach.
pub(super) fn fvu(fvu: &[f64]) -> Picture {
    let mean = mean(fvu);
    let alt = format!("Fraction of variance unexplained per layer, {} layers, mean {mean:.3}; the mean predictor has 1", fvu.len());
    Frame { title: format!("Variance unexplained per layer (mean {mean:.3})"), alt, ..Frame::default() }.draw(SIZE, |canvas| {
        let (x, y) = (Axis::whole("target layer", fvu.len()), Axis::linear("FVU (0 to 1)", 0.0, 1.08 * top(fvu).max(1.0)));
        let mut chart = chart(&canvas.area, &x, &y)?;
        chart.draw_series(std::iter::once(PathElement::new([(x.from, 1.0), (x.to, 1.0)], stroke(QUIET, 1.0))))?;
        chart.draw_series(std::iter::once(Text::new("mean predictor = 1", (x.from + 0.01 * (x.to - x.from), 1.0 - 0.02 * y.to), font(10.0, QUIET))))?;
        let dots = || fvu.iter().enumerate().filter(|(_, v)| v.is_finite()).map(|(layer, v)| (layer as f64, *v));
        chart.draw_series(std::iter::once(PathElement::new(dots().collect::<Vec<_>>(), stroke(BLUE.mix(0.35), 1.2))))?;
        chart.draw_series(dots().map(|at| Circle::new(at, super::canvas::units(3.5), BLUE.filled())))?;
        Ok(())
    })
}

/// Active features per token of each layer, `l0[layer]`.
pub(super) fn l0(l0: &[f64]) -> Picture {
    columns(l0, &format!("Active features per token and layer (mean {:.1})", mean(l0)), "L0 (features per token)")
}

/// Features of each layer that do not fire, `dead[layer]` as a fraction, 0 to 1.
pub(super) fn dead(dead: &[f64]) -> Picture {
    let percent: Vec<f64> = dead.iter().map(|share| 100.0 * share).collect();
    columns(&percent, &format!("Dead features per layer (mean {:.1} %)", mean(&percent)), "dead (% of features)")
}

fn columns(values: &[f64], title: &str, unit: &str) -> Picture {
    Frame { title: title.to_string(), alt: format!("{title}, {} layers", values.len()), ..Frame::default() }.draw(SIZE, |canvas| {
        let top = if top(values) > 0.0 { 1.08 * top(values) } else { 1.0 };
        let mut chart = chart(&canvas.area, &Axis::whole("layer", values.len()), &Axis::linear(unit, 0.0, top))?;
        chart.draw_series(values.iter().enumerate().filter(|(_, v)| v.is_finite()).map(|(layer, v)| {
            let layer = layer as f64;
            Rectangle::new([(layer - 0.36, 0.0), (layer + 0.36, *v)], BLUE.filled())
        }))?;
        Ok(())
    })
}
