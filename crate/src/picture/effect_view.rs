//! The effect of an intervention: predicted and measured change of each shown output, side by side.

use super::canvas::{BLUE, PALE};
use super::frame::{Frame, Mark};
use super::html::{row, Align, Html, WIDTH};
use super::rows::{Bar, Row, Rows};
use super::words::{number, visible};
use super::{Picture, Show};
use crate::intervene::{Change, Effect, Intervention, Positions};

/// Changes that are named one by one in a sentence.
const NAMED: usize = 4;

impl Effect {
    /// Bars of the predicted and the measured change of each output's logit, with its probability
    /// before and after.
    pub fn picture(&self) -> Picture {
        let frame = Frame {
            title: "Predicted and measured change of the outputs".to_string(),
            caption: self.sentence(),
            legend: vec![(Mark::Box(PALE), "predicted by the graph's model".to_string()), (Mark::Box(BLUE), "measured".to_string())],
            alt: format!("Effect of an intervention: {}", self.sentence()),
        };
        let rows = self.outputs.iter().map(|o| Row {
            left: visible(&o.text, 40),
            right: format!("{:.2} % → {:.2} %", 100.0 * o.before, 100.0 * o.after),
            bars: [(o.predicted, 4.0, PALE), (o.measured, 12.5, BLUE)].map(|(value, top, colour)| Bar { value, top, height: 8.0, colour }).into(),
        });
        let axis = "change of the logit, less the mean over the vocabulary (nats)".to_string();
        Rows { axis, heads: ["output", "probability"], rows: rows.collect(), pitch: 25.0, width: f64::from(WIDTH) }.picture(frame)
    }

    fn sentence(&self) -> String {
        let agreement = self.agreement().map_or_else(|| "nothing changed".to_string(), |r| format!("predicted against measured r = {r:.3}"));
        format!("{}: {agreement}, divergence of the outputs {:.4} nats", self.changes(), self.divergence())
    }

    /// The changes in few words: those that are many are counted, all are in the table.
    fn changes(&self) -> String {
        let all: Vec<String> = self.interventions.iter().take(NAMED).map(words).collect();
        match self.interventions.len() {
            many if many > NAMED => format!("{many} changes (features {} and {} more)", all.join("; "), many - NAMED),
            1 => format!("feature {}", all.join("; ")),
            _ => format!("features {}", all.join("; ")),
        }
    }
}

impl Show for Effect {
    fn text(&self) -> String {
        self.to_string()
    }

    fn picture(&self) -> Option<Picture> {
        Some(self.picture())
    }

    /// Picture, agreement, and the numbers as a table.
    fn html(&self) -> Html {
        let rows = self.outputs.iter().map(|o| {
            row![
                Html::token(&o.text),
                format!("{:.2} %", 100.0 * o.before),
                format!("{:.2} %", 100.0 * o.after),
                format!("{:+.3}", o.predicted),
                format!("{:+.3}", o.measured),
            ]
        });
        let columns = [("output", Align::Left), ("before", Align::Right), ("after", Align::Right), ("predicted", Align::Right), ("measured", Align::Right)];
        let changes = self.interventions.iter().map(|one| row![one.place.layer.to_string(), one.place.feature.to_string(), at(one), change(one)]);
        let of = [("layer", Align::Right), ("feature", Align::Right), ("positions", Align::Left), ("change", Align::Left)];
        Html::join([
            self.picture().html(),
            Html::details("Numbers as a table", Html::table(&columns, rows)),
            Html::details("Changes as a table", Html::table(&of, changes)),
        ])
        .block()
    }
}

fn at(intervention: &Intervention) -> String {
    match intervention.place.positions {
        Positions::At(position) => format!("at {position}"),
        Positions::Range { start, end } => format!("at {start}..{end}"),
        Positions::From(start) => format!("from {start}"),
        Positions::All => "everywhere".to_string(),
    }
}

fn change(intervention: &Intervention) -> String {
    match intervention.change {
        Change::Set(value) => format!("= {}", number(value.into(), 4)),
        Change::Scale(factor) => format!("× {}", number(factor.into(), 4)),
        Change::Add(amount) => format!("+ {}", number(amount.into(), 4)),
    }
}

fn words(intervention: &Intervention) -> String {
    let place = intervention.place;
    format!("{}/{} {} {}", place.layer, place.feature, at(intervention), change(intervention))
}
