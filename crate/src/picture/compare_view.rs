//! Comparisons of graphs: the graph of the differences or means, and tables of what differs or is shared.

use super::html::{self, Align};
use super::Picture;
use crate::graph::{Edge, Graph, GraphDifference, MergedGraph};

/// Rows of a table.
const ROWS: usize = 24;
/// Lines of text.
const LINES: usize = 12;

impl GraphDifference {
    /// The differences as a graph: green edges are stronger in the first, purple ones in the second.
    pub fn picture(&self) -> Picture {
        self.graph.picture()
    }

    /// Picture, the edges that differ most, and the features that only one graph has, as HTML.
    pub fn html(&self) -> String {
        let rows = self.strongest(ROWS).into_iter().map(|(edge, [first, second])| {
            vec![name(&self.graph, edge.source), name(&self.graph, edge.target), format!("{first:+.3}"), format!("{second:+.3}"), format!("{:+.3}", edge.weight)]
        });
        let columns = [("from", Align::Left), ("to", Align::Left), ("first", Align::Right), ("second", Align::Right), ("difference", Align::Right)];
        let edges = html::table(&columns, &rows.collect::<Vec<_>>());
        let only = self.only().map(|nodes| {
            let rows = nodes.into_iter().take(ROWS).map(|node| vec![name(&self.graph, node), format!("{:.4}", self.graph.nodes[node].influence)]);
            html::table(&[("feature", Align::Left), ("influence", Align::Right)], &rows.collect::<Vec<_>>())
        });
        format!(
            "<div>{}<div><small>{}</small></div>{}{}{}</div>",
            self.picture().html(),
            html::escape(&self.summary()),
            html::details("Edges that differ most", &edges),
            html::details("Features of the first only", &only[0]),
            html::details("Features of the second only", &only[1])
        )
    }

    /// What differs, in a sentence.
    pub fn summary(&self) -> String {
        let [first, second] = self.only().map(|nodes| nodes.len());
        let prompt = |which: usize| self.overlay.graphs[which].prompt();
        format!(
            "Difference of {:?} and {:?}: {} edges and {} nodes differ; {first} features only in the first, {second} only in the second",
            prompt(0), prompt(1), self.graph.edges().len(), self.graph.nodes.iter().filter(|node| !node.kind.is_end()).count()
        )
    }
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
    /// The means as a graph.
    pub fn picture(&self) -> Picture {
        self.graph.picture()
    }

    /// Picture, and the most influential features with the number of graphs that have them, as HTML.
    pub fn html(&self) -> String {
        let rows = self.top(ROWS).into_iter().map(|node| {
            vec![name(&self.graph, node), self.overlay.count(node).to_string(), format!("{:.4}", self.graph.nodes[node].influence)]
        });
        let columns = [("feature", Align::Left), ("graphs", Align::Right), ("influence, mean", Align::Right)];
        let table = html::table(&columns, &rows.collect::<Vec<_>>());
        format!("<div>{}<div><small>{}</small></div>{}</div>", self.picture().html(), html::escape(&self.summary()), html::details("Features", &table))
    }

    /// The `n` features with most influence in the mean, as places in the merged graph.
    fn top(&self, n: usize) -> Vec<usize> {
        let mut nodes: Vec<usize> = (0..self.graph.nodes.len()).filter(|node| self.graph.nodes[*node].feature().is_some()).collect();
        nodes.sort_by(|a, b| self.graph.nodes[*b].influence.total_cmp(&self.graph.nodes[*a].influence));
        nodes.truncate(n);
        nodes
    }

    /// What is shared, in a sentence.
    pub fn summary(&self) -> String {
        let all = self.overlay.graphs.len();
        let features: Vec<usize> = (0..self.graph.nodes.len()).filter(|node| self.graph.nodes[*node].feature().is_some()).collect();
        let shared = features.iter().filter(|node| self.overlay.count(**node) == all).count();
        format!("Mean of {all} graphs: {} features, {shared} of them in every graph, {} edges", features.len(), self.graph.edges().len())
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

/// A node in words, as HTML.
fn name(graph: &Graph, node: usize) -> String {
    html::escape(&graph.node_text(node))
}
