//! A folder of files, written beside its place and moved in when it is complete.

use crate::clt::decode::values;
use crate::error::{Error, Result};
use crate::files;
use crate::files::sealed::{write_plain, Array};
use crate::files::write::{folder_of, Temporary};
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;
use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

/// A named tensor to write, with its shape in the file.
pub(super) type Part<'a> = (String, Vec<usize>, &'a Tensor);

/// Lets `fill` write a temporary folder, then moves its files into `folder`, or the folder itself when
/// there is none. A full disk leaves what was there before; other files in the folder stay. Of two writers at
/// once the folder gets all files of one, then all of the other.
pub(super) fn write(folder: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    files::create_folder(folder_of(folder))?;
    files::not_a_file(folder)?;
    let place = if folder.file_name().is_some() { folder.to_path_buf() } else { folder.join("clt") };
    let mut staged = Temporary::folder(&place)?;
    fill(&staged.path)?;
    let fault = |error: std::io::Error| Error::io(folder, error);
    if !folder.exists() {
        match staged.move_to(folder) {
            // Another writer made it meanwhile.
            Err(_) if folder.is_dir() => {}
            moved => return moved.map_err(fault),
        }
    }
    // Kept until it is dropped. A file system without locks has one writer at a time.
    let lock = File::open(folder).map_err(fault)?;
    let _ = lock.lock();
    move_in(&staged.path, folder)
}

fn move_in(staged: &Path, folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(staged).map_err(|error| Error::io(staged, error))? {
        let entry = entry.map_err(|error| Error::io(staged, error))?;
        let to = folder.join(entry.file_name());
        if entry.path().is_dir() && to.is_dir() {
            move_in(&entry.path(), &to)?;
        } else {
            files::move_to(&entry.path(), &to)?;
        }
    }
    Ok(())
}

/// Writes tensors as one safetensors file, f32; its folder is made.
pub(super) fn write_tensors(path: &Path, tensors: &[Part<'_>]) -> Result<()> {
    write_as(path, tensors, DType::F32)
}

/// As [`write_tensors`], matrices in `dtype`: f32, bf16 or f16. Vectors stay f32: a threshold that is rounded is another.
pub(super) fn write_as(path: &Path, tensors: &[Part<'_>], dtype: DType) -> Result<()> {
    if let Some(folder) = path.parent() {
        files::create_folder(folder)?;
    }
    let tensors: Vec<_> = tensors
        .iter()
        .map(|(name, shape, tensor)| Ok((name.clone(), shape.clone(), tensor.to_device(&Device::Cpu)?.contiguous()?)))
        .collect::<Result<_>>()?;
    let guards: Vec<_> = tensors.iter().map(|(_, _, tensor)| tensor.storage_and_layout()).collect();
    let narrow = |values: &[f32]| -> Option<(Dtype, Vec<u8>)> {
        match dtype {
            DType::BF16 => Some((Dtype::BF16, values.par_iter().flat_map_iter(|&value| bf16::from_f32(value).to_le_bytes()).collect())),
            DType::F16 => Some((Dtype::F16, values.par_iter().flat_map_iter(|&value| f16::from_f32(value).to_le_bytes()).collect())),
            _ => None,
        }
    };
    let halves = tensors
        .iter()
        .zip(&guards)
        .map(|((_, shape, _), guard)| Ok(if shape.len() > 1 { narrow(values(guard)?) } else { None }))
        .collect::<Result<Vec<_>>>()?;
    let named = tensors.iter().zip(&guards).zip(&halves).map(|(((name, shape, _), guard), half)| {
        let array = match half {
            Some((dtype, bytes)) => Array::Raw(*dtype, bytes),
            None => Array::F32(values(guard)?),
        };
        Ok((name.clone(), shape.clone(), array))
    });
    write_plain(path, &named.collect::<Result<Vec<_>>>()?, HashMap::new())
}

/// As [`write_tensors`], for tensors of any shape that were made for the file.
pub(super) fn write_owned(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    let parts: Vec<Part<'_>> = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.dims().to_vec(), tensor)).collect();
    write_tensors(path, &parts)
}
