//! Attribution: a prompt to a whole graph.
//!
//! Local replacement model → outputs → rows of the outputs → rows of features: all of them, or as
//! many as the budget allows, those with most influence first, where influence is computed anew
//! after every `rank_every` features (circuit-tracer's phases, `method.md` §2.4; the same selection
//! where that is its `update_interval · batch_size`). An interrupt ends it between blocks with what is known.

use super::edges::Edges;
use super::influence::{influence, PARTIAL_FLOOR};
use super::rows::RowEngine;
use super::targets::{choose, Target};
use super::{Graph, GraphParts, LogitTarget};
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Task;
use crate::replacement::{LocalReplacement, Replacement};
use crate::text::Prompt;
use std::path::PathBuf;

/// Features ranked together where the configuration leaves it open.
const LEAST_STEP: usize = 32;

/// What a graph explains and how much of it.
///
/// ```
/// use cltlab::graph::AttributeConfig;
/// let config = AttributeConfig { max_features: Some(2_000), ..AttributeConfig::default() };
/// ```
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AttributeConfig {
    /// Outputs to explain, at most. Default 10.
    pub max_logits: usize,
    /// Fewer outputs when they hold this share of the probability, above 0 to 1. Default 0.95.
    pub logit_mass: f64,
    /// Explain these instead of the most probable tokens: tokens, differences of logits, features, directions. As outputs
    /// all but tokens stand at the last position with ids beyond the vocabulary; if any is not a token all weigh the same.
    pub targets: Option<Vec<Target>>,
    /// Features that become nodes, those with most influence; `None` for all. Default 7,500.
    pub max_features: Option<usize>,
    /// Rows computed at once: more take more memory and less time. Default 256.
    pub batch: usize,
    /// With a budget, influence is computed anew after this many features: circuit-tracer's
    /// `update_interval · batch_size`. `None`, the default: an eighth of the budget, at least 32.
    pub rank_every: Option<usize>,
    /// Positions without features and errors: the special first token. Default `[0]`.
    pub zero_positions: Vec<usize>,
    /// Learnt position embeddings (GPT-2, GPT-Neo) are nodes of their own, after the tokens. Default off, as in
    /// circuit-tracer, whose graphs leave their effects out.
    pub position_nodes: bool,
    /// Keep the edges in files in this folder instead of in memory. The files have no names and go with the
    /// graph, whatever happens. Default `None`.
    pub spill: Option<PathBuf>,
}

impl Default for AttributeConfig {
    fn default() -> Self {
        AttributeConfig {
            max_logits: 10,
            logit_mass: 0.95,
            targets: None,
            max_features: Some(7_500),
            batch: 256,
            rank_every: None,
            zero_positions: vec![0],
            position_nodes: false,
            spill: None,
        }
    }
}

impl AttributeConfig {
    /// Checks the fields.
    ///
    /// # Errors
    /// `BadConfig` naming the field.
    #[doc(hidden)]
    pub fn validate(&self) -> Result<()> {
        let bad = |field: &str, got: String, expected: &str| Err(Error::expected(ErrorKind::BadConfig, format_args!("AttributeConfig::{field}"), got, expected));
        let counts = [("max_logits", self.max_logits), ("batch", self.batch), ("rank_every", self.rank_every.unwrap_or(1))];
        if let Some((field, _)) = counts.into_iter().find(|(_, count)| *count == 0) {
            return bad(field, "0".into(), "at least 1");
        }
        if self.max_features == Some(0) {
            return bad("max_features", "0".into(), "at least 1, or None for all");
        }
        if !(self.logit_mass > 0.0 && self.logit_mass <= 1.0) {
            return bad("logit_mass", self.logit_mass.to_string(), "a share above 0, at most 1");
        }
        if self.targets.as_ref().is_some_and(Vec::is_empty) {
            return bad("targets", "none".into(), "at least one, or None for the most probable tokens");
        }
        Ok(())
    }
}

impl Replacement {
    /// The attribution graph of a prompt.
    ///
    /// ```no_run
    /// # use cltlab::{graph::AttributeConfig, replacement::Replacement};
    /// # fn f(replacement: Replacement) -> cltlab::Result<()> {
    /// let graph = replacement.attribute("The capital of the state containing Dallas is", &AttributeConfig::default())?;
    /// println!("{graph}");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Replacement::local`]; `BadConfig` naming the field; `NotFinite` when model or CLT hold NaN or infinity.
    pub fn attribute(&self, prompt: impl Into<Prompt>, config: &AttributeConfig) -> Result<Graph> {
        config.validate()?;
        let prompt = prompt.into();
        let local = self.local_at(&self.tokens(&prompt)?, &config.zero_positions)?;
        let text = match prompt {
            Prompt::Text(text) => text,
            Prompt::Tokens(tokens) => self.model().tokenizer().and_then(|tokenizer| tokenizer.decode(&tokens)).unwrap_or_else(|_| local.run().token_text.concat()),
        };
        local.attribute_as(text, config)
    }
}

