//! Charts of numbers of one's own: lines, points, bars.

use super::axes::{chart, Axis, Flat};
use super::canvas::{stroke, Drawn, BLUE, SERIES};
use super::frame::{Frame, Mark};
use super::html::WIDTH;
use super::rows::{Bar, Row, Rows};
use super::words::number;
use super::Picture;
use crate::error::{Error, ErrorKind, Result};
use plotters::prelude::*;

/// Title, axes and size of a chart.
#[derive(Clone, Debug, PartialEq)]
pub struct ChartConfig {
    /// Above the chart. Default empty.
    pub title: String,
    /// Below the horizontal axis, with the unit. Default empty.
    pub x: String,
    /// Beside the vertical axis, with the unit. Default empty.
    pub y: String,
    /// The horizontal axis is logarithmic. Default false.
    pub log_x: bool,
    /// The vertical axis is logarithmic. Default false.
    pub log_y: bool,
    /// Pixels without title and legend. Default 720 and 300.
    pub size: (u32, u32),
}

impl Default for ChartConfig {
    fn default() -> Self {
        ChartConfig { title: String::new(), x: String::new(), y: String::new(), log_x: false, log_y: false, size: (WIDTH, 300) }
    }
}

/// Each named series of points `(x, y)` as a line. A point that is not finite, or not above 0 on a logarithmic
/// axis, interrupts its line; the caption counts them.
///
/// ```
/// use cltlab::picture::{lines, ChartConfig};
/// let fvu: Vec<(f64, f64)> = (1..=50).map(|step| (step as f64, 1.0 / step as f64)).collect();
/// let config = ChartConfig { title: "Two runs".into(), x: "step".into(), y: "FVU".into(), log_y: true, ..ChartConfig::default() };
/// let picture = lines(&[("k = 8", fvu.clone()), ("k = 16", fvu.iter().map(|(x, y)| (*x, 0.7 * y)).collect())], &config)?;
/// assert!(picture.svg().contains("k = 16"));
/// # Ok::<(), cltlab::Error>(())
/// ```
///
/// # Errors
/// `BadInput` for a chart smaller than 200 by 100 or larger than 4000 by 4000 pixels, and without any point to draw.
pub fn lines<N: AsRef<str>, P: AsRef<[(f64, f64)]>>(series: &[(N, P)], config: &ChartConfig) -> Result<Picture> {
    points(&borrowed(series), config, true)
}

/// Each named series of points `(x, y)` as dots. Points without a place on the axes are left out; the caption counts them.
///
/// ```
/// use cltlab::picture::{scatter, ChartConfig};
/// let picture = scatter(&[("features", vec![(0.1, 3.0), (0.02, 41.0)])], &ChartConfig { log_x: true, ..ChartConfig::default() })?;
/// assert_eq!(picture.svg().matches("<circle").count(), 2);
/// # Ok::<(), cltlab::Error>(())
/// ```
///
/// # Errors
/// As [`lines`].
pub fn scatter<N: AsRef<str>, P: AsRef<[(f64, f64)]>>(series: &[(N, P)], config: &ChartConfig) -> Result<Picture> {
    points(&borrowed(series), config, false)
}

/// A bar for each named value, from 0, one below the other; `config.x` is the unit of the values. A value that is
/// not finite has no bar, and its name says what it is.
///
/// ```
/// use cltlab::picture::{bars, ChartConfig};
/// let config = ChartConfig { title: "Loss recovered".into(), x: "%".into(), ..ChartConfig::default() };
/// assert!(bars(&[("gpt2", 91.0), ("pythia", 84.5)], &config)?.svg().contains("pythia"));
/// # Ok::<(), cltlab::Error>(())
/// ```
///
/// # Errors
/// `BadInput` for no value, more than 500, and the width of [`lines`]; the height follows from the number of bars.
pub fn bars<N: AsRef<str>>(values: &[(N, f64)], config: &ChartConfig) -> Result<Picture> {
    check(config)?;
    if !(1..=500).contains(&values.len()) {
        return Err(Error::expected(ErrorKind::BadInput, "bars: values", values.len(), "1 to 500"));
    }
    let row = |(name, value): &(N, f64)| Row {
        left: name.as_ref().to_string(),
        right: number(*value, 4),
        bars: vec![Bar { value: *value, top: 4.0, height: 13.0, colour: BLUE }],
    };
    let frame = Frame { title: config.title.clone(), alt: alt("Bars", config, values.iter().map(|(name, value)| format!("{} {}", name.as_ref(), number(*value, 4)))), ..Frame::default() };
    let rows = Rows { axis: config.x.clone(), heads: ["", ""], rows: values.iter().map(row).collect(), pitch: 21.0, width: f64::from(config.size.0) };
    Ok(rows.picture(frame))
}

