//! Replacement: model and CLT together.

/// A feature at a position of a prompt: what a graph's node is and an intervention acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct FeatureNode {
    /// Layer that the feature reads.
    pub layer: usize,
    /// Position in the prompt, from 0.
    pub position: usize,
    /// Number within the layer.
    pub feature: usize,
}
