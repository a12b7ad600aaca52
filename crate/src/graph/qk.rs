//! Queries and keys: why a head looked where it did.
//!
//! In: a prompt, a head, a query and a key position. The two residual streams there are sums of what
//! features, errors and tokens write, each carried to the place through the frozen model (from earlier
//! positions through earlier heads), and of constants (biases, position embeddings, decoder biases, the MLPs
//! at positions without features). With the norms' scales held the score before softmax is bilinear in the
//! two, so it is exactly the sum over pairs of a part of the query and a part of the key, `(M_q v_s) · (M_k v_u)`,
//! rotary positions included. Source: *Tracing Attention Computation Through Feature Interactions*
//! (Anthropic, 2025), with a CLT's features. Cost: 2 h rows (h: width of a head), then products of the pairs
//! that may be among the strongest.

use super::rows::RowEngine;
use super::targets::Start;
use super::{Edges, NodeKind};
use crate::error::{Error, ErrorKind, Result};
use crate::files;
use crate::model::Side;
use crate::replacement::{LocalReplacement, Replacement};
use crate::text::Prompt;
use serde::{Deserialize, Serialize};
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::path::Path;

/// Which attention is explained, and how much of it is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QkConfig {
    /// Layer of the attention.
    pub layer: usize,
    /// Query head within the layer.
    pub head: usize,
    /// Position that looks.
    pub query: usize,
    /// Position that is looked at, at most `query`.
    pub key: usize,
    /// Strongest pairs that are kept. Default 20.
    pub pairs: usize,
    /// Positions without features and errors. Default `[0]`.
    pub zero_positions: Vec<usize>,
}

impl Default for QkConfig {
    fn default() -> Self {
        QkConfig { layer: 0, head: 0, query: 0, key: 0, pairs: 20, zero_positions: vec![0] }
    }
}

/// A part of a query or a key.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct QkPart {
    /// A feature, an error or a token; `None` for all that is constant.
    pub kind: Option<NodeKind>,
    /// Where it stands; it may have come to the query's or key's position through earlier heads.
    pub position: usize,
    /// Its product with the whole other side: the sum of its pairs.
    pub weight: f64,
}

/// What a part of the query and a part of the key add to the score.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct QkPair {
    /// Place in [`QkAttribution::queries`].
    pub query: usize,
    /// Place in [`QkAttribution::keys`].
    pub key: usize,
    /// Its part of the score, signed.
    pub weight: f64,
}

/// A score before softmax, split over pairs of what made the query and what made the key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QkAttribution {
    /// Layer, head and positions.
    pub config: QkConfig,
    /// The prompt's tokens as text.
    pub token_text: Vec<String>,
    /// The model's score, before any cap: what all pairs add up to.
    pub score: f64,
    /// Caps the score `s` to `cap · tanh(s / cap)` before the softmax, in models that do (Gemma 2).
    pub cap: Option<f64>,
    /// The share of the query's attention that the key gets, 0 to 1.
    pub attention: f64,
    /// What the query is made of: features, errors and tokens that reach it, then the constants.
    pub queries: Vec<QkPart>,
    /// What the key is made of.
    pub keys: Vec<QkPart>,
    /// The strongest pairs, by |weight|, strongest first.
    pub pairs: Vec<QkPair>,
}

impl QkAttribution {
    /// Sum of all pairs, the query's parts one by one: the score up to rounding.
    pub fn sum(&self) -> f64 {
        self.queries.iter().map(|part| part.weight).sum()
    }

    /// The `n` parts of the query, or of the key, with the largest |weight|, largest first.
    pub fn strongest(&self, of_query: bool, n: usize) -> Vec<QkPart> {
        let mut parts = if of_query { self.queries.clone() } else { self.keys.clone() };
        parts.sort_by(|a, b| b.weight.abs().total_cmp(&a.weight.abs()));
        parts.truncate(n);
        parts
    }

    /// A part in words.
    pub(crate) fn part_text(&self, part: &QkPart) -> String {
        let at = part.position;
        match part.kind {
            Some(NodeKind::Feature { layer, feature, .. }) => format!("feature {layer}/{feature} at {at}"),
            Some(NodeKind::Error { layer }) => format!("error {layer} at {at}"),
            Some(_) => format!("{:?} at {at}", self.token_text.get(at).map_or("", String::as_str)),
            None => "constants (biases, position embeddings)".to_string(),
        }
    }

    /// What is explained, in words.
    pub(crate) fn title(&self) -> String {
        let QkConfig { layer, head, query, key, .. } = self.config;
        let text = |position: usize| self.token_text.get(position).map_or("", String::as_str);
        format!("Head {layer}.{head} at {query} {:?} looking at {key} {:?}", text(query), text(key))
    }

