//! Comparisons of graphs: the graph of the differences or means, and tables of what differs or is shared.

use super::graph_view::Look;
use super::html::{row, Align, Html};
use super::words::{tame, visible};
use super::{Picture, Show};
use crate::error::Result;
use crate::graph::{Edge, Graph, GraphDifference, LogitTarget, MergedGraph, Overlay, PruneConfig};

/// Rows of a table.
const ROWS: usize = 24;
/// Lines of text.
const LINES: usize = 12;

impl GraphDifference {
    /// The differences as a graph: green edges are larger in the first, purple ones in the second; beside each
    /// output its probability in both.
    pub fn picture(&self) -> Picture {
        self.draw(&self.graph)
    }

    /// As [`GraphDifference::picture`], pruned with other thresholds than the default ones.
    ///
    /// # Errors
    /// `BadConfig` for thresholds that are not between 0 and 1.
    pub fn picture_pruned(&self, config: &PruneConfig) -> Result<Picture> {
        Ok(self.draw(&self.graph.prune(config)?))
    }

    fn draw(&self, graph: &Graph) -> Picture {
        let prompt = |which: usize| self.overlay.graphs[which].prompt();
        graph.draw(&Look {
            title: format!("Difference of two graphs\nFirst: {}\nSecond: {}", tame(prompt(0)), tame(prompt(1))),
            note: "Size: influence. Names: layer/feature. Outputs: probability in the first / in the second.",
            alt: self.summary(),
            edges: ["larger in the first", "larger in the second"],
            outputs: outputs(graph, &self.overlay),
        })
    }

    /// What differs, in a sentence.
    pub(crate) fn summary(&self) -> String {
        let [first, second] = self.only().map(|nodes| nodes.len());
        let prompt = |which: usize| self.overlay.graphs[which].prompt();
        format!(
            "Difference of {:?} and {:?}: {} edges and {} nodes differ; {first} features only in the first, {second} only in the second",
            prompt(0), prompt(1), self.graph.edges().len(), self.graph.nodes.iter().filter(|node| !node.kind.is_end()).count()
        )
    }
}

impl Show for GraphDifference {
    fn text(&self) -> String {
        self.to_string()
    }

    fn picture(&self) -> Option<Picture> {
        Some(self.picture())
    }

    /// Picture, the edges that differ most, and the features that only one graph has.
    fn html(&self) -> Html {
        let name = |node: usize| self.graph.node_text(node);
        let rows = self.strongest(ROWS).into_iter().map(|(edge, [first, second])| {
            row![name(edge.source), name(edge.target), format!("{first:+.3}"), format!("{second:+.3}"), format!("{:+.3}", edge.weight)]
        });
        let columns = [("from", Align::Left), ("to", Align::Left), ("first", Align::Right), ("second", Align::Right), ("difference", Align::Right)];
        let edges = Html::table(&columns, rows);
        let [first, second] = self.only().map(|nodes| {
            let rows = nodes.into_iter().take(ROWS).map(|node| row![name(node), format!("{:.4}", self.graph.nodes[node].influence)]);
            Html::table(&[("feature", Align::Left), ("influence", Align::Right)], rows)
        });
        Html::join([
            self.picture().html(),
            Html::from(self.summary()).small().block(),
            Html::details("Edges that differ most", edges),
            Html::details("Features of the first only", first),
            Html::details("Features of the second only", second),
        ])
        .block()
    }
}

/// The outputs of an overlay with their probability in each graph.
fn outputs(graph: &Graph, overlay: &Overlay) -> Vec<String> {
    let of = |other: &Graph, output: &LogitTarget| {
        let same = other.logits().iter().find(|logit| logit.token == output.token && logit.text == output.text);
        same.map_or_else(|| "–".to_string(), |logit| format!("{:.1} %", 100.0 * logit.probability))
    };
    graph.logits().iter().map(|output| {
        let all: Vec<String> = overlay.graphs.iter().map(|graph| of(graph, output)).collect();
        format!("{} {}", visible(&output.text, 24), all.join(" / "))
    }).collect()
}

impl std::fmt::Display for GraphDifference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.summary())?;
        for (Edge { source, target, weight }, [first, second]) in self.strongest(LINES) {
            write!(f, "\n{weight:>+9.3} (first {first:+.3}, second {second:+.3})  {} → {}", self.graph.node_text(source), self.graph.node_text(target))?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for GraphDifference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.summary())
    }
}

impl MergedGraph {
    /// The means as a graph; beside each output its mean probability.
    pub fn picture(&self) -> Picture {
        self.draw(&self.graph)
    }

    /// As [`MergedGraph::picture`], pruned with other thresholds than the default ones.
    ///
    /// # Errors
    /// `BadConfig` for thresholds that are not between 0 and 1.
    pub fn picture_pruned(&self, config: &PruneConfig) -> Result<Picture> {
        Ok(self.draw(&self.graph.prune(config)?))
    }

    fn draw(&self, graph: &Graph) -> Picture {
        graph.draw(&Look { title: format!("Mean of {} graphs: {}", self.overlay.graphs.len(), tame(graph.prompt())), alt: self.summary(), ..Look::of(graph) })
    }

    /// The `n` features with most influence in the mean, as places in the merged graph.
    fn top(&self, n: usize) -> Vec<usize> {
        let mut nodes: Vec<usize> = (0..self.graph.nodes.len()).filter(|node| self.graph.nodes[*node].feature().is_some()).collect();
        nodes.sort_by(|a, b| self.graph.nodes[*b].influence.total_cmp(&self.graph.nodes[*a].influence));
        nodes.truncate(n);
        nodes
    }

    /// What is shared, in a sentence.
    pub(crate) fn summary(&self) -> String {
        let all = self.overlay.graphs.len();
        let features: Vec<usize> = (0..self.graph.nodes.len()).filter(|node| self.graph.nodes[*node].feature().is_some()).collect();
        let shared = features.iter().filter(|node| self.overlay.count(**node) == all).count();
        format!("Mean of {all} graphs: {} features, {shared} of them in every graph, {} edges", features.len(), self.graph.edges().len())
    }
}

impl Show for MergedGraph {
    fn text(&self) -> String {
        self.to_string()
    }

    fn picture(&self) -> Option<Picture> {
        Some(self.picture())
    }

    /// Picture, and the most influential features with the number of graphs that have them.
    fn html(&self) -> Html {
        let rows = self.top(ROWS).into_iter().map(|node| {
            row![self.graph.node_text(node), self.overlay.count(node).to_string(), format!("{:.4}", self.graph.nodes[node].influence)]
        });
        let columns = [("feature", Align::Left), ("graphs", Align::Right), ("influence, mean", Align::Right)];
        Html::join([self.picture().html(), Html::from(self.summary()).small().block(), Html::details("Features", Html::table(&columns, rows))]).block()
    }
}

impl std::fmt::Display for MergedGraph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.summary())?;
        for node in self.top(LINES) {
            let influence = self.graph.nodes[node].influence;
            write!(f, "\n{influence:>9.4}  in {} of {}  {}", self.overlay.count(node), self.overlay.graphs.len(), self.graph.node_text(node))?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for MergedGraph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.summary())
    }
}
