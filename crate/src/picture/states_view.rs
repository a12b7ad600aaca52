//! State features and swaps of states: a table of what tells a state where; predicted beside measured changes.

use super::chart::{scatter, ChartConfig};
use super::html::{Align, Html};
use super::words::number;
use super::{Picture, Show};
use crate::states::{QuestionToken, StateFeatures, SwapCheck, SwapEffect};

impl Show for StateFeatures {
    fn text(&self) -> String {
        self.to_string()
    }

    fn html(&self) -> Html {
        let layers: std::collections::BTreeSet<usize> = self.best().iter().map(|feature| feature.layer).collect();
        let rows = layers.into_iter().map(|layer| {
            let told = QuestionToken::ALL.into_iter().flat_map(|place| [0.8, 0.6].map(|f1| Html::text(&self.told(layer, place, f1).to_string())));
            std::iter::once(Html::text(&layer.to_string())).chain(told).collect()
        });
        let columns = [("layer", Align::Right), ("at the city, F1 ≥ 0.8", Align::Right), ("F1 ≥ 0.6", Align::Right), ("at the last token, F1 ≥ 0.8", Align::Right), ("F1 ≥ 0.6", Align::Right)];
        let title = format!("States that one feature tells, of {}", self.facts().states.len());
        Html::card(&title, Html::table(&columns, rows))
    }
}

impl Show for SwapCheck {
    fn text(&self) -> String {
        self.to_string()
    }

    /// Predicted against measured changes of the city's own answer and of the new state's, one point each; in a second colour
    /// what as many random features did when they were moved as much. None where nothing that was measured is finite.
    fn picture(&self) -> Option<Picture> {
        let points = |measured: fn(&SwapEffect) -> &Vec<f64>| -> Vec<(f64, f64)> {
            self.swaps.iter().flat_map(|swap| swap.predicted.iter().copied().zip(measured(swap).iter().copied()).take(2)).collect()
        };
        let series = [("the state's features", points(|swap| &swap.measured)), ("random features", points(|swap| &swap.control_measured))];
        let config = ChartConfig {
            title: format!("{} swaps of states", self.swaps.len()),
            x: "predicted change of the logit (nats)".to_string(),
            y: "measured".to_string(),
            ..ChartConfig::default()
        };
        scatter(&series, &config).ok()
    }

    fn html(&self) -> Html {
        let columns = [("question", Align::Left), ("state put in", Align::Left), ("answer", Align::Left), ("predicted", Align::Right), ("measured", Align::Right), ("random features", Align::Left), ("measured", Align::Right)];
        let rows = self.swaps.iter().take(40).map(|swap| {
            let at = |changes: &[f64]| Html::text(&changes.get(1).map_or_else(String::new, |change| number(*change, 3)));
            vec![
                Html::text(&format!("{}, {}: {}", swap.city, swap.attribute, swap.answers[0])),
                Html::text(&format!("{}: {}", swap.state, swap.answers[1])),
                Html::text(&swap.after),
                at(&swap.predicted),
                at(&swap.measured),
                Html::text(&swap.control_after),
                at(&swap.control_measured),
            ]
        });
        let shown = format!("{} of {} swaps; changes are those of the new answer's logit", self.swaps.len().min(40), self.swaps.len());
        let parts = [self.picture().map_or_else(|| Html::text(""), |picture| picture.image()), Html::passage(&self.to_string()), Html::details(&shown, Html::table(&columns, rows))];
        Html::card("Swaps of states", Html::join(parts))
    }
}