    /// Writes everything as JSON.
    ///
    /// # Errors
    /// `DiskFull` or `Io`, with the path.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        files::write_json(path, self)
    }
}

impl std::fmt::Display for QkAttribution {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{}: score {:+.4}, attention {:.4}", self.title(), self.score, self.attention)?;
        for pair in &self.pairs {
            let (query, key) = (self.part_text(&self.queries[pair.query]), self.part_text(&self.keys[pair.key]));
            writeln!(f, "{:>+10.4}  {query} × {key}", pair.weight)?;
        }
        let shown: f64 = self.pairs.iter().map(|pair| pair.weight).sum();
        write!(f, "{} of {} pairs, together {shown:+.4}; all {:+.4}", self.pairs.len(), self.queries.len() * self.keys.len(), self.sum())
    }
}

impl Replacement {
    /// Why a head looked where it did, on a prompt.
    ///
    /// ```no_run
    /// # use cltlab::{graph::QkConfig, replacement::Replacement};
    /// # fn f(replacement: Replacement) -> cltlab::Result<()> {
    /// let which = QkConfig { layer: 12, head: 3, query: 7, key: 6, ..QkConfig::default() };
    /// println!("{}", replacement.attribute_attention("The capital of the state containing Dallas is", &which)?);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// `BadConfig` naming the field: a layer, head or position that does not exist, or a key that the query
    /// does not see; as [`Replacement::local`]; `Unsupported` for a LayerNorm over all heads' queries.
    pub fn attribute_attention(&self, prompt: impl Into<Prompt>, config: &QkConfig) -> Result<QkAttribution> {
        let tokens = self.tokens(prompt)?;
        check(self, tokens.len(), config)?;
        split(&self.local_at(&tokens, &config.zero_positions)?, config)
    }
}

fn check(replacement: &Replacement, tokens: usize, config: &QkConfig) -> Result<()> {
    let (model, &QkConfig { layer, head, query, key, .. }) = (replacement.model(), config);
    let bad = |field: &str, got: usize, expected: String| Err(Error::expected(ErrorKind::BadConfig, format_args!("QkConfig::{field}"), got, expected));
    for (field, got, limit) in [("layer", layer, model.layers()), ("head", head, model.config().heads), ("query", query, tokens), ("key", key, query + 1)] {
        if got >= limit {
            return bad(field, got, format!("less than {limit}"));
        }
    }
    match model.config().window(layer) {
        Some(window) if query - key >= window => bad("key", key, format!("within the layer's window, the last {window} up to {query}")),
        _ => Ok(()),
    }
}

fn split(local: &LocalReplacement, config: &QkConfig) -> Result<QkAttribution> {
    let (model, run) = (local.replacement().model(), local.run());
    let &QkConfig { layer, head, query, key, .. } = config;
    let stream = run.layers[layer].resid_pre.as_ref().ok_or_else(|| Error::new(ErrorKind::BadInput, "run: resid_pre was not captured"))?;
    let mut starts = Vec::new();
    let mut whole: Vec<Vec<f32>> = Vec::new();
    for (side, position) in [(Side::Query, query), (Side::Key, key)] {
        let map = model.head_map(run, layer, head, position, side)?;
        whole.push(map.apply(&stream.narrow(0, position, 1)?, true)?.flatten_all()?.to_vec1()?);
        starts.extend(map.matrix()?.to_vec2::<f32>()?.into_iter().map(|direction| Start::Stream { layer, position, direction }));
    }
    let engine = RowEngine::new(local, starts.len(), false)?;
    let mut rows = Edges::default();
    engine.outputs(&starts, &mut rows)?;
    let width = starts.len() / 2;
    let kinds = kinds(&engine, local);
    let mut sides = [Parts::new(width, kinds.len()), Parts::new(width, kinds.len())];
    for row in rows.rows() {
        let k = row.target as usize - engine.first_logit();
        for (source, weight) in row.sources.iter().zip(row.weights) {
            sides[k / width].values[*source as usize * width + k % width] = *weight;
        }
    }
    let [mut of_query, mut of_key] = sides;
    of_query.close(&whole[0]);
    of_key.close(&whole[1]);
    let score: f64 = dot(&whole[0], &whole[1]);
    let pattern = run.layers[layer].attn_pattern.as_ref().map(|pattern| pattern.get(head)?.get(query)?.get(key)?.to_scalar::<f32>()).transpose()?;
    let part = |parts: &Parts, i: usize, other: &[f32]| {
        let (kind, position) = kinds.get(i).map_or((None, 0), |(kind, position)| (Some(*kind), *position));
        QkPart { kind, position, weight: dot(parts.row(i), other) }
    };
    let (queries, keys) = (of_query.present(), of_key.present());
    Ok(QkAttribution {
        config: config.clone(),
        token_text: run.token_text.clone(),
        score,
        cap: model.config().attention_cap,
        attention: f64::from(pattern.unwrap_or(f32::NAN)),
        pairs: strongest(&of_query, &queries, &of_key, &keys, config.pairs),
        queries: queries.iter().map(|i| part(&of_query, *i, &whole[1])).collect(),
        keys: keys.iter().map(|i| part(&of_key, *i, &whole[0])).collect(),
    })
}

