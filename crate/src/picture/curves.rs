//! Training curves: reconstruction, sparsity, L0 and dead features over the tokens seen.
//!
//! Raw values faint, their centred mean strong. At most 400 points a curve are drawn, so that a
//! notebook that redraws every second stays small and quick.

use super::axes::{chart, Axis};
use super::canvas::{font, stroke, Area, Drawn, BLUE, INK};
use super::frame::Frame;
use super::html::WIDTH;
use super::Picture;
use crate::progress::TrainSample;
use crate::train::History;
use plotters::prelude::*;

const MOST: usize = 400;
const SIZE: (f64, f64) = (WIDTH as f64, 440.0);

/// At most `most` of the items, evenly, always with the first and the last.
pub(super) fn thin<T: Clone>(items: &[T], most: usize) -> Vec<T> {
    if items.len() <= most.max(2) {
        return items.to_vec();
    }
    let (last, steps) = (items.len() - 1, most.max(2) - 1);
    (0..=steps).map(|k| items[k * last / steps].clone()).collect()
}

/// The curves of a training from its samples, first to last; `title` heads them.
pub(crate) fn training(samples: &[TrainSample], title: &str) -> Picture {
    let sparse = samples.iter().any(|s| s.sparsity > 0.0);
    let alt = match samples.last() {
        None => "Training curves: no steps yet".to_string(),
        Some(s) => format!(
            "Training curves over {} tokens: reconstruction {:.4}, {}FVU {:.3}, L0 {:.1} per layer, dead {:.1} %",
            s.tokens, s.reconstruction, if sparse { format!("sparsity term {:.4}, ", s.sparsity) } else { String::new() }, s.fvu, s.l0, 100.0 * s.dead
        ),
    };
    let of = |value: fn(&TrainSample) -> f64| -> Vec<(f64, f64)> { samples.iter().map(|s| (s.tokens as f64, value(s))).collect() };
    let second = if sparse {
        Panel { name: "Sparsity term", unit: "loss per token", log: false, points: of(|s| s.sparsity) }
    } else {
        Panel { name: "Variance unexplained (training batch)", unit: "FVU, mean of layers", log: false, points: of(|s| s.fvu) }
    };
    let panels = [
        Panel { name: "Reconstruction", unit: "squared error per token", log: true, points: of(|s| s.reconstruction) },
        second,
        Panel { name: "L0", unit: "active features per token, layer", log: false, points: of(|s| s.l0) },
        Panel { name: "Dead features", unit: "% of features", log: false, points: of(|s| 100.0 * s.dead) },
    ];
    Frame { title: title.to_string(), alt, ..Frame::default() }.draw(SIZE, |canvas| {
        panels.iter().zip(canvas.area.split_evenly((2, 2))).try_for_each(|(panel, place)| panel.draw(&place))
    })
}

impl History {
    /// The curves of this training.
    pub fn picture(&self) -> Picture {
        let steps = self.last().map_or(0, |last| last.step);
        training(&self.samples, &format!("Training, {steps} steps{}", if self.stopped { " (stopped)" } else { "" }))
    }
}

struct Panel {
    name: &'static str,
    unit: &'static str,
    log: bool,
    /// (tokens, value).
    points: Vec<(f64, f64)>,
}

impl Panel {
    fn draw(&self, area: &Area<'_>) -> Drawn {
        let usable = |value: f64| value.is_finite() && (!self.log || value > 0.0);
        let points: Vec<(f64, f64)> = self.points.iter().copied().filter(|(_, value)| usable(*value)).collect();
        let smooth = smooth(&points, self.log);
        let shown = [thin(&points, MOST), thin(&smooth, MOST)];
        let end = points.last().map_or(1.0, |last| last.0.max(1.0));
        let (lo, hi) = shown[0].iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), (_, value)| (lo.min(*value), hi.max(*value)));
        let (lo, mut hi) = if lo > hi { (0.1, 1.0) } else { (lo, hi) };
        if !self.log {
            // One bad batch must not flatten the rest; its peak is cut.
            hi = hi.min(1.4 * shown[1].iter().map(|(_, value)| *value).fold(0.0, f64::max));
        }
        let x = Axis::linear("tokens seen", 0.0, end);
        let y = if self.log { Axis::of(self.unit, (lo, hi), true, false) } else { Axis::linear(self.unit, 0.0, if hi > 0.0 { 1.08 * hi } else { 1.0 }) };
        let area = area.titled(self.name, font(11.5, INK))?;
        let mut chart = chart(&area, &x, &y)?;
        for (points, style) in shown.into_iter().zip([stroke(BLUE.mix(0.3), 1.0), stroke(BLUE, 2.0)]) {
            let places = points.into_iter().filter_map(|(tokens, value)| Some((tokens, y.place(value)?.min(y.to))));
            chart.draw_series(std::iter::once(PathElement::new(places.collect::<Vec<_>>(), style)))?;
        }
        Ok(())
    }
}

/// Mean over about a twentieth of the curve around each point, of logarithms on a logarithmic axis.
fn smooth(points: &[(f64, f64)], log: bool) -> Vec<(f64, f64)> {
    let mut sums = vec![0.0];
    for (_, value) in points {
        sums.push(sums[sums.len() - 1] + if log { value.ln() } else { *value });
    }
    let half = points.len() / 40;
    let mean = |at: usize| {
        // As many on both sides, so that the ends are not pulled inwards, but not so few that they are noise.
        let half = half.min(at).min(points.len() - 1 - at).max(half / 3);
        let (from, to) = (at.saturating_sub(half), (at + half + 1).min(points.len()));
        let mean = (sums[to] - sums[from]) / (to - from) as f64;
        if log { mean.exp() } else { mean }
    };
    points.iter().enumerate().map(|(at, (x, _))| (*x, mean(at))).collect()
}

/// Smoothed variance unexplained over the tokens seen, few points.
pub(super) fn fvu(history: &History) -> Vec<(f64, f64)> {
    let points: Vec<(f64, f64)> = history.samples.iter().map(|s| (s.tokens as f64, s.fvu)).filter(|(_, fvu)| *fvu > 0.0).collect();
    thin(&smooth(&points, true), MOST)
}
