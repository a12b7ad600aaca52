//! Bars about zero, a row for each thing, its name at the left and a figure at the right.

use super::canvas::{fit, text_width, wrap, Anchor, Canvas, Drawn, FAINT, INK, QUIET};
use super::frame::Frame;
use super::words::number;
use super::Picture;
use plotters::prelude::*;

/// One bar of a row.
pub(super) struct Bar {
    pub value: f64,
    /// Pixels from the row's upper end.
    pub top: f64,
    pub height: f64,
    pub colour: RGBColor,
}

/// One row.
pub(super) struct Row {
    pub left: String,
    pub right: String,
    pub bars: Vec<Bar>,
}

/// All rows, with one axis below.
pub(super) struct Rows {
    /// What the axis measures, with its unit.
    pub axis: String,
    /// What stands at the left and at the right.
    pub heads: [&'static str; 2],
    pub rows: Vec<Row>,
    /// Pixels of a row.
    pub pitch: f64,
    /// Pixels of the picture.
    pub width: f64,
}

const SIZE: f64 = 10.5;
const GAP: f64 = 10.0;

impl Rows {
    pub fn picture(self, frame: Frame) -> Picture {
        let top = if self.heads.iter().all(|head| head.is_empty()) { 8.0 } else { 22.0 };
        let foot = top + self.pitch * self.rows.len() as f64;
        let words = wrap(&self.axis, SIZE, self.width - 2.0 * GAP);
        let height = foot + 22.0 + 14.0 * words.len() as f64;
        frame.draw((self.width, height), |canvas| self.draw(canvas, (top, foot), &words))
    }

    fn draw(&self, canvas: &Canvas<'_>, (top, foot): (f64, f64), words: &[String]) -> Drawn {
        let widest = |text: fn(&Row) -> &str, head: &str| self.rows.iter().map(|row| text_width(text(row), SIZE)).fold(text_width(head, SIZE), f64::max);
        // The bars keep at least a third.
        let room = 0.33 * self.width;
        let (at_left, at_right) = (widest(|row| &row.left, self.heads[0]).min(room), widest(|row| &row.right, self.heads[1]).min(room));
        let (left, right) = (at_left + 2.0 * GAP, self.width - at_right - 2.0 * GAP);
        let values = self.rows.iter().flat_map(|row| row.bars.iter().map(|bar| bar.value)).filter(|value| value.is_finite());
        let (low, high) = values.fold((0.0_f64, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
        let (low, high) = if low == high { (-1.0, 1.0) } else { (low - 0.03 * (high - low), high + 0.03 * (high - low)) };
        let (low, high) = (if low > -0.04 * high { 0.0 } else { low }, if high < -0.04 * low { 0.0 } else { high });
        let place = |value: f64| left + (right - left) * (value - low) / (high - low);
        for value in super::axes::linear_ticks(low, high) {
            let zero = value.abs() < 1e-9 * (high - low);
            canvas.line((place(value), top), (place(value), foot), if zero { QUIET } else { FAINT }, 1.0)?;
            canvas.text((place(value), foot + 13.0), Anchor::Middle, SIZE, QUIET, &number(if zero { 0.0 } else { value }, 4))?;
        }
        canvas.text((left - GAP, top - 6.0), Anchor::End, SIZE, QUIET, self.heads[0])?;
        canvas.text((right + GAP, top - 6.0), Anchor::Start, SIZE, QUIET, self.heads[1])?;
        let middle = (0.5 * (left + right)).clamp(0.5 * self.widest(words) + GAP, (self.width - 0.5 * self.widest(words) - GAP).max(0.5 * self.widest(words) + GAP));
        for (k, line) in words.iter().enumerate() {
            canvas.text((middle, foot + 28.0 + 14.0 * k as f64), Anchor::Middle, SIZE, INK, line)?;
        }
        for (k, row) in self.rows.iter().enumerate() {
            let y = top + self.pitch * k as f64;
            for bar in row.bars.iter().filter(|bar| bar.value.is_finite()) {
                let (from, to) = (place(0.0).min(place(bar.value)), place(0.0).max(place(bar.value)));
                canvas.rect((from, y + bar.top), (to - from, bar.height), bar.colour.filled())?;
            }
            let base = y + 0.5 * self.pitch + 3.8;
            canvas.text((left - GAP, base), Anchor::End, SIZE, INK, &fit(&row.left, SIZE, at_left))?;
            canvas.text((right + GAP, base), Anchor::Start, SIZE, INK, &fit(&row.right, SIZE, at_right))?;
        }
        Ok(())
    }

    fn widest(&self, words: &[String]) -> f64 {
        words.iter().map(|line| text_width(line, SIZE)).fold(0.0, f64::max)
    }
}