impl LocalReplacement {
    fn attribute_as(&self, prompt: String, config: &AttributeConfig) -> Result<Graph> {
        let model = self.replacement().model();
        let (logits, starts) = choose(self, config)?;
        let engine = RowEngine::new(self, config.batch, config.position_nodes)?;
        let place = || config.spill.as_deref().map_or_else(|| Ok(Edges::default()), Edges::in_folder);
        let mut outputs = place()?;
        engine.outputs(&starts, &mut outputs)?;
        let all = engine.active.len();
        let budget = config.max_features.unwrap_or(all).min(all);
        let mut task = Task::new("attribute", budget as u64, "features");
        let started = std::time::Instant::now();
        let (selected, edges) = if budget == all {
            everything(&engine, &outputs, place()?, &mut task)?
        } else {
            most_influential(&engine, outputs, (&logits, budget, config), place()?, &mut task)?
        };
        let seconds = started.elapsed().as_secs_f64();
        task.finish(format!("{} of {all} features in {seconds:.1} s", selected.len()));
        let complete = selected.len() == budget;
        Graph::new(GraphParts {
            model_name: model.name().to_string(),
            prompt,
            tokens: self.run().tokens.clone(),
            token_text: self.run().token_text.clone(),
            layers: model.layers(),
            active: engine.active,
            activations: self.activations(),
            selected,
            logits,
            position_nodes: config.position_nodes,
            edges,
            zero_positions: config.zero_positions.clone(),
            complete,
        })
    }
}

/// Rows of every feature, then those of the outputs: ascending without sorting. They go into `edges`.
fn everything(engine: &RowEngine, outputs: &Edges, mut edges: Edges, task: &mut Task) -> Result<(Vec<u32>, Edges)> {
    let all: Vec<u32> = (0..engine.active.len() as u32).collect();
    let done = engine.features(&all, &mut edges, |done| task.advance(done as u64))?;
    edges.append(outputs)?;
    if done == all.len() {
        return Ok((all, edges));
    }
    let selected = all[..done].to_vec();
    let rest = edges.beside()?;
    Ok((selected.clone(), only(engine, &edges, &selected, rest)?))
}

/// Rows of the `budget` features with most influence, as far as it is known when they are chosen; those that
/// the graph keeps go into `kept`.
fn most_influential(
    engine: &RowEngine,
    mut edges: Edges,
    (logits, budget, config): (&[LogitTarget], usize, &AttributeConfig),
    kept: Edges,
    task: &mut Task,
) -> Result<(Vec<u32>, Edges)> {
    let mut weights = vec![0.0; engine.first_logit()];
    weights.extend(logits.iter().map(|logit| f64::from(logit.probability)));
    let mut visited = vec![false; engine.active.len()];
    let step = config.rank_every.unwrap_or((budget / 8).max(LEAST_STEP));
    let mut count = 0;
    while count < budget {
        let known = influence(&edges, &weights, PARTIAL_FLOOR);
        let mut open: Vec<u32> = (0..visited.len() as u32).filter(|&i| !visited[i as usize]).collect();
        let take = step.min(budget - count);
        if take < open.len() {
            // The same as a stable sort would take, in linear time.
            open.select_nth_unstable_by(take - 1, |a, b| known[*b as usize].total_cmp(&known[*a as usize]).then(a.cmp(b)));
            open.truncate(take);
        }
        let done = engine.scattered(&open, &mut edges, |done| task.advance((count + done) as u64))?;
        done.iter().for_each(|feature| visited[*feature as usize] = true);
        count += done.len();
        if done.len() < open.len() {
            break;
        }
    }
    let selected: Vec<u32> = (0..visited.len() as u32).filter(|&i| visited[i as usize]).collect();
    let edges = only(engine, &edges, &selected, kept)?;
    Ok((selected, edges))
}

/// The edges among selected features and all other nodes, renumbered, put into `kept`.
fn only(engine: &RowEngine, edges: &Edges, selected: &[u32], kept: Edges) -> Result<Edges> {
    let others = edges.rows().map(|row| row.target as usize + 1).max().unwrap_or(0).max(engine.first_logit());
    let mut number = vec![None; engine.active.len()];
    selected.iter().zip(0..).for_each(|(feature, new)| number[*feature as usize] = Some(new));
    number.extend((engine.active.len()..others).zip(selected.len() as u32..).map(|(_, new)| Some(new)));
    edges.select_into(kept, &number, |_| true)
}
