//! Supernodes: features of a graph that are read as one, and what the graph says of changing them.
//!
//! In: a graph. Out: groups that a person names, or [`Graph::supernodes`]' own; and
//! [`Graph::predicted`], the change of every output's logit when features are set to multiples of their
//! activation. With `δ` the change of a node as a share of its activation, each later feature responds by
//! `δ_t = Σ_s A[t, s] δ_s / a_t` and each output moves by `Σ_s A[k, s] δ_s`: one pass over the edges, equal
//! to the linear forward pass where every active feature is a node (to 1e-4 of the largest).

use super::{Graph, NodeKind};
use crate::error::{Error, ErrorKind, Result};
use crate::files;
use crate::replacement::FeatureNode;
use std::collections::HashMap;
use std::path::Path;

/// Features that are grouped, at most: those with most influence.
const GROUPED: usize = 160;
/// Likeness of two groups below which they stay apart.
const LIKENESS: f64 = 0.35;

/// Features that stand for one thing, under a name.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Supernode {
    /// What it stands for, for people.
    pub name: String,
    /// Its features.
    pub features: Vec<FeatureNode>,
}

impl Supernode {
    /// A group with a name.
    pub fn new(name: impl Into<String>, features: &[FeatureNode]) -> Self {
        Supernode { name: name.into(), features: features.to_vec() }
    }

    /// Reads groups as viewers keep them in `qParams.supernodes`: `[["name", "layer_feature_position", …], …]`,
    /// alone in a file or within a graph's.
    ///
    /// # Errors
    /// `MissingFile`, `Io`; `BadFile` naming the entry that is not such a list.
    pub fn load(path: impl AsRef<Path>) -> Result<Vec<Supernode>> {
        let path = path.as_ref();
        let file: serde_json::Value = files::read_json(path)?;
        let list = file.get("qParams").and_then(|view| view.get("supernodes")).unwrap_or(&file);
        let bad = |what: String| Error::expected(ErrorKind::BadFile, path.display(), what, "[[\"name\", \"layer_feature_position\", …], …]");
        let lists: Vec<Vec<String>> = serde_json::from_value(list.clone()).map_err(|error| bad(error.to_string()).caused_by(error))?;
        lists.into_iter().map(|list| {
            let (name, ids) = list.split_first().ok_or_else(|| bad("an empty group".to_string()))?;
            let features = ids.iter().map(|id| id.parse::<FeatureNode>().map_err(|_| bad(format!("'{id}' in group '{name}'"))));
            Ok(Supernode { name: name.clone(), features: features.collect::<Result<_>>()? })
        }).collect()
    }
}

impl Graph {
    /// Places of features in [`Graph::nodes`].
    ///
    /// # Errors
    /// `BadInput` naming the first that is no node of this graph.
    #[doc(hidden)]
    pub fn places(&self, features: &[FeatureNode]) -> Result<Vec<usize>> {
        let places: HashMap<FeatureNode, usize> = self.nodes.iter().enumerate().filter_map(|(i, node)| Some((node.feature()?, i))).collect();
        let place = |feature: &FeatureNode| {
            places.get(feature).copied().ok_or_else(|| {
                Error::expected(ErrorKind::BadInput, "feature of the graph", feature, "one of its nodes")
                    .help("it may not be active, or was left out by the budget or the pruning")
            })
        };
        features.iter().map(place).collect()
    }

    /// Change of each output's logit, `[K]`, less the mean logit's, when each of `changed`, a place in
    /// [`Graph::nodes`] with a factor, is set to factor times its activation. Other features respond if
    /// `respond`, else only the edges into the outputs count.
    ///
    /// # Errors
    /// `BadInput` for a node that is no feature, or a factor that is not finite.
    pub fn predicted(&self, changed: &[(usize, f64)], respond: bool) -> Result<Vec<f64>> {
        let mut set = vec![false; self.nodes.len()];
        let mut change = vec![0.0; self.nodes.len()];
        for (node, factor) in changed {
            if self.nodes.get(*node).and_then(|node| node.feature()).is_none() || !factor.is_finite() {
                return Err(Error::expected(ErrorKind::BadInput, "Graph::predicted", format_args!("node {node} times {factor}"), "features and finite factors"));
            }
            (set[*node], change[*node]) = (true, factor - 1.0);
        }
        let first = self.nodes.len() - self.logits().len();
        let mut outputs = vec![0.0; self.logits().len()];
        // Rows ascend and effects only go forward, so sources have changed before their targets.
        for row in self.edges().rows() {
            let target = row.target as usize;
            if set[target] || (target < first && !respond) {
                continue;
            }
            let moved: f64 = row.sources.iter().zip(row.weights).map(|(source, weight)| f64::from(*weight) * change[*source as usize]).sum();
            match self.nodes[target].kind {
                NodeKind::Feature { activation, .. } if activation != 0.0 => change[target] = moved / f64::from(activation),
                NodeKind::Logit { .. } => outputs[target - first] = moved,
                _ => {}
            }
        }
        Ok(outputs)
    }

