//! A block's effects on a GPU: the directions stay there on their way down, and so do the sums; what comes back are
//! compressed rows. The twin on the CPU is [`super::columns`].

use super::edges::Edges;
use super::rows::Group;
use super::sources::{learnt_positions, Sources};
use crate::clt::kernels::cuda::{DenseRows, Effects};
use crate::error::Result;
use crate::replacement::{FrozenModel, LocalReplacement, Site};
use std::sync::{Mutex, PoisonError};

/// A prompt's sources on the device. One block at a time.
pub(super) struct OnDevice(Mutex<Effects>);

impl OnDevice {
    /// # Errors
    /// `OutOfMemory` where decoder rows do not fit; `BadConfig` when positions are sources and the model has none.
    pub fn new(local: &LocalReplacement, sources: &Sources) -> Result<Self> {
        let mut dense = Vec::new();
        for t in 0..sources.layers {
            dense.push(DenseRows { site: t, rows: local.errors(t)?.contiguous()?, node: sources.error(t) });
        }
        dense.push(DenseRows { site: sources.layers, rows: local.embeddings().contiguous()?, node: sources.token() });
        if sources.has_positions {
            dense.push(DenseRows { site: sources.layers, rows: learnt_positions(local)?.contiguous()?, node: sources.position() });
        }
        let effects = Effects::new(local.replacement().clt(), local.code(), |s, p| sources.first(s, p), dense)?;
        Ok(OnDevice(Mutex::new(effects)))
    }

    /// Rows of the groups' targets, group by group.
    pub fn block(&self, frozen: &FrozenModel, sources: &Sources, groups: Vec<Group>) -> Result<Edges> {
        let mut effects = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let top = groups.first().map_or(0, |group| group.below);
        let nodes: Vec<u32> = groups.iter().flat_map(|group| group.targets.iter().map(|(node, _)| *node)).collect();
        effects.begin(nodes.len(), sources.first(top, 0))?;
        frozen.carry_all(groups.into_iter().map(|group| (group.below, group.flow)).collect(), &mut |site, flow| {
            let site = match site {
                Site::MlpOut(layer) => layer,
                Site::Embedding => sources.layers,
            };
            effects.add(site, &flow.rows, &flow.spans)
        })?;
        let (ends, sources, weights) = effects.edges()?;
        Ok(Edges::from_rows(nodes, ends, sources, weights))
    }
}
