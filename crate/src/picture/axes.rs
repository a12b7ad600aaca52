//! Axes: where the ticks of a range stand and what they are called, and the mesh of a chart.

use super::canvas::{font, stroke, Area, FAINT, INK, QUIET, UNIT};
use super::words::{number, tick};
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;
use std::ops::Range;

/// A chart of two axes with ticks of our own.
pub(super) type Flat<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Axis, Axis>>;

/// A range with its ticks. On a logarithmic axis places are logarithms to base 10.
#[derive(Clone)]
pub(super) struct Axis {
    pub label: String,
    /// Where the axis begins and ends.
    pub from: f64,
    pub to: f64,
    ticks: Vec<(f64, String)>,
    log: bool,
}

impl Axis {
    /// An axis for values from `low` to `high`, with some room; from 0 where `zero` asks for it.
    pub fn of(label: &str, (low, high): (f64, f64), log: bool, zero: bool) -> Axis {
        if log {
            return Axis::logarithmic(label, low, high);
        }
        let (low, high) = if zero { (low.min(0.0), high.max(0.0)) } else { (low, high) };
        let span = if high > low { high - low } else { high.abs().max(1.0) };
        let from = if zero && low == 0.0 { 0.0 } else { low - 0.05 * span };
        let to = if zero && high == 0.0 && low < 0.0 { 0.0 } else { high + 0.06 * span };
        Axis::linear(label, from, to)
    }

    /// An axis with exactly these ends.
    pub fn linear(label: &str, from: f64, to: f64) -> Axis {
        let ticks = linear_ticks(from, to).into_iter().map(|value| (value, tick(value, to))).collect();
        Axis { label: label.to_string(), from, to, ticks, log: false }
    }

    fn logarithmic(label: &str, low: f64, high: f64) -> Axis {
        let (low, high) = if low > 0.0 && high.is_finite() && low <= high { (low, high) } else { (0.1, 1.0) };
        let (from, to) = (low.log10(), high.log10());
        let room = (0.05 * (to - from)).max(0.02);
        let (from, to) = (from - room, to + room);
        let ticks = log_ticks(from, to).into_iter().map(|value| (value.log10(), number(value, 6))).collect();
        Axis { label: label.to_string(), from, to, ticks, log: true }
    }

    /// Whole numbers 0 to `count - 1`, at most some twenty of them named.
    pub fn whole(label: &str, count: usize) -> Axis {
        let step = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].into_iter().find(|step| count <= 20 * step).unwrap_or(count / 16 + 1);
        let ticks = (0..count).step_by(step).map(|at| (at as f64, at.to_string())).collect();
        Axis { label: label.to_string(), from: -0.5, to: (count as f64 - 0.5).max(0.5), ticks, log: false }
    }

    /// Where a value stands on the axis; `None` where it has no place.
    pub fn place(&self, value: f64) -> Option<f64> {
        match self.log {
            true => (value > 0.0 && value.is_finite()).then(|| value.log10()),
            false => value.is_finite().then_some(value),
        }
    }

}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, place: &f64, (first, last): (i32, i32)) -> i32 {
        let share = if self.to > self.from { (place - self.from) / (self.to - self.from) } else { 0.5 };
        first + (share * f64::from(last - first)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        match hint.weight().allow_light_points() {
            true => Vec::new(),
            false => self.ticks.iter().map(|(place, _)| *place).collect(),
        }
    }

    fn range(&self) -> Range<f64> {
        self.from..self.to
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, place: &f64) -> String {
        let nearest = self.ticks.iter().min_by(|a, b| (a.0 - place).abs().total_cmp(&(b.0 - place).abs()));
        nearest.map_or_else(String::new, |(_, text)| text.clone())
    }
}

/// Multiples of 1, 2 or 5 times a power of ten: about six between the ends.
pub(super) fn linear_ticks(from: f64, to: f64) -> Vec<f64> {
    let span = to - from;
    if !(span.is_finite() && span > 0.0) {
        return vec![from];
    }
    let power = 10_f64.powf((span / 5.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|k| k * power).find(|step| span / step <= 6.5).unwrap_or(10.0 * power);
    let (first, last) = ((from / step - 1e-9).ceil() as i64, (to / step + 1e-9).floor() as i64);
    (first..=last).map(|k| k as f64 * step).collect()
}

/// Powers of ten between two powers, or finer steps until at least three ticks stand there.
fn log_ticks(from: f64, to: f64) -> Vec<f64> {
    let decades = (from.floor() as i32)..=(to.ceil() as i32);
    for parts in [&[1.0][..], &[1.0, 3.0], &[1.0, 2.0, 5.0], &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0]] {
        let all = decades.clone().flat_map(|power| parts.iter().map(move |part| part * 10_f64.powi(power)));
        let ticks: Vec<f64> = all.filter(|value| (from..=to).contains(&value.log10())).collect();
        if ticks.len() >= 3 {
            let every = ticks.len().div_ceil(9);
            return ticks.into_iter().step_by(every).collect();
        }
    }
    linear_ticks(10_f64.powf(from), 10_f64.powf(to)).into_iter().filter(|value| *value > 0.0).collect()
}

/// Margins in pixels: the room for labels below and at the left.
const BELOW: f64 = 36.0;
const SMALL: f64 = 10.5;

/// A chart with its axes drawn.
pub(super) fn chart<'a, 'b>(area: &'a Area<'b>, x: &Axis, y: &Axis) -> Result<Flat<'a, 'b>, Box<dyn std::error::Error>> {
    let pixels = |pixels: f64| (UNIT * pixels) as i32;
    let widest = y.ticks.iter().map(|(_, text)| super::canvas::text_width(text, SMALL)).fold(10.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .margin(pixels(8.0))
        .margin_right(pixels(16.0))
        .x_label_area_size(pixels(BELOW))
        .y_label_area_size(pixels(widest + 28.0))
        .build_cartesian_2d(x.clone(), y.clone())?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(stroke(FAINT, 1.0))
        .axis_style(stroke(QUIET, 1.0))
        .set_all_tick_mark_size(pixels(4.0))
        .label_style(font(SMALL, INK))
        .axis_desc_style(font(SMALL + 0.5, INK))
        .x_desc(super::words::tame(&x.label))
        .y_desc(super::words::tame(&y.label))
        .draw()?;
    Ok(chart)
}