    /// At most `n` groups of influential features, most influential first: features of one position whose edges
    /// go to and come from the same nodes in like shares (mean cosine of the two profiles, average linkage).
    /// A feature that is like no other is a group of its own.
    pub fn supernodes(&self, n: usize) -> Vec<Supernode> {
        let (places, likeness) = self.likeness();
        let mut groups: Vec<Vec<usize>> = (0..places.len()).map(|i| vec![i]).collect();
        let at = |group: &[usize]| self.nodes[places[group[0]]].position;
        loop {
            let mut best = (LIKENESS, None);
            for (a, one) in groups.iter().enumerate() {
                for (b, other) in groups.iter().enumerate().skip(a + 1).filter(|(_, other)| at(other) == at(one)) {
                    let pairs = one.iter().flat_map(|i| other.iter().map(|j| likeness[*i][*j]));
                    let mean = pairs.sum::<f64>() / (one.len() * other.len()) as f64;
                    if mean > best.0 {
                        best = (mean, Some((a, b)));
                    }
                }
            }
            let (_, Some((a, b))) = best else { break };
            let other = groups.swap_remove(b);
            groups[a].extend(other);
        }
        let influence = |group: &[usize]| group.iter().map(|i| f64::from(self.nodes[places[*i]].influence)).sum::<f64>();
        groups.sort_by(|a, b| influence(b).total_cmp(&influence(a)).then(a.cmp(b)));
        groups.truncate(n);
        let mut named: Vec<Supernode> = Vec::with_capacity(groups.len());
        for group in groups {
            let mut group = self.named(group.iter().filter_map(|i| self.nodes[places[*i]].feature()).collect());
            let alike = named.iter().filter(|other| other.name.starts_with(&group.name)).count();
            if alike > 0 {
                group.name += &format!(" ({})", alike + 1);
            }
            named.push(group);
        }
        named
    }

    /// A group under the name of its token, position and layers.
    fn named(&self, mut features: Vec<FeatureNode>) -> Supernode {
        features.sort();
        let position = features.first().map_or(0, |feature| feature.position);
        let text = self.token_text().get(position).map_or("", String::as_str);
        let layers = match (features.first(), features.last()) {
            (Some(first), Some(last)) if first.layer < last.layer => format!("layers {}–{}", first.layer, last.layer),
            (Some(first), _) => format!("layer {}", first.layer),
            _ => String::new(),
        };
        Supernode { name: format!("{text:?} at {position}, {layers}"), features }
    }

    /// Places of the most influential features, and how alike their edges are, 0 to 1.
    fn likeness(&self) -> (Vec<usize>, Vec<Vec<f64>>) {
        let mut places: Vec<usize> = (0..self.nodes.len()).filter(|node| self.nodes[*node].feature().is_some()).collect();
        places.sort_by(|a, b| self.nodes[*b].influence.total_cmp(&self.nodes[*a].influence).then(a.cmp(b)));
        places.truncate(GROUPED);
        let number: HashMap<usize, usize> = places.iter().enumerate().map(|(i, node)| (*node, i)).collect();
        // What goes out of each and what comes in, as shares of the target's input, of length 1.
        let mut out: Vec<HashMap<usize, f64>> = vec![HashMap::new(); places.len()];
        let mut into = out.clone();
        for row in self.edges().rows() {
            let norm = row.norm(f64::MIN_POSITIVE);
            for (source, weight) in row.sources.iter().map(|source| *source as usize).zip(row.weights) {
                let share = f64::from(*weight) / norm;
                number.get(&source).map(|i| out[*i].insert(row.target as usize, share));
                number.get(&(row.target as usize)).map(|i| into[*i].insert(source, share));
            }
        }
        let cosine = |a: &HashMap<usize, f64>, b: &HashMap<usize, f64>| -> f64 {
            let length = |v: &HashMap<usize, f64>| v.values().map(|x| x * x).sum::<f64>().sqrt();
            let product: f64 = a.iter().filter_map(|(node, x)| Some(x * b.get(node)?)).sum();
            product / (length(a) * length(b)).max(f64::MIN_POSITIVE)
        };
        let like = |i: usize, j: usize| 0.5 * (cosine(&out[i], &out[j]) + cosine(&into[i], &into[j]));
        let likeness = (0..places.len()).map(|i| (0..places.len()).map(|j| like(i, j)).collect()).collect();
        (places, likeness)
    }
}
