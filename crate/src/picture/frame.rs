//! Frame: title, caption and legend above a drawing, whole, in as many lines as they need.

use super::canvas::{fit, paint, text_width, wrap, Anchor, Canvas, Drawn, INK, QUIET};
use super::html::WIDTH;
use super::Picture;
use plotters::prelude::*;

const MARGIN: f64 = 10.0;
const TITLE: f64 = 13.5;
const SMALL: f64 = 10.5;
const LINE: f64 = 15.0;

/// The sign beside an entry of a legend.
#[derive(Clone, Copy)]
pub(super) enum Mark {
    Box(RGBColor),
    Line(RGBColor),
    Dashes(RGBColor),
    Circle(RGBColor),
    Diamond(RGBColor),
    Square(RGBColor),
}

/// What stands above a drawing.
#[derive(Clone, Default)]
pub(super) struct Frame {
    pub title: String,
    pub caption: String,
    pub legend: Vec<(Mark, String)>,
    /// What the picture says, in words.
    pub alt: String,
}

impl Frame {
    /// The picture of a drawing of so many pixels under this frame; a failure becomes a picture that says so.
    pub fn draw(self, size: (f64, f64), body: impl FnOnce(&Canvas<'_>) -> Drawn) -> Picture {
        match paint(size, body) {
            Ok(body) => Picture::compose(self, format!("<g transform=\"scale(0.125)\">\n{body}\n</g>"), size),
            Err(error) => Picture::compose(Frame { title: format!("no picture: {error}"), alt: self.alt, ..Frame::default() }, String::new(), (f64::from(WIDTH), 10.0)),
        }
    }

    /// The frame's elements, in units, and its height in pixels.
    pub fn head(&self, width: f64) -> (String, f64) {
        let room = width - 2.0 * MARGIN;
        let title = wrap(&self.title, TITLE, room);
        let caption = wrap(&self.caption, SMALL, room);
        // Places of the legend's entries: line and distance from the left.
        let (mut places, mut x, mut line) = (Vec::new(), MARGIN, 0);
        for (_, text) in &self.legend {
            let needs = 30.0 + text_width(text, SMALL);
            if x + needs > width && x > MARGIN {
                (x, line) = (MARGIN, line + 1);
            }
            places.push((x, line));
            x += needs + 6.0;
        }
        let lines = if self.legend.is_empty() { 0 } else { line + 1 };
        let height = match title.len() + caption.len() + lines {
            0 => 0.0,
            _ => 8.0 + 18.0 * title.len() as f64 + LINE * (caption.len() + lines) as f64,
        };
        let drawn = paint((width, height.max(1.0)), |canvas| {
            let mut y = 4.0;
            for text in &title {
                y += 18.0;
                canvas.text((MARGIN, y - 2.0), Anchor::Start, TITLE, INK, text)?;
            }
            for text in &caption {
                y += LINE;
                canvas.text((MARGIN, y - 2.0), Anchor::Start, SMALL, QUIET, text)?;
            }
            for ((mark, text), (x, line)) in self.legend.iter().zip(places) {
                let middle = y + LINE * line as f64 + 0.5 * LINE + 1.0;
                mark.draw(canvas, (x, middle))?;
                canvas.text((x + 24.0, middle + 3.5), Anchor::Start, SMALL, QUIET, &fit(text, SMALL, room - 24.0))?;
            }
            Ok(())
        });
        (drawn.unwrap_or_default(), height)
    }
}

impl Mark {
    fn draw(self, canvas: &Canvas<'_>, (x, y): (f64, f64)) -> Drawn {
        match self {
            Mark::Box(colour) => canvas.rect((x + 6.0, y - 4.0), (14.0, 8.0), colour.filled()),
            Mark::Line(colour) => canvas.line((x, y), (x + 20.0, y), colour, 2.5),
            Mark::Dashes(colour) => [0.0, 7.5, 15.0].iter().try_for_each(|at| {
                canvas.line((x + at, y), (x + at + 5.0, y), colour, 2.5)
            }),
            Mark::Circle(colour) => canvas.circle((x + 14.0, y), 4.5, colour, WHITE),
            Mark::Diamond(colour) => canvas.diamond((x + 14.0, y), 5.0, WHITE, colour),
            Mark::Square(colour) => canvas.square((x + 14.0, y), 4.5, colour, WHITE),
        }
    }
}
