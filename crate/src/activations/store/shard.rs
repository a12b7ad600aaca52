//! One shard: values to bytes and back, block by block.

use super::{shard_path, Manifest, StoreFormat};
use crate::activations::Batch;
use crate::error::{Error, ErrorKind, Result};
use crate::files::sealed::{self, checksum, Array, Entry, Sealed};
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::tensor::Dtype;
use std::ops::Range;
use std::path::{Path, PathBuf};

const NOTE: &str = "cltlab_store";

/// The name of a tensor: side 0 is the inputs.
fn name_of(layer: usize, side: usize) -> String {
    format!("{}.{layer}", ["input", "target"][side])
}

/// Values of one layer and side as they are written.
struct Encoded {
    bytes: Vec<u8>,
    /// Where each block's bytes begin, and where the last ends.
    ends: Vec<u32>,
    /// One a dimension, int8 only.
    scales: Vec<f32>,
    sums: Vec<u64>,
}

/// Writes shard `index`: `batch` holds its blocks one after the other, `rows[b]..rows[b + 1]` each.
pub(super) fn write(folder: &Path, index: usize, manifest: &Manifest, batch: &Batch, rows: &[u32]) -> Result<()> {
    let path = shard_path(folder, index);
    let sides: Vec<(usize, usize)> = (0..manifest.layers).flat_map(|l| [(l, 0), (l, 1)]).collect();
    let encoded = sides
        .par_iter()
        .map(|&(l, side)| {
            let values = if side == 0 { &batch.inputs[l] } else { &batch.targets[l] };
            encode(manifest, values, rows).map_err(|error| error.context(format_args!("{}: {}", path.display(), name_of(l, side))))
        })
        .collect::<Result<Vec<_>>>()?;
    let tokens = batch.tokens;
    let mut arrays: Vec<Entry<'_>> = vec![("rows".into(), vec![rows.len()], Array::U32(rows))];
    let sums: Vec<u8> = encoded.iter().flat_map(|encoded| encoded.sums.iter().flat_map(|sum| sum.to_le_bytes())).collect();
    arrays.push(("sums".into(), vec![sides.len(), rows.len() - 1], Array::Raw(Dtype::U64, &sums)));
    for (&(l, side), encoded) in sides.iter().zip(&encoded) {
        let name = name_of(l, side);
        if manifest.zstd.is_some() {
            arrays.push((name.clone(), vec![encoded.bytes.len()], Array::U8(&encoded.bytes)));
            arrays.push((format!("{name}.ends"), vec![encoded.ends.len()], Array::U32(&encoded.ends)));
        } else {
            arrays.push((name.clone(), vec![tokens, manifest.width], Array::Raw(dtype(manifest.format), &encoded.bytes)));
        }
        if !encoded.scales.is_empty() {
            arrays.push((format!("{name}.scale"), vec![manifest.width], Array::F32(&encoded.scales)));
        }
    }
    sealed::write(&path, &arrays, [(NOTE.to_string(), note(manifest, index)?)].into())
}

fn note(manifest: &Manifest, index: usize) -> Result<String> {
    serde_json::to_string(&(manifest, index)).map_err(|error| Error::wrap(ErrorKind::BadConfig, "store", error))
}

fn dtype(format: StoreFormat) -> Dtype {
    match format {
        StoreFormat::F32 => Dtype::F32,
        StoreFormat::F16 => Dtype::F16,
        StoreFormat::Bf16 => Dtype::BF16,
        StoreFormat::Int8 => Dtype::I8,
    }
}