/// A named series of points.
type Series<'a> = (&'a str, &'a [(f64, f64)]);

fn borrowed<N: AsRef<str>, P: AsRef<[(f64, f64)]>>(series: &[(N, P)]) -> Vec<Series<'_>> {
    series.iter().map(|(name, points)| (name.as_ref(), points.as_ref())).collect()
}

fn check(config: &ChartConfig) -> Result<()> {
    let (width, height) = config.size;
    if !(200..=4000).contains(&width) || !(100..=4000).contains(&height) {
        return Err(Error::expected(ErrorKind::BadInput, "ChartConfig::size", format_args!("{width} × {height}"), "200 × 100 to 4000 × 4000 pixels"));
    }
    Ok(())
}

fn alt(kind: &str, config: &ChartConfig, series: impl Iterator<Item = String>) -> String {
    let (all, title): (Vec<String>, _) = (series.collect(), if config.title.is_empty() { String::new() } else { format!(" \"{}\"", config.title) });
    let some = all.iter().take(12).cloned().collect::<Vec<_>>().join("; ");
    format!("{kind}{title}: {some}{}", if all.len() > 12 { format!(" and {} more", all.len() - 12) } else { String::new() })
}

/// Lowest and highest value that has a place; `None` without one.
fn bounds(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    (low <= high).then_some((low, high))
}

fn points(series: &[Series<'_>], config: &ChartConfig, joined: bool) -> Result<Picture> {
    check(config)?;
    let fits = |value: f64, log: bool| value.is_finite() && (!log || value > 0.0);
    let usable = |(x, y): &(f64, f64)| fits(*x, config.log_x) && fits(*y, config.log_y);
    let all = || series.iter().flat_map(|(_, points)| points.iter());
    let (total, kept) = (all().count(), all().filter(|point| usable(point)).count());
    let (Some(across), Some(up)) = (bounds(all().filter(|p| usable(p)).map(|p| p.0)), bounds(all().filter(|p| usable(p)).map(|p| p.1))) else {
        return Err(Error::expected(ErrorKind::BadInput, "chart: points", format_args!("{total}, none with a place on the axes"), "at least one finite point, above 0 on a logarithmic axis"));
    };
    let x = Axis::of(&config.x, across, config.log_x, false);
    let y = Axis::of(&config.y, up, config.log_y, false);
    let colour = |k: usize| SERIES[k % SERIES.len()];
    let mark = |k: usize| if joined { Mark::Line(colour(k)) } else { Mark::Circle(colour(k)) };
    let legend = if series.len() > 1 { series.iter().enumerate().map(|(k, (name, _))| (mark(k), (*name).to_string())).collect() } else { Vec::new() };
    let only = series.first().filter(|(name, _)| series.len() == 1 && !name.is_empty());
    let left_out = match total - kept {
        0 => String::new(),
        out => format!("{out} of {total} points have no place on the axes and are left out."),
    };
    let title = match only {
        Some((name, _)) if config.title.is_empty() => (*name).to_string(),
        _ => config.title.clone(),
    };
    let said = series.iter().map(|(name, points)| format!("{name}, {} points{}", points.len(), points.last().map_or_else(String::new, |(_, last)| format!(", the last {}", number(*last, 4)))));
    let frame = Frame { title, caption: left_out, legend, alt: alt(if joined { "Lines" } else { "Points" }, config, said) };
    let (width, height) = config.size;
    Ok(frame.draw((f64::from(width), f64::from(height)), |canvas| {
        let mut chart = chart(&canvas.area, &x, &y)?;
        for (k, (_, points)) in series.iter().enumerate() {
            draw(&mut chart, points.iter().map(|(a, b)| Some((x.place(*a)?, y.place(*b)?))), colour(k), joined)?;
        }
        Ok(())
    }))
}

/// Draws a series; a place that is missing interrupts it, and a point between two of those is a dot.
pub(super) fn draw(chart: &mut Flat<'_, '_>, places: impl Iterator<Item = Option<(f64, f64)>>, colour: RGBColor, joined: bool) -> Drawn {
    let places: Vec<Option<(f64, f64)>> = places.collect();
    let dot = |at: (f64, f64)| Circle::new(at, super::canvas::units(3.0), colour.mix(0.8).filled());
    for part in places.split(Option::is_none) {
        let part: Vec<(f64, f64)> = part.iter().flatten().copied().collect();
        if joined && part.len() > 1 {
            chart.draw_series(std::iter::once(PathElement::new(part, stroke(colour, 1.8))))?;
        } else {
            chart.draw_series(part.into_iter().map(dot))?;
        }
    }
    Ok(())
}
