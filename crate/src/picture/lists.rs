//! Lists: several reports, trainings, features or groups as one table and one chart.

use super::html::{Align, Html};
use super::words::{count, number};
use super::{lines, scatter, ChartConfig, Picture, Show};
use crate::clt::FeatureId;
use crate::eval::Report;
use crate::graph::Supernode;
use crate::replacement::FeatureNode;
use crate::train::History;

/// A list as a table of words: what it is of, headings, rows of cells.
struct Table {
    heads: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn html(&self, picture: Option<Picture>) -> Html {
        let table = Html::table(&self.heads, self.rows.iter().map(|row| row.iter().map(|cell| Html::text(cell)).collect()));
        Html::join([table].into_iter().chain(picture.map(|picture| picture.html()))).block()
    }

    fn text(&self) -> String {
        let heads: Vec<String> = self.heads.iter().map(|(head, _)| (*head).to_string()).collect();
        let all: Vec<&Vec<String>> = std::iter::once(&heads).chain(&self.rows).collect();
        let width = |column: usize| all.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..heads.len()).map(width).collect();
        let cell = |(text, ((_, align), width)): (&String, (&(&str, Align), &usize))| match align {
            Align::Left => format!("{text:<width$}"),
            Align::Right => format!("{text:>width$}"),
        };
        let line = |row: &&Vec<String>| row.iter().zip(self.heads.iter().zip(&widths)).map(cell).collect::<Vec<_>>().join("  ").trim_end().to_string();
        all.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// Makes the table and the picture of a list its [`Show`].
macro_rules! shown_as {
    ([$($generic:tt)*] $item:ty, $names:expr) => {
        impl<$($generic)*> Show for [$item] {
            fn text(&self) -> String {
                Table::of(&$names(self)).text()
            }

            fn html(&self) -> Html {
                Table::of(&$names(self)).html(Show::picture(self))
            }

            fn picture(&self) -> Option<Picture> {
                chart(&$names(self))
            }
        }
    };
}

/// A value and what it is called.
type Named<'a, T> = (String, &'a T);

fn counted<T>(items: &[T]) -> Vec<Named<'_, T>> {
    items.iter().enumerate().map(|(at, item)| (at.to_string(), item)).collect()
}

fn named<S: AsRef<str>, T>(items: &[(S, T)]) -> Vec<Named<'_, T>> {
    items.iter().map(|(name, item)| (name.as_ref().to_string(), item)).collect()
}

shown_as!([] Report, counted);
shown_as!([S: AsRef<str>] (S, Report), named);
shown_as!([] History, counted);
shown_as!([S: AsRef<str>] (S, History), named);
shown_as!([] FeatureNode, counted);
shown_as!([] FeatureId, counted);
shown_as!([] Supernode, counted);

impl<T> Show for Vec<T>
where
    [T]: Show,
{
    fn text(&self) -> String {
        self.as_slice().text()
    }

    fn html(&self) -> Html {
        self.as_slice().html()
    }

    fn picture(&self) -> Option<Picture> {
        self.as_slice().picture()
    }
}

impl<T, const N: usize> Show for [T; N]
where
    [T]: Show,
{
    fn text(&self) -> String {
        self.as_slice().text()
    }

    fn html(&self) -> Html {
        self.as_slice().html()
    }

    fn picture(&self) -> Option<Picture> {
        self.as_slice().picture()
    }
}