fn encode(manifest: &Manifest, values: &[f32], rows: &[u32]) -> Result<Encoded> {
    let d = manifest.width;
    // int8 would turn NaN into 0.
    if let Some(odd) = values.iter().find(|value| !value.is_finite()) {
        return Err(Error::expected(ErrorKind::NotFinite, "a value", odd, "a finite number").help("the model gives NaN or infinity on this text: look at its weights, or run it in f32"));
    }
    let mut scales = Vec::new();
    let plain: Vec<u8> = match manifest.format {
        StoreFormat::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        StoreFormat::Bf16 => values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect(),
        StoreFormat::F16 => {
            if let Some(large) = values.iter().find(|value| f16::from_f32(**value).is_infinite()) {
                return Err(Error::expected(ErrorKind::NotFinite, "a value", large, "at most 65504, the largest of f16").help("use StoreFormat::Bf16"));
            }
            values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect()
        }
        StoreFormat::Int8 => {
            scales = vec![0f32; d];
            for row in values.chunks_exact(d) {
                scales.iter_mut().zip(row).for_each(|(scale, value)| *scale = scale.max(value.abs() / 127.0));
            }
            values.chunks_exact(d).flat_map(|row| row.iter().zip(&scales).map(|(value, scale)| if *scale > 0.0 { (value / scale).round() as i8 as u8 } else { 0 })).collect()
        }
    };
    let each = plain.len() / values.len().max(1) * d;
    let blocks = rows.windows(2).map(|pair| &plain[pair[0] as usize * each..pair[1] as usize * each]);
    let Some(level) = manifest.zstd else {
        let sums = blocks.map(checksum).collect();
        return Ok(Encoded { ends: Vec::new(), sums, scales, bytes: plain });
    };
    let (mut bytes, mut ends, mut sums) = (Vec::new(), vec![0], Vec::new());
    for block in blocks {
        let packed = zstd::bulk::compress(block, level).map_err(|error| Error::wrap(ErrorKind::Io, "zstd", error))?;
        sums.push(checksum(&packed));
        bytes.extend_from_slice(&packed);
        ends.push(bytes.len() as u32);
    }
    Ok(Encoded { bytes, ends, scales, sums })
}

/// An open shard.
pub(super) struct Shard {
    path: PathBuf,
    file: Sealed,
    format: StoreFormat,
    packed: bool,
    width: usize,
    /// Where each block's rows begin, and where the last ends.
    rows: Vec<u32>,
    /// Of layer l and side s at `2 l + s`: where each block's bytes lie, their checksums, the scales.
    places: Vec<Vec<Range<usize>>>,
    sums: Vec<u64>,
    scales: Vec<Vec<f32>>,
}

impl Shard {
    /// Opens shard `index` and checks that it belongs to `manifest`.
    pub fn open(folder: &Path, index: usize, manifest: &Manifest) -> Result<Self> {
        let path = shard_path(folder, index);
        let file = Sealed::open(&path).map_err(|error| match error.kind() {
            ErrorKind::MissingFile => error.help("the store is not complete: Activations::store with the same model and text goes on with it"),
            _ => damaged(error),
        })?;
        let bad = |what: &str| Error::new(ErrorKind::BadFile, format!("{}: {what}", path.display()));
        let told: (Manifest, usize) = file.note(NOTE).and_then(|note| serde_json::from_str(note).ok()).ok_or_else(|| bad("not a shard of activations"))?;
        if let Some((field, got, expected)) = told.0.difference(manifest) {
            return Err(Error::expected(ErrorKind::Mismatch, format_args!("{}: {field}", path.display()), got, format_args!("{expected}, as the store has"))
                .help("the shard is of another store: delete it and store again, which makes what is missing"));
        }
        let blocks = manifest.shard_blocks.min(manifest.blocks.saturating_sub(index * manifest.shard_blocks));
        if told.1 != index {
            return Err(Error::expected(ErrorKind::Mismatch, format_args!("{}: number", path.display()), told.1, index));
        }
        let u32s = |name: &str, count: usize| -> Result<Vec<u32>> {
            let values: Vec<u32> = file.bytes(name).map_err(damaged)?.as_chunks().0.iter().map(|four| u32::from_le_bytes(*four)).collect();
            if values.len() != count || values.windows(2).any(|pair| pair[0] > pair[1]) {
                return Err(Error::expected(ErrorKind::BadTensor, format_args!("{}: {name}", path.display()), format_args!("{} values", values.len()), format_args!("{count}, rising")));
            }
            Ok(values)
        };
        let rows = u32s("rows", blocks + 1)?;
        if rows.first() != Some(&0) || rows.windows(2).any(|pair| (pair[1] - pair[0]) as usize > manifest.served()) {
            return Err(bad(&format!("rows: expected 0 first, and at most {} more for each block", manifest.served())));
        }
        let tokens = rows.last().copied().unwrap_or(0) as usize;
        let sums: Vec<u64> = file.bytes("sums").map_err(damaged)?.as_chunks().0.iter().map(|eight| u64::from_le_bytes(*eight)).collect();
        if sums.len() != 2 * manifest.layers * blocks {
            return Err(bad("checksums of another number of blocks"));
        }
        let (mut places, mut scales) = (Vec::new(), Vec::new());
        for (l, side) in (0..manifest.layers).flat_map(|l| [(l, 0), (l, 1)]) {
            let name = name_of(l, side);
            let (found, shape, bytes) = file.unchecked(&name)?;
            let each = dtype(manifest.format).bitsize() / 8 * manifest.width;
            let ends = if manifest.zstd.is_some() { u32s(&format!("{name}.ends"), blocks + 1)? } else { Vec::new() };
            let place = |b: usize| match ends.is_empty() {
                true => rows[b] as usize * each..rows[b + 1] as usize * each,
                false => ends[b] as usize..ends[b + 1] as usize,
            };
            let whole = if ends.is_empty() { tokens * each } else { ends.last().copied().unwrap_or(0) as usize };
            if bytes.len() != whole || ends.first().is_some_and(|first| *first != 0) {
                return Err(Error::expected(ErrorKind::BadTensor, format_args!("{}: {name}", path.display()), format_args!("{found:?} {shape:?}"), format_args!("{whole} bytes")));
            }
            places.push((0..blocks).map(place).collect());
            let mut scale = vec![0f32; if manifest.format == StoreFormat::Int8 { manifest.width } else { 0 }];
            if !scale.is_empty() {
                file.fill(&format!("{name}.scale"), sealed::ArrayMut::F32(&mut scale)).map_err(damaged)?;
            }
            scales.push(scale);
        }
        Ok(Shard { path, format: manifest.format, packed: manifest.zstd.is_some(), width: manifest.width, file, rows, places, sums, scales })
    }