/// Kind and position of each source, in the order of a graph's nodes.
fn kinds(engine: &RowEngine, local: &LocalReplacement) -> Vec<(NodeKind, usize)> {
    let tokens = &local.run().tokens;
    let features = engine.active.iter().zip(local.activations());
    let mut kinds: Vec<(NodeKind, usize)> =
        features.map(|(place, activation)| (NodeKind::Feature { layer: place.layer, feature: place.feature, activation }, place.position)).collect();
    kinds.extend((0..engine.sources.layers).flat_map(|layer| (0..tokens.len()).map(move |position| (NodeKind::Error { layer }, position))));
    kinds.extend(tokens.iter().enumerate().map(|(position, token)| (NodeKind::Token { token: *token }, position)));
    kinds
}

/// What each source makes of a query or key, `[n + 1, h]`; the last row is what is left: the constants.
struct Parts {
    width: usize,
    values: Vec<f32>,
}

impl Parts {
    fn new(width: usize, sources: usize) -> Self {
        Parts { width, values: vec![0.0; width * (sources + 1)] }
    }

    fn row(&self, i: usize) -> &[f32] {
        &self.values[i * self.width..(i + 1) * self.width]
    }

    /// Sets the constants to what the sources leave of the `whole`.
    fn close(&mut self, whole: &[f32]) {
        let mut left: Vec<f64> = whole.iter().map(|value| f64::from(*value)).collect();
        for row in self.values.chunks_exact(self.width) {
            left.iter_mut().zip(row).for_each(|(left, value)| *left -= f64::from(*value));
        }
        let last = self.values.len() - self.width;
        self.values[last..].iter_mut().zip(left).for_each(|(value, left)| *value = left as f32);
    }

    /// Sources that reach it, and the constants.
    fn present(&self) -> Vec<usize> {
        let last = self.values.len() / self.width - 1;
        (0..=last).filter(|i| *i == last || self.row(*i).iter().any(|value| *value != 0.0)).collect()
    }
}

/// A pair that waits to be beaten: the weakest of those kept is on top of the heap.
struct Kept(QkPair);

impl PartialEq for Kept {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Kept {}

impl PartialOrd for Kept {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Kept {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.weight.abs().total_cmp(&other.0.weight.abs()).then_with(|| (other.0.query, other.0.key).cmp(&(self.0.query, self.0.key)))
    }
}

/// The `n` pairs with the largest |product|, largest first, as places in `queries` and `keys`. Both sides are
/// gone through by length, so that a row ends where no product can be among them.
fn strongest(of_query: &Parts, queries: &[usize], of_key: &Parts, keys: &[usize], n: usize) -> Vec<QkPair> {
    let by_length = |parts: &Parts, present: &[usize]| {
        let mut order: Vec<(usize, f64)> = present.iter().enumerate().map(|(place, i)| (place, dot(parts.row(*i), parts.row(*i)).sqrt())).collect();
        order.sort_by(|a, b| b.1.total_cmp(&a.1));
        order
    };
    let (left, right) = (by_length(of_query, queries), by_length(of_key, keys));
    let mut heap: BinaryHeap<Reverse<Kept>> = BinaryHeap::new();
    for (query, long) in left {
        for (key, other) in &right {
            let weakest = if heap.len() < n { 0.0 } else { heap.peek().map_or(f64::INFINITY, |Reverse(kept)| kept.0.weight.abs()) };
            if heap.len() >= n && long * other <= weakest {
                break;
            }
            let weight = dot(of_query.row(queries[query]), of_key.row(keys[*key]));
            if heap.len() < n || weight.abs() > weakest {
                heap.push(Reverse(Kept(QkPair { query, key: *key, weight })));
            }
            if heap.len() > n {
                heap.pop();
            }
        }
    }
    heap.into_sorted_vec().into_iter().map(|Reverse(Kept(pair))| pair).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}
