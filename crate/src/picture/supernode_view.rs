//! Supernodes: the predicted and the measured change of the likeliest output for each group, with what random
//! features in its place did in grey; as a picture, as a table, as text.

use super::canvas::{BLUE, PALE};
use super::frame::{Frame, Mark};
use super::html::{row, Align, Html, WIDTH};
use super::rows::{Bar, Row, Rows};
use super::words::{number, shorten, visible};
use super::{Picture, Show};
use crate::intervene::{SupernodeCheck, SupernodeEffect};
use plotters::style::RGBColor;

const CONTROL: RGBColor = RGBColor(184, 184, 184);

/// The change of the likeliest output.
fn first(changes: &[f64]) -> f64 {
    changes.first().copied().unwrap_or(f64::NAN)
}

fn name(effect: &SupernodeEffect, most: usize) -> String {
    format!("{} × {}", shorten(&effect.group.name, most), number(effect.factor, 4))
}

impl SupernodeCheck {
    /// Bars of the predicted and the measured change of the likeliest output for each group and factor; in
    /// grey what each control did. A change that is not finite has no bar.
    pub fn picture(&self) -> Picture {
        let legend = [(PALE, "predicted by the graph"), (BLUE, "measured"), (CONTROL, "random features in its place")];
        let frame = Frame {
            title: "Supernodes: predicted, measured, random features".to_string(),
            caption: self.summary(),
            legend: legend.into_iter().map(|(colour, text)| (Mark::Box(colour), text.to_string())).collect(),
            alt: self.summary(),
        };
        let rows = self.effects.iter().map(|effect| {
            let thin = 9.0 / effect.controls.len().max(1) as f64;
            let controls = effect.controls.iter().enumerate().map(|(i, control)| (first(&control.measured), 20.5 + thin * i as f64, 0.8 * thin, CONTROL));
            let own = [(first(&effect.predicted), 3.0, 8.0, PALE), (first(&effect.measured), 11.5, 8.0, BLUE)];
            let bars = own.into_iter().chain(controls).map(|(value, top, height, colour)| Bar { value, top, height, colour });
            Row { left: name(effect, 60), right: String::new(), bars: bars.collect() }
        });
        let output = self.outputs.first().map_or("", |(_, text, _)| text);
        let axis = format!("change of the logit of {}, less the mean over the vocabulary (nats)", visible(output, 40));
        Rows { axis, heads: ["group × factor", ""], rows: rows.collect(), pitch: 34.0, width: f64::from(WIDTH) }.picture(frame)
    }
}

impl Show for SupernodeCheck {
    fn text(&self) -> String {
        self.to_string()
    }

    fn picture(&self) -> Option<Picture> {
        Some(self.picture())
    }

    /// Picture, correlations, and the numbers as a table.
    fn html(&self) -> Html {
        let rows = self.effects.iter().flat_map(|effect| {
            self.outputs.iter().enumerate().map(|(k, (_, text, _))| {
                let random: Vec<f64> = effect.controls.iter().filter_map(|control| control.measured.get(k).copied()).collect();
                let mean = random.iter().sum::<f64>() / random.len().max(1) as f64;
                let [predicted, measured] = [&effect.predicted, &effect.measured].map(|changes| changes.get(k).copied().unwrap_or(f64::NAN));
                row![
                    effect.group.name.as_str(),
                    effect.group.features.len().to_string(),
                    effect.factor.to_string(),
                    Html::token(text),
                    format!("{predicted:+.3}"),
                    format!("{measured:+.3}"),
                    if random.is_empty() { "–".to_string() } else { format!("{mean:+.3}") },
                ]
            })
        });
        let columns = [
            ("group", Align::Left), ("features", Align::Right), ("set to times", Align::Right), ("output", Align::Left),
            ("predicted", Align::Right), ("measured", Align::Right), ("random, mean", Align::Right),
        ];
        Html::join([self.picture().html(), Html::details("Numbers as a table", Html::table(&columns, rows))]).block()
    }
}

impl std::fmt::Display for SupernodeCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let output = self.outputs.first().map_or("", |(_, text, _)| text);
        writeln!(f, "{:<44} {:>8} {:>10} {:>10} {:>10}", format!("change of the logit of {output:?}"), "features", "predicted", "measured", "random")?;
        for effect in &self.effects {
            let random = effect.controls.iter().map(|control| first(&control.measured)).sum::<f64>() / effect.controls.len().max(1) as f64;
            let (predicted, measured) = (first(&effect.predicted), first(&effect.measured));
            writeln!(f, "{:<44} {:>8} {predicted:>+10.3} {measured:>+10.3} {random:>+10.3}", name(effect, 38), effect.group.features.len())?;
        }
        write!(f, "{}", self.lines().join("\n"))
    }
}