    pub fn tokens(&self) -> usize {
        self.rows.last().copied().unwrap_or(0) as usize
    }

    /// Rows of a block.
    pub fn rows(&self, block: usize) -> Range<usize> {
        self.rows[block] as usize..self.rows[block + 1] as usize
    }

    /// Appends the values of a block.
    ///
    /// # Errors
    /// `BadFile` when its bytes are damaged.
    pub fn read(&self, layer: usize, side: usize, block: usize, into: &mut Vec<f32>) -> Result<()> {
        let at = 2 * layer + side;
        let (_, _, all) = self.file.unchecked(&name_of(layer, side))?;
        let bytes = &all[self.places[at][block].clone()];
        let count = self.rows(block).len() * self.width;
        let fault = |what: String| damaged(Error::new(ErrorKind::BadFile, format!("{}: {}, block {block}: {what}", self.path.display(), name_of(layer, side))));
        if checksum(bytes) != self.sums[at * (self.rows.len() - 1) + block] {
            return Err(fault("the checksum differs".into()));
        }
        let plain;
        let bytes = if self.packed {
            plain = zstd::bulk::decompress(bytes, count * 4).map_err(|error| fault(error.to_string()).caused_by(error))?;
            &plain
        } else {
            bytes
        };
        let before = into.len();
        match self.format {
            StoreFormat::F32 => into.extend(bytes.as_chunks().0.iter().map(|four| f32::from_le_bytes(*four))),
            StoreFormat::F16 => into.extend(bytes.as_chunks().0.iter().map(|two| f16::from_le_bytes(*two).to_f32())),
            StoreFormat::Bf16 => into.extend(bytes.as_chunks().0.iter().map(|two| bf16::from_le_bytes(*two).to_f32())),
            StoreFormat::Int8 => {
                let scales = &self.scales[at];
                bytes.chunks_exact(self.width).for_each(|row| into.extend(row.iter().zip(scales).map(|(&byte, scale)| f32::from(byte as i8) * scale)));
            }
        }
        if into.len() - before != count {
            return Err(fault(format!("{} values, expected {count}", into.len() - before)));
        }
        Ok(())
    }
}

fn damaged(error: Error) -> Error {
    match error.kind() {
        ErrorKind::BadFile => error.help("delete this shard and call Activations::store again: it makes what is missing"),
        _ => error,
    }
}
