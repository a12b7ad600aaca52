//! Training curves: reconstruction, sparsity, L0 and dead features over the tokens seen.
//!
//! Raw values faint, their running mean strong. At most 400 points a curve are drawn, so that a
//! notebook that redraws every second stays small and quick.

use super::chart::{draw, tick, Area, Drawn, BLUE, FAINT, FONT, GREY};
use super::html::{count, tame, WIDTH};
use super::Picture;
use crate::progress::TrainSample;
use crate::train::History;
use plotters::prelude::*;

const MOST: usize = 400;
const HEIGHT: u32 = 460;

/// At most `most` of the items, evenly, always with the first and the last.
///
/// ```
/// let few = cltlab::picture::thin(&(0..1000).collect::<Vec<_>>(), 10);
/// assert_eq!((few.len(), few[0], few[9]), (10, 0, 999));
/// ```
pub fn thin<T: Clone>(items: &[T], most: usize) -> Vec<T> {
    if items.len() <= most.max(2) {
        return items.to_vec();
    }
    let (last, steps) = (items.len() - 1, most.max(2) - 1);
    (0..=steps).map(|k| items[k * last / steps].clone()).collect()
}

/// The curves of a training from its samples, first to last; `title` heads them.
pub fn training(samples: &[TrainSample], title: &str) -> Picture {
    let alt = match samples.last() {
        None => "Training curves: no steps yet".to_string(),
        Some(s) => format!(
            "Training curves over {} tokens: reconstruction {:.4}, sparsity term {:.4}, L0 {:.1}, dead {:.1} %",
            s.tokens, s.reconstruction, s.sparsity, s.l0, 100.0 * s.dead
        ),
    };
    let of = |value: fn(&TrainSample) -> f64| -> Vec<(f64, f64)> { samples.iter().map(|s| (s.tokens as f64, value(s))).collect() };
    let second = if samples.iter().any(|s| s.sparsity > 0.0) {
        Panel { name: "Sparsity term", unit: "loss per token", log: false, points: of(|s| s.sparsity) }
    } else {
        Panel { name: "Variance unexplained (training batch)", unit: "FVU, mean of layers", log: false, points: of(|s| s.fvu) }
    };
    let panels = [
        Panel { name: "Reconstruction", unit: "squared error per token", log: true, points: of(|s| s.reconstruction) },
        second,
        Panel { name: "L0", unit: "active features per token and layer", log: false, points: of(|s| s.l0) },
        Panel { name: "Dead features", unit: "% of features", log: false, points: of(|s| 100.0 * s.dead) },
    ];
    draw((WIDTH, HEIGHT), alt, |area| {
        let area = area.titled(&tame(title), (FONT, 15))?;
        for (panel, place) in panels.iter().zip(area.split_evenly((2, 2))) {
            panel.draw(&place)?;
        }
        Ok(())
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
        let mut builder = ChartBuilder::on(area);
        builder.margin(6).margin_right(14).caption(self.name, (FONT, 13)).x_label_area_size(32).y_label_area_size(56);
        // Both branches are the same chart over two types of axis, which plotters tells apart.
        macro_rules! panel {
            ($range:expr) => {{
                let mut chart = builder.build_cartesian_2d(0.0..end, $range)?;
                chart
                    .configure_mesh()
                    .light_line_style(TRANSPARENT)
                    .bold_line_style(FAINT)
                    .axis_style(GREY)
                    .label_style((FONT, 11))
                    .axis_desc_style((FONT, 11))
                    .x_labels(5)
                    .y_labels(5)
                    .x_label_formatter(&|tokens| if *tokens == 0.0 { "0".into() } else { count(*tokens) })
                    .y_label_formatter(&|value| tick(*value))
                    .x_desc("tokens seen")
                    .y_desc(self.unit)
                    .draw()?;
                chart.draw_series(LineSeries::new(shown[0].iter().map(|(x, value)| (*x, value.min(1.05 * hi))), BLUE.mix(0.28)))?;
                chart.draw_series(LineSeries::new(shown[1].iter().copied(), BLUE.stroke_width(2)))?;
            }};
        }
        if self.log {
            panel!((lo / 1.1..hi * 1.1).log_scale());
        } else {
            panel!(0.0..if hi > 0.0 { 1.08 * hi } else { 1.0 });
        }
        Ok(())
    }
}

/// Running mean over about a fortieth of the curve, of logarithms on a logarithmic axis.
fn smooth(points: &[(f64, f64)], log: bool) -> Vec<(f64, f64)> {
    let rate = 1.0 / (points.len() as f64 / 40.0).max(2.0);
    let (mut mean, mut weight) = (0.0, 0.0);
    points
        .iter()
        .map(|(x, value)| {
            let value = if log { value.ln() } else { *value };
            mean += rate * (value - mean);
            weight += rate * (1.0 - weight);
            // Dividing by the weight removes the pull towards the start at 0.
            let mean = mean / weight;
            (*x, if log { mean.exp() } else { mean })
        })
        .collect()
}
