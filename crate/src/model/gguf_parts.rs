//! A GGUF model's files: one, or the parts that llama.cpp's splitter makes (`NAME-00001-of-00003.gguf`), of
//! which the first is named.

use crate::error::{Error, ErrorKind, Result};
use crate::text::gguf_header;
use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, Tensor};
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

/// The first part's metadata with the tensors of all parts.
pub(crate) struct GgufParts {
    pub content: Content,
    /// Each part's file and where its tensors begin.
    files: Vec<(RefCell<BufReader<File>>, u64)>,
    /// Which part holds a tensor.
    part: HashMap<String, usize>,
    pub path: PathBuf,
}

impl GgufParts {
    /// Opens a file, or all parts of a split model from its first.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let (mut content, reader) = gguf_header::read(path)?;
        let mut files = vec![(RefCell::new(reader), content.tensor_data_offset)];
        let mut part: HashMap<String, usize> = content.tensor_infos.keys().map(|name| (name.clone(), 0)).collect();
        let count = split(&content, "count").unwrap_or(1);
        if count > 1 {
            let number = split(&content, "no").unwrap_or(0);
            let base = stem(path, number, count);
            if number > 0 {
                let first = base.as_ref().map_or_else(|| "the file whose split.no is 0".to_string(), |base| named(path, base, 0, count).display().to_string());
                let message = format!("{}: part {} of a model in {count} files, expected the first part", path.display(), number + 1);
                return Err(Error::new(ErrorKind::BadFile, message).help(format!("give the first part: {first}")));
            }
            let base = base.ok_or_else(|| {
                Error::expected(ErrorKind::BadFile, format_args!("{}: name of the first of {count} parts", path.display()), "another", format_args!("NAME-00001-of-{count:05}.gguf"))
                    .help("the other parts are found by their names: rename them as they were")
            })?;
            for other in 1..count {
                let place = named(path, &base, other, count);
                let (more, reader) = gguf_header::read(&place).map_err(|error| error.help(format!("all {count} parts of {} are needed", path.display())))?;
                if (split(&more, "no"), split(&more, "count")) != (Some(other), Some(count)) {
                    let got = format!("{:?} and {:?}", split(&more, "no"), split(&more, "count"));
                    return Err(Error::expected(ErrorKind::BadFile, format_args!("{}: split.no and split.count", place.display()), got, format_args!("{other} and {count}")));
                }
                for (name, info) in more.tensor_infos {
                    if content.tensor_infos.insert(name.clone(), info).is_some() {
                        let name = crate::text::placeholder::shown(name);
                        return Err(Error::expected(ErrorKind::BadFile, format_args!("{}: tensor {name}", place.display()), "it in an earlier part too", "each tensor once"));
                    }
                    part.insert(name, files.len());
                }
                files.push((RefCell::new(reader), more.tensor_data_offset));
            }
            let all = content.metadata.get("split.tensors.count").and_then(|value| value.to_u64().ok().or_else(|| value.to_i32().ok()?.try_into().ok()));
            if let Some(all) = all.filter(|all| *all != content.tensor_infos.len() as u64) {
                return Err(Error::expected(ErrorKind::BadFile, format_args!("{}: tensors in all {count} parts", path.display()), content.tensor_infos.len(), format_args!("{all} by split.tensors.count")));
            }
        }
        Ok(GgufParts { content, files, part, path: path.to_path_buf() })
    }

    /// A tensor as f32.
    pub(crate) fn tensor(&self, name: &str, device: &Device) -> candle_core::Result<Tensor> {
        let found = self.content.tensor_infos.get(name).zip(self.part.get(name).and_then(|part| self.files.get(*part)));
        let Some((info, (file, start))) = found else { candle_core::bail!("no such tensor") };
        info.read(&mut *file.borrow_mut(), *start, device)?.dequantize(device)
    }
}

/// A field that the splitter writes.
fn split(content: &Content, field: &str) -> Option<u64> {
    let value = content.metadata.get(&format!("split.{field}"))?;
    value.to_u64().ok().or_else(|| value.to_i32().ok()?.try_into().ok()).filter(|number| *number < 100_000)
}

/// The name before `-00001-of-00003.gguf`, if it is that of this part.
fn stem(path: &Path, number: u64, count: u64) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    name.strip_suffix(&format!("-{:05}-of-{count:05}.gguf", number + 1)).map(str::to_string)
}

fn named(path: &Path, base: &str, number: u64, count: u64) -> PathBuf {
    path.with_file_name(format!("{base}-{:05}-of-{count:05}.gguf", number + 1))
}
