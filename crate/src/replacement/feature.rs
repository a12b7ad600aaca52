//! A feature at a position, and its id: `layer_feature_position`, as graphs' files and viewers have it.

use crate::error::{Error, ErrorKind, Result};
use std::str::FromStr;

/// A feature at a position of a prompt: a node of a graph, and what an intervention acts on.
///
/// Its text is the id that graphs' files and viewers have, `layer_feature_position`.
///
/// ```
/// use cltlab::replacement::FeatureNode;
/// let node: FeatureNode = "0_605_7".parse()?;
/// assert_eq!(node, FeatureNode { layer: 0, feature: 605, position: 7 });
/// assert_eq!((FeatureNode::from((0, 605, 7)), node.to_string()), (node, "0_605_7".to_string()));
/// # Ok::<(), cltlab::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct FeatureNode {
    /// Layer that the feature reads.
    pub layer: usize,
    /// Position in the prompt, from 0.
    pub position: usize,
    /// Number within the layer.
    pub feature: usize,
}

impl std::fmt::Display for FeatureNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}_{}_{}", self.layer, self.feature, self.position)
    }
}

impl From<(usize, usize, usize)> for FeatureNode {
    /// From (layer, feature, position), the order of the id.
    fn from((layer, feature, position): (usize, usize, usize)) -> Self {
        FeatureNode { layer, position, feature }
    }
}

impl FromStr for FeatureNode {
    type Err = Error;

    /// # Errors
    /// `BadInput` for anything but `layer_feature_position`.
    fn from_str(text: &str) -> Result<Self> {
        let numbers: Option<Vec<usize>> = text.trim().split('_').map(|part| part.parse().ok()).collect();
        match numbers.as_deref() {
            Some([layer, feature, position]) => Ok(FeatureNode { layer: *layer, position: *position, feature: *feature }),
            _ => Err(Error::expected(ErrorKind::BadInput, "feature", format_args!("'{text}'"), "layer_feature_position, for instance 0_605_7")),
        }
    }
}
