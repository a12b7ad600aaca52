//! The union of graphs: nodes that are the same get one number, edges are added up.

use super::{Alignment, Overlay};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::edges::Edges;
use crate::graph::{Graph, GraphParts, LogitTarget, Node, NodeKind, Scores};
use crate::replacement::FeatureNode;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a node is, over all graphs: kind, layer, slot, feature or output. Ascending is the order of nodes.
type Key = (u8, usize, usize, usize);

/// Nodes of all graphs, with their numbers.
pub(super) struct Union<'a> {
    graphs: &'a [Graph],
    /// Slot of each position, by graph.
    slots: Vec<Vec<usize>>,
    count: usize,
    outputs: Vec<LogitTarget>,
    nodes: BTreeMap<Key, usize>,
    /// Number of each node, by graph.
    numbers: Vec<Vec<usize>>,
}

impl<'a> Union<'a> {
    pub fn new(graphs: &'a [Graph], alignment: &Alignment) -> Result<Self> {
        let Some(first) = graphs.first() else {
            return Err(Error::expected(ErrorKind::BadInput, "Graph::merge: graphs", "none", "at least one"));
        };
        for other in graphs {
            let name = |graph: &Graph| format!("{} of {} layers", graph.model_name(), graph.layers());
            if (other.model_name(), other.layers()) != (first.model_name(), first.layers()) {
                return Err(Error::expected(ErrorKind::Mismatch, "graphs to compare: model", name(other), name(first)).help("features of different models have nothing in common"));
            }
        }
        let (slots, count) = slots(graphs, alignment)?;
        let mut union = Union { graphs, slots, count, outputs: outputs(graphs), nodes: BTreeMap::new(), numbers: Vec::new() };
        let keys: Vec<Vec<Key>> = graphs.iter().enumerate().map(|(g, graph)| graph.nodes.iter().map(|node| union.key(g, graph, node)).collect()).collect();
        union.nodes = keys.iter().flatten().map(|key| (*key, 0)).collect();
        union.nodes.values_mut().zip(0..).for_each(|(number, next)| *number = next);
        union.numbers = keys.iter().map(|keys| keys.iter().map(|key| union.nodes[key]).collect()).collect();
        Ok(union)
    }

    fn key(&self, g: usize, graph: &Graph, node: &Node) -> Key {
        let slot = self.slots[g][node.position];
        match node.kind {
            NodeKind::Feature { layer, feature, .. } => (0, layer, slot, feature),
            NodeKind::Error { layer } => (1, layer, slot, 0),
            NodeKind::Token { .. } => (2, 0, slot, 0),
            NodeKind::Position => (3, 0, slot, 0),
            NodeKind::Logit { token, .. } => {
                let text = graph.logits().iter().find(|logit| logit.token == token).map(|logit| &logit.text);
                let place = self.outputs.iter().position(|output| output.token == token && Some(&output.text) == text);
                (4, 0, 0, place.unwrap_or(self.outputs.len()))
            }
        }
    }

    /// The sum of the graphs, each times its `share`.
    pub fn combined(self, shares: &[f64]) -> Result<(Graph, Overlay)> {
        let mut places = vec![vec![None; self.nodes.len()]; self.graphs.len()];
        for (places, numbers) in places.iter_mut().zip(&self.numbers) {
            numbers.iter().enumerate().for_each(|(place, number)| places[*number] = Some(place));
        }
        let overlay = Overlay { graphs: self.graphs.to_vec(), places };
        let sum = |number: usize, value: &dyn Fn(&Node) -> f64| -> f64 {
            let parts = overlay.graphs.iter().zip(&overlay.places).zip(shares);
            parts.filter_map(|((graph, places), share)| Some(share * value(&graph.nodes[places[number]?]))).sum()
        };
        let end = self.slots[0].last().copied().unwrap_or(0);
        let tokens: Vec<u32> = self.slot_tokens();
        let nodes: Vec<Node> = self.nodes.iter().map(|(key, number)| {
            let (position, kind) = match *key {
                (0, layer, slot, feature) => {
                    let activation = sum(*number, &|node| if let NodeKind::Feature { activation, .. } = node.kind { f64::from(activation) } else { 0.0 }) as f32;
                    (slot, NodeKind::Feature { layer, feature, activation })
                }
                (1, layer, slot, _) => (slot, NodeKind::Error { layer }),
                (2, _, slot, _) => (slot, NodeKind::Token { token: tokens[slot] }),
                (3, _, slot, _) => (slot, NodeKind::Position),
                (_, _, _, output) => (end, NodeKind::Logit { token: self.outputs[output].token, probability: self.outputs[output].probability }),
            };
            let kept = sum(*number, &|node| 1.0 - f64::from(node.cumulative));
            Node { kind, position, influence: sum(*number, &|node| f64::from(node.influence)) as f32, cumulative: (1.0 - kept) as f32 }
        }).collect();
        let edges = self.edges(shares);
        let features: Vec<(FeatureNode, f32)> = nodes.iter().filter_map(|node| match node.kind {
            NodeKind::Feature { activation, .. } => Some((node.feature()?, activation)),
            _ => None,
        }).collect();
        let score = |of: fn(Scores) -> f64| self.graphs.iter().zip(shares).map(|(graph, share)| share * of(graph.scores())).sum();
        let pruned = self.graphs[0].pruned().filter(|config| self.graphs.iter().all(|graph| graph.pruned() == Some(*config)));
        let prompts: Vec<&str> = self.graphs.iter().map(Graph::prompt).collect();
        let parts = GraphParts {
            model_name: self.graphs[0].model_name().to_string(),
            prompt: prompts.join(if shares.iter().any(|share| *share < 0.0) { " less " } else { " | " }),
            tokens,
            token_text: self.slot_texts(),
            layers: self.graphs[0].layers(),
            selected: (0..features.len() as u32).collect(),
            active: features.iter().map(|(feature, _)| *feature).collect(),
            activations: features.iter().map(|(_, activation)| *activation).collect(),
            logits: self.outputs.clone(),
            position_nodes: nodes.iter().any(|node| node.kind == NodeKind::Position),
            edges: Edges::default(),
            zero_positions: self.graphs[0].zero_positions().iter().map(|position| self.slots[0][*position]).collect(),
            complete: self.graphs.iter().all(Graph::complete),
        };
        let scores = Scores { replacement: score(|scores| scores.replacement), completeness: score(|scores| scores.completeness) };
        Ok((Graph { nodes, parts: Arc::new(parts), edges: Arc::new(edges), scores, pruned }, overlay))
    }

