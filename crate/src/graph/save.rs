//! Writing a graph: JSON for viewers, or its arrays.

use super::{Graph, PruneConfig, Supernode};
use crate::error::{Error, ErrorKind, Result};
use std::path::Path;

/// What a graph's file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GraphFormat {
    /// JSON for circuit-tracer's viewer and Neuronpedia; the file's name becomes its slug. `links[].weight` is the signed
    /// direct effect, `nodes[].influence` the cumulative share. A `.json` file whose name is made of letters, digits, `_`, `.`
    /// and `-` is also entered into `graph-metadata.json` beside it, the list from which circuit-tracer's page lets one choose;
    /// a list that cannot be read is `BadFile`, with the graph written.
    Json,
    /// The arrays of a whole graph in a safetensors file, by circuit-tracer's names: `active_features [all, 3]` (layer,
    /// position, feature), `activation_values`, `selected_features`, `adjacency_matrix`, `logit_token_ids`,
    /// `logit_probabilities`, `node_influence`, `cumulative_scores`, `node_mask`, `edge_mask`, `replacement_score`,
    /// `completeness_score`, `input_tokens`.
    Arrays,
}

/// How a graph is written.
///
/// ```no_run
/// # use cltlab::graph::{Graph, GraphSaveConfig, PruneConfig};
/// # fn f(graph: Graph) -> cltlab::Result<()> {
/// let story = graph.prune(&PruneConfig::default())?;
/// story.save("story.json", &GraphSaveConfig { supernodes: story.supernodes(6), ..GraphSaveConfig::default() })?;
/// graph.save("graph.safetensors", &GraphSaveConfig::default())?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GraphSaveConfig {
    /// Default `None`: by the path's end, `.json` or `.safetensors`.
    pub format: Option<GraphFormat>,
    /// In JSON: groups that viewers open with, their features and the outputs pinned; [`Supernode::load`] reads them
    /// back. Default none.
    pub supernodes: Vec<Supernode>,
    /// In arrays: what `node_mask` and `edge_mask` prune by. Default as [`Graph::prune`]'s.
    pub prune: PruneConfig,
}

impl Graph {
    /// Writes the graph as JSON for viewers or as arrays, see [`GraphFormat`].
    ///
    /// # Errors
    /// `BadInput` for a path of another end without a format, for a feature of a group that is no node of this graph, and
    /// for arrays of a pruned graph, whose nodes are no longer all there; `BadConfig` for a threshold outside 0 to 1;
    /// `NotFinite` when a number is NaN or infinite, which JSON has no word for; `MissingFile` (the folder), `DiskFull`
    /// or `Io`.
    pub fn save(&self, path: impl AsRef<Path>, config: &GraphSaveConfig) -> Result<()> {
        let path = path.as_ref();
        let end = path.extension().and_then(|end| end.to_str());
        match (config.format, end) {
            (Some(GraphFormat::Json), _) | (None, Some("json")) => self.write_json(path, &config.supernodes),
            (Some(GraphFormat::Arrays), _) | (None, Some("safetensors")) => self.write_arrays(path, &config.prune),
            (None, _) => Err(Error::expected(ErrorKind::BadInput, "Graph::save: path", path.display(), "a name that ends in .json or .safetensors, or GraphSaveConfig::format")),
        }
    }
}