/// What a list needs to be a table and a chart.
trait Listed: Sized {
    /// Headings after the name's, and whether a column holds words.
    const HEADS: &'static [(&'static str, Align)];

    fn cells(&self) -> Vec<String>;

    fn chart(items: &[Named<'_, Self>]) -> Option<Picture>;
}

impl Table {
    fn of<T: Listed>(items: &[Named<'_, T>]) -> Table {
        let rows = items.iter().map(|(name, item)| std::iter::once(name.clone()).chain(item.cells()).collect());
        Table { heads: std::iter::once(&("", Align::Left)).chain(T::HEADS).copied().collect(), rows: rows.collect() }
    }
}

fn chart<T: Listed>(items: &[Named<'_, T>]) -> Option<Picture> {
    T::chart(items)
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

impl Listed for Report {
    const HEADS: &'static [(&'static str, Align)] = &[
        ("FVU", Align::Right), ("L0 per layer", Align::Right), ("dead", Align::Right), ("tokens", Align::Right), ("KL (nats)", Align::Right), ("loss recovered", Align::Right), ("same next token", Align::Right),
    ];

    fn cells(&self) -> Vec<String> {
        let fidelity = |text: String| if self.fidelity_tokens > 0 { text } else { "–".to_string() };
        vec![
            format!("{:.3}", self.fvu()), format!("{:.1}", self.l0()), percent(self.dead()), count(self.tokens as f64),
            fidelity(format!("{:.3}", self.kl)), fidelity(percent(self.loss_recovered())), fidelity(percent(self.top1)),
        ]
    }

    /// Variance unexplained against active features: the further down and left, the better.
    fn chart(items: &[Named<'_, Self>]) -> Option<Picture> {
        let series: Vec<(&str, [(f64, f64); 1])> = items.iter().map(|(name, report)| (name.as_str(), [(report.l0(), report.fvu())])).collect();
        let config = ChartConfig { title: "Variance unexplained against active features".into(), x: "L0 (features per token and layer)".into(), y: "FVU, held out".into(), ..ChartConfig::default() };
        scatter(&series, &config).ok()
    }
}

impl Listed for History {
    const HEADS: &'static [(&'static str, Align)] = &[
        ("steps", Align::Right), ("tokens", Align::Right), ("reconstruction", Align::Right), ("FVU", Align::Right), ("L0 per layer", Align::Right), ("dead", Align::Right), ("held-out FVU", Align::Right),
    ];

    fn cells(&self) -> Vec<String> {
        let held_out = self.evals.last().map_or_else(|| "–".to_string(), |eval| format!("{:.3}", eval.fvu));
        match self.last() {
            None => ["0", "0", "–", "–", "–", "–"].map(str::to_string).into_iter().chain([held_out]).collect(),
            Some(s) => vec![s.step.to_string(), count(s.tokens as f64), number(s.reconstruction, 4), format!("{:.3}", s.fvu), format!("{:.1}", s.l0), percent(s.dead), held_out],
        }
    }

    /// Variance unexplained over the tokens seen, of all trainings.
    fn chart(items: &[Named<'_, Self>]) -> Option<Picture> {
        let series: Vec<(&str, Vec<(f64, f64)>)> = items.iter().map(|(name, history)| (name.as_str(), super::curves::fvu(history))).collect();
        let config = ChartConfig { title: "Variance unexplained in training".into(), x: "tokens seen".into(), y: "FVU, mean of layers".into(), log_y: true, ..ChartConfig::default() };
        lines(&series, &config).ok()
    }
}

impl Listed for FeatureNode {
    const HEADS: &'static [(&'static str, Align)] = &[("layer", Align::Right), ("feature", Align::Right), ("position", Align::Right)];

    fn cells(&self) -> Vec<String> {
        [self.layer, self.feature, self.position].map(|number| number.to_string()).into()
    }

    fn chart(items: &[Named<'_, Self>]) -> Option<Picture> {
        let places: Vec<(f64, f64)> = items.iter().map(|(_, node)| (node.position as f64, node.layer as f64)).collect();
        scatter(&[("features", places)], &ChartConfig { x: "position in the prompt".into(), y: "layer".into(), ..ChartConfig::default() }).ok()
    }
}

impl Listed for FeatureId {
    const HEADS: &'static [(&'static str, Align)] = &[("layer", Align::Right), ("feature", Align::Right)];

    fn cells(&self) -> Vec<String> {
        [self.layer, self.feature].map(|number| number.to_string()).into()
    }

    fn chart(_: &[Named<'_, Self>]) -> Option<Picture> {
        None
    }
}

impl Listed for Supernode {
    const HEADS: &'static [(&'static str, Align)] = &[("group", Align::Left), ("features", Align::Right), ("which", Align::Left)];

    fn cells(&self) -> Vec<String> {
        let which: Vec<String> = self.features.iter().take(8).map(ToString::to_string).collect();
        let more = if self.features.len() > 8 { ", …" } else { "" };
        vec![self.name.clone(), self.features.len().to_string(), format!("{}{more}", which.join(", "))]
    }

    fn chart(_: &[Named<'_, Self>]) -> Option<Picture> {
        None
    }
}
