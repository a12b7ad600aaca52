//! Supernodes: the predicted and the measured change of the likeliest output for each group, with what random
//! features in its place did in grey; as a picture, as a table, as text.

use super::chart::QUIET;
use super::html::{self, visible, Align, WIDTH};
use super::svg::{Anchor, Svg};
use super::Picture;
use crate::intervene::{SupernodeCheck, SupernodeEffect};

const ROW: f64 = 34.0;
const HEAD: f64 = 58.0;
const INK: &str = "#222";
const PREDICTED: &str = "#a6bddb";
const MEASURED: &str = "#2b7bba";
const CONTROL: &str = "#b8b8b8";

/// The change of the likeliest output.
fn first(changes: &[f64]) -> f64 {
    changes.first().copied().filter(|change| change.is_finite()).unwrap_or(0.0)
}

fn name(effect: &SupernodeEffect, most: usize) -> String {
    format!("{} × {}", html::shorten(&effect.group.name, most), effect.factor)
}

impl SupernodeCheck {
    /// Bars of the predicted and the measured change of the likeliest output for each group and factor; in
    /// grey what each control did.
    pub fn picture(&self) -> Picture {
        let foot = HEAD + ROW * self.effects.len() as f64;
        let mut svg = Svg::new(f64::from(WIDTH), foot + 34.0);
        svg.text((10.0, 20.0), Anchor::Start, 13.5, INK, "Supernodes: predicted, measured, random features");
        svg.text((10.0, 38.0), Anchor::Start, 10.0, QUIET, &html::shorten(&self.summary(), 112));
        let (left, right) = (250.0, 700.0);
        let shown = self.effects.iter().flat_map(|effect| {
            effect.controls.iter().map(|control| first(&control.measured)).chain([first(&effect.predicted), first(&effect.measured)])
        });
        let most = shown.map(f64::abs).fold(0.0, f64::max).max(1e-12);
        let (zero, scale) = (0.5 * (left + right), 0.5 * (right - left) / (1.05 * most));
        super::chart::about_zero(&mut svg, most, (zero, scale), (HEAD, foot));
        let output = self.outputs.first().map_or("", |(_, text, _)| text);
        let axis = format!("change of the logit of {}, less the mean over the vocabulary (nats)", visible(output, 20));
        svg.text((zero, foot + 28.0), Anchor::Middle, 10.5, INK, &axis);
        for (k, effect) in self.effects.iter().enumerate() {
            let y = HEAD + ROW * k as f64;
            svg.text((240.0, y + 19.0), Anchor::End, 10.5, INK, &name(effect, 32));
            let mut bar = |value: f64, top: f64, height: f64, colour: &str| {
                let length = scale * value;
                svg.rect((zero + length.min(0.0), y + top), (length.abs(), height), colour);
            };
            bar(first(&effect.predicted), 3.0, 8.0, PREDICTED);
            bar(first(&effect.measured), 11.5, 8.0, MEASURED);
            let thin = 9.0 / effect.controls.len().max(1) as f64;
            for (i, control) in effect.controls.iter().enumerate() {
                bar(first(&control.measured), 20.5 + thin * i as f64, 0.8 * thin, CONTROL);
            }
        }
        for (x, colour, text) in [(400.0, PREDICTED, "predicted by the graph"), (550.0, MEASURED, "measured"), (630.0, CONTROL, "random")] {
            svg.rect((x, 12.0), (12.0, 8.0), colour);
            svg.text((x + 17.0, 20.0), Anchor::Start, 10.5, INK, text);
        }
        let alt = self.summary();
        Picture::new(svg.finish(&alt), alt, WIDTH)
    }

    /// Picture, correlations, and the numbers as a table, as HTML.
    pub fn html(&self) -> String {
        let rows = self.effects.iter().flat_map(|effect| {
            self.outputs.iter().enumerate().map(|(k, (_, text, _))| {
                let random: Vec<f64> = effect.controls.iter().filter_map(|control| control.measured.get(k).copied()).collect();
                let mean = random.iter().sum::<f64>() / random.len().max(1) as f64;
                let [predicted, measured] = [&effect.predicted, &effect.measured].map(|changes| changes.get(k).copied().unwrap_or(0.0));
                vec![
                    html::escape(&effect.group.name),
                    effect.group.features.len().to_string(),
                    effect.factor.to_string(),
                    html::token(text),
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
        let table = html::table(&columns, &rows.collect::<Vec<_>>());
        format!("<div>{}<div><small>{}</small></div>{}</div>", self.picture().html(), html::escape(&self.summary()), html::details("Numbers as a table", &table))
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