    /// Edges of all graphs, added up; what adds up to 0 is no edge.
    fn edges(&self, shares: &[f64]) -> Edges {
        let mut all: Vec<(u32, u32, f64)> = Vec::with_capacity(self.graphs.iter().map(|graph| graph.edges().len()).sum());
        for ((graph, numbers), share) in self.graphs.iter().zip(&self.numbers).zip(shares) {
            all.extend(graph.edges().iter().map(|edge| (numbers[edge.target] as u32, numbers[edge.source] as u32, share * f64::from(edge.weight))));
        }
        all.sort_by_key(|(target, source, _)| (*target, *source));
        let mut edges = Edges::default();
        for row in all.chunk_by(|a, b| a.0 == b.0) {
            for same in row.chunk_by(|a, b| a.1 == b.1) {
                let weight = same.iter().map(|(_, _, weight)| weight).sum::<f64>() as f32;
                if weight != 0.0 {
                    edges.push(same[0].1, weight);
                }
            }
            edges.close(row[0].0);
        }
        edges
    }

    /// A token id for each slot: the first graph's that has one there.
    fn slot_tokens(&self) -> Vec<u32> {
        let mut tokens = vec![0; self.count];
        for (graph, slots) in self.graphs.iter().zip(&self.slots).rev() {
            slots.iter().zip(graph.tokens()).for_each(|(slot, token)| tokens[*slot] = *token);
        }
        tokens
    }

    /// The texts that stand in each slot.
    fn slot_texts(&self) -> Vec<String> {
        let mut texts: Vec<Vec<&str>> = vec![Vec::new(); self.count];
        for (graph, slots) in self.graphs.iter().zip(&self.slots) {
            for (slot, text) in slots.iter().zip(graph.token_text()) {
                if !texts[*slot].contains(&text.as_str()) {
                    texts[*slot].push(text);
                }
            }
        }
        texts.into_iter().map(|texts| texts.join(" |")).collect()
    }
}

/// The slot of each position of each graph, and how many there are. Positions without a counterpart get slots
/// of their own after all others.
fn slots(graphs: &[Graph], alignment: &Alignment) -> Result<(Vec<Vec<usize>>, usize)> {
    let longest = graphs.iter().map(|graph| graph.tokens().len()).max().unwrap_or(0);
    let run = |graph: &Graph, shift: usize| (0..graph.tokens().len()).map(|position| position + shift).collect();
    let given = match alignment {
        Alignment::FromStart => return Ok((graphs.iter().map(|graph| run(graph, 0)).collect(), longest)),
        Alignment::FromEnd => return Ok((graphs.iter().map(|graph| run(graph, longest - graph.tokens().len())).collect(), longest)),
        Alignment::Slots(given) => given,
    };
    let refuse = |got: String, expected: String| Err(Error::expected(ErrorKind::BadInput, "Alignment::Slots", got, expected));
    if given.len() != graphs.len() {
        return refuse(format!("{} lists", given.len()), format!("{}, one a graph", graphs.len()));
    }
    // Slots are numbered in the order of what was given, without gaps, so that a large number costs nothing.
    let mut numbers: BTreeMap<usize, usize> = given.iter().flatten().flatten().map(|slot| (*slot, 0)).collect();
    numbers.values_mut().zip(0..).for_each(|(number, next)| *number = next);
    let mut count = numbers.len();
    let mut all = Vec::with_capacity(graphs.len());
    for (g, (graph, given)) in graphs.iter().zip(given).enumerate() {
        if given.len() != graph.tokens().len() {
            return refuse(format!("{} slots for graph {g}", given.len()), format!("{}, one a position", graph.tokens().len()));
        }
        let mut sorted: Vec<usize> = given.iter().flatten().copied().collect();
        sorted.sort_unstable();
        if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return refuse(format!("slot {} twice in graph {g}", twice[0]), "each slot once a graph".to_string());
        }
        all.push(given.iter().map(|slot| match slot {
            Some(slot) => numbers[slot],
            None => {
                count += 1;
                count - 1
            }
        }).collect());
    }
    Ok((all, count))
}

/// The outputs of all graphs, with the mean of their probabilities, most probable first; one graph's as they are.
fn outputs(graphs: &[Graph]) -> Vec<LogitTarget> {
    let mut outputs: Vec<LogitTarget> = Vec::new();
    for logit in graphs.iter().flat_map(|graph| graph.logits()) {
        let share = logit.probability / graphs.len() as f32;
        match outputs.iter_mut().find(|output| (output.token, &output.text) == (logit.token, &logit.text)) {
            Some(output) => output.probability += share,
            None => outputs.push(LogitTarget { probability: share, ..logit.clone() }),
        }
    }
    if graphs.len() > 1 {
        outputs.sort_by(|a, b| b.probability.total_cmp(&a.probability));
    }
    outputs
}
