//! The report of an evaluation: charts per layer, the fidelity figures, and a table.

use super::html::{row, Align, Html};
use super::{per_layer, Picture, Show};
use crate::eval::{LayerReport, Report};

impl Report {
    /// Held-out variance unexplained, layer by layer.
    pub fn fvu_picture(&self) -> Picture {
        per_layer::fvu(&self.layer(|layer| layer.fvu))
    }

    /// Active features per token, layer by layer.
    pub fn l0_picture(&self) -> Picture {
        per_layer::l0(&self.layer(|layer| layer.l0))
    }

    /// Share of features that never fired, layer by layer.
    pub fn dead_picture(&self) -> Picture {
        per_layer::dead(&self.layer(|layer| layer.dead))
    }

    fn layer(&self, value: fn(&LayerReport) -> f64) -> Vec<f64> {
        self.layers.iter().map(value).collect()
    }
}

impl Show for Report {
    fn text(&self) -> String {
        self.to_string()
    }

    /// [`Report::fvu_picture`].
    fn picture(&self) -> Option<Picture> {
        Some(self.fvu_picture())
    }

    /// Charts, figures and the table of layers.
    fn html(&self) -> Html {
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        let mut figures = vec![
            ("variance unexplained (FVU), mean of layers", format!("{:.3}", self.fvu())),
            ("active features per token and layer (L0)", format!("{:.1}", self.l0())),
            ("dead features", percent(self.dead())),
            ("held-out tokens", self.tokens.to_string()),
        ];
        if self.fidelity_tokens > 0 {
            figures.extend([
                ("cross-entropy of the model", format!("{:.3} nats", self.cross_entropy)),
                ("… with every MLP replaced", format!("{:.3} nats", self.replacement_cross_entropy)),
                ("… with every MLP's output zero", format!("{:.3} nats", self.zero_ablation_ce)),
                ("loss recovered", percent(self.loss_recovered())),
                ("KL divergence from the model", format!("{:.3} nats", self.kl)),
                ("same likeliest next token", percent(self.top1)),
                ("predictions compared", self.fidelity_tokens.to_string()),
            ]);
        }
        let rows = self.layers.iter().enumerate().map(|(l, layer)| row![l.to_string(), format!("{:.3}", layer.fvu), format!("{:.1}", layer.l0), percent(layer.dead)]);
        let columns = [("layer", Align::Right), ("FVU", Align::Right), ("L0", Align::Right), ("dead", Align::Right)];
        Html::join([
            Html::facts("Evaluation on held-out text", &figures),
            self.fvu_picture().html(),
            self.l0_picture().html(),
            Html::details("Layers as a table", Html::table(&columns, rows)),
        ])
        .block()
    }
}
