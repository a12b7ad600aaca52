//! Writing a store, shard by shard.

use super::{shard, shard_path, Manifest, Shard, StoreConfig, MANIFEST, VERSION};
use crate::activations::rounds::per_token;
use crate::activations::stream::Runner;
use crate::activations::{Activations, Batch};
use crate::device::{format_bytes, require_disk, require_memory};
use crate::error::{Error, ErrorKind, Result};
use crate::files;
use crate::model::Model;
use crate::progress::Task;
use crate::text::Corpus;
use std::path::Path;

impl Activations {
    /// Runs `model` over `corpus` and writes what a CLT is trained on into `folder`; then opens it.
    /// Called again it makes only the shards that are missing: after an interrupt, a full disk or a
    /// crash it goes on.
    ///
    /// # Errors
    /// `BadConfig` naming the field; `BadInput` for a corpus shorter than one context; `DiskFull`
    /// when the predicted size exceeds what is free there, before anything is written; `Mismatch` when the
    /// folder holds a store of another model, text or configuration, naming what differs; `NotFinite`
    /// for NaN, infinity and values that f16 cannot hold; `Interrupted`, errors of the model and of writing.
    pub fn store(model: &Model, corpus: &Corpus, folder: impl AsRef<Path>, config: &StoreConfig) -> Result<Self> {
        let folder = folder.as_ref();
        config.validate(model.context())?;
        let blocks = corpus.blocks(model.tokenizer()?, model.special_token(), config.context, config.max_tokens)?;
        let served = config.context - config.exclude_first;
        let block_bytes = per_token(model.layers(), model.width()) * served as u64;
        let manifest = Manifest {
            version: VERSION,
            model_name: model.name().to_string(),
            model_fingerprint: model.fingerprint().to_string(),
            output: model.output(),
            layers: model.layers(),
            width: model.width(),
            input: config.input,
            context: config.context,
            exclude_first: config.exclude_first,
            max_norm: config.max_norm,
            format: config.format,
            zstd: config.zstd,
            text: blocks.fingerprint(),
            blocks: blocks.len(),
            shard_blocks: (config.shard_bytes / block_bytes).clamp(1, blocks.len() as u64) as usize,
        };
        agree(folder, &manifest)?;
        let missing: Vec<usize> = (0..manifest.shards()).filter(|&index| !shard_path(folder, index).exists()).collect();
        let tokens = |shards: usize| (shards * manifest.shard_blocks).min(blocks.len()) * served;
        require_memory("a shard of activations", 2 * block_bytes * manifest.shard_blocks as u64, "lower StoreConfig::shard_bytes")?;
        files::create_folder(folder)?;
        files::sweep(folder);
        let predicted = config.bytes(manifest.layers, manifest.width, tokens(missing.len()));
        require_disk("a store of activations", folder, predicted, "store fewer tokens (StoreConfig::max_tokens), or use bf16 or int8 (StoreConfig::format)")?;
        files::write_json(folder.join(MANIFEST), &manifest)?;
        let runner = Runner { model: model.clone(), blocks, input: config.input, context: config.context, batch: config.batch, exclude_first: config.exclude_first, max_norm: config.max_norm };
        let mut task = Task::new(format!("store activations in {} ({} to write)", folder.display(), format_bytes(predicted)), manifest.shards() as u64, "shards");
        let mut batch = Batch::default();
        for index in missing {
            let first = index * manifest.shard_blocks;
            let order: Vec<usize> = (first..(first + manifest.shard_blocks).min(manifest.blocks)).collect();
            let rows = runner.run(&order, &mut batch, None)?;
            shard::write(folder, index, &manifest, &batch, &rows)?;
            Shard::open(folder, index, &manifest)?;
            task.advance(index as u64 + 1);
        }
        task.finish(format!("{} shards", manifest.shards()));
        Activations::load(folder, &Default::default())
    }
}

/// Refuses a folder that holds another store.
fn agree(folder: &Path, manifest: &Manifest) -> Result<()> {
    let path = folder.join(MANIFEST);
    if !path.exists() {
        return Ok(());
    }
    let found: Manifest = files::read_json_object(&path)?;
    match found.difference(manifest) {
        None => Ok(()),
        Some((field, got, expected)) => Err(Error::expected(ErrorKind::Mismatch, format_args!("{}: {field}", path.display()), got, format_args!("{expected}, which is to be stored"))
            .help("it holds the activations of another model, text or configuration: choose another folder")),
    }
}
