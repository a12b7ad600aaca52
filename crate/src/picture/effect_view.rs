//! The effect of an intervention: predicted and measured change of each shown output, side by side.

use super::chart::QUIET;
use super::html::{self, visible, Align, WIDTH};
use super::svg::{Anchor, Svg};
use super::Picture;
use crate::intervene::{Change, Effect, Intervention, Positions};

const ROW: f64 = 24.0;
const HEAD: f64 = 62.0;
const INK: &str = "#222";
const PREDICTED: &str = "#a6bddb";
const MEASURED: &str = "#2b7bba";

impl Effect {
    /// Bars of the predicted and the measured change of each output's logit, with its probability
    /// before and after.
    pub fn picture(&self) -> Picture {
        let height = HEAD + ROW * self.outputs.len() as f64 + 34.0;
        let mut svg = Svg::new(f64::from(WIDTH), height);
        svg.text((10.0, 20.0), Anchor::Start, 13.5, INK, "Predicted and measured change of the outputs");
        svg.text((10.0, 38.0), Anchor::Start, 10.0, QUIET, &html::shorten(&self.changes(), 112));
        let (left, right, foot) = (150.0, 560.0, HEAD + ROW * self.outputs.len() as f64);
        let finite = |value: f64| if value.is_finite() { value } else { 0.0 };
        let most = self.outputs.iter().flat_map(|o| [o.predicted, o.measured]).map(|v| finite(v).abs()).fold(0.0, f64::max).max(1e-12);
        let (zero, scale) = (0.5 * (left + right), 0.5 * (right - left) / (1.05 * most));
        svg.text((140.0, HEAD - 6.0), Anchor::End, 10.0, QUIET, "output");
        svg.text((right + 76.0, HEAD - 6.0), Anchor::Middle, 10.0, QUIET, "probability");
        super::chart::about_zero(&mut svg, most, (zero, scale), (HEAD, foot));
        svg.text((zero, foot + 28.0), Anchor::Middle, 10.5, INK, "change of the logit, less the mean over the vocabulary (nats)");
        for (k, output) in self.outputs.iter().enumerate() {
            let y = HEAD + ROW * k as f64;
            for (value, top, colour) in [(output.predicted, 4.0, PREDICTED), (output.measured, 12.5, MEASURED)] {
                let length = scale * finite(value);
                svg.rect((zero + length.min(0.0), y + top), (length.abs(), 8.0), colour);
            }
            svg.text((140.0, y + 16.0), Anchor::End, 11.0, INK, &visible(&output.text, 16));
            let odds = format!("{:.2} % → {:.2} %", 100.0 * output.before, 100.0 * output.after);
            svg.text((right + 76.0, y + 16.0), Anchor::Middle, 10.5, INK, &odds);
        }
        for (x, colour, name) in [(380.0, PREDICTED, "predicted by the graph's model"), (580.0, MEASURED, "measured")] {
            svg.rect((x, 12.0), (12.0, 8.0), colour);
            svg.text((x + 17.0, 20.0), Anchor::Start, 10.5, INK, name);
        }
        let alt = self.alt();
        Picture::new(svg.finish(&alt), alt, WIDTH)
    }

    /// Picture, agreement, and the numbers as a table, as HTML.
    pub fn html(&self) -> String {
        let rows: Vec<Vec<String>> = self
            .outputs
            .iter()
            .map(|o| {
                vec![
                    html::token(&o.text),
                    format!("{:.2} %", 100.0 * o.before),
                    format!("{:.2} %", 100.0 * o.after),
                    format!("{:+.3}", o.predicted),
                    format!("{:+.3}", o.measured),
                ]
            })
            .collect();
        let columns = [("output", Align::Left), ("before", Align::Right), ("after", Align::Right), ("predicted", Align::Right), ("measured", Align::Right)];
        format!(
            "<div>{}<div><small>{}</small></div>{}</div>",
            self.picture().html(),
            html::escape(&self.alt()),
            html::details("Numbers as a table", &html::table(&columns, &rows))
        )
    }

    fn alt(&self) -> String {
        let agreement = self.agreement().map_or_else(|| "nothing changed".to_string(), |r| format!("predicted against measured r = {r:.3}"));
        format!("Effect of {}: {agreement}, divergence of the outputs {:.4} nats", self.changes(), self.divergence())
    }

    fn changes(&self) -> String {
        let all: Vec<String> = self.interventions.iter().map(words).collect();
        all.join(", ")
    }
}

fn words(intervention: &Intervention) -> String {
    let place = intervention.place;
    let at = match place.positions {
        Positions::At(position) => format!("at {position}"),
        Positions::Range { start, end } => format!("at {start}..{end}"),
        Positions::From(start) => format!("from {start}"),
        Positions::All => "everywhere".to_string(),
    };
    let change = match intervention.change {
        Change::Set(value) => format!("= {value}"),
        Change::Scale(factor) => format!("× {factor}"),
        Change::Add(amount) => format!("+ {amount}"),
    };
    format!("feature {}/{} {at} {change}", place.layer, place.feature)
}
