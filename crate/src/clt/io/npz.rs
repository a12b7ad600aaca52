//! Arrays of a numpy `.npz` file, plain or compressed: a zip of `.npy` files.
//!
//! Read here rather than by candle, whose reader takes no compressed entries and believes the size in
//! an array's header. Arrays of objects, which numpy pickles, are refused.

use super::tensors::unknown_tensor;
use crate::device::{format_bytes, require_memory};
use crate::error::{Error, ErrorKind, Result};
use crate::files::names::shown;
use crate::files::numbers::finite;
use candle_core::{Device, Tensor};
use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use zip::CompressionMethod;

/// Gemma Scope's arrays, in the names of its two versions.
const KNOWN: [&str; 8] = ["W_enc", "W_dec", "w_enc", "w_dec", "b_enc", "b_dec", "threshold", "affine_skip_connection"];
/// How many times as long as the file its arrays may be, and how much any file may hold.
const RATIO: u64 = 100;
const SLACK: u64 = 64 << 20;

/// The number of members as the end of the archive gives it; `None` where that is elsewhere (zip64) or is not found.
fn members(file: &std::fs::File, length: u64) -> std::io::Result<Option<usize>> {
    use std::os::unix::fs::FileExt;
    // The last record has 22 bytes and a comment of up to 65,535.
    let most = length.min(22 + 0xFFFF);
    let mut end = vec![0; most as usize];
    file.read_exact_at(&mut end, length - most)?;
    let record = end.windows(22).rev().find(|window| window.starts_with(b"PK\x05\x06"));
    Ok(record.map(|record| usize::from(u16::from_le_bytes([record[10], record[11]]))).filter(|members| *members != 0xFFFF))
}

/// The arrays of one file, as f32.
pub(super) struct Npz {
    path: PathBuf,
    arrays: HashMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Npz {
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let file = crate::files::open(&path)?;
        let broken = |error: zip::result::ZipError| {
            Error::wrap(ErrorKind::BadFile, format_args!("{}: not a whole npz file", path.display()), error)
                .help("the file is truncated or of another kind; copy or download it again")
        };
        let length = file.metadata().map_err(|error| Error::io(&path, error))?.len();
        let members = members(&file, length).map_err(|error| Error::io(&path, error))?;
        let mut zip = zip::ZipArchive::new(std::io::BufReader::new(file)).map_err(broken)?;
        // The library keeps one of several members with the same name.
        if members.is_some_and(|members| members != zip.len()) {
            return Err(Error::expected(ErrorKind::BadFile, path.display(), format_args!("{} members under {} names", members.unwrap_or(0), zip.len()), "each name once"));
        }
        // Names and sizes first: nothing is unpacked that is not an array of the format, nor more than floats can be packed.
        let (mut names, mut total) = (Vec::new(), 0u64);
        for index in 0..zip.len() {
            let entry = zip.by_index_raw(index).map_err(broken)?;
            let name = entry.name().map_err(broken)?.into_owned();
            let Some(name) = name.strip_suffix(".npy").map(str::to_string) else {
                return Err(Error::expected(ErrorKind::BadFile, path.display(), format_args!("an entry '{}'", shown(&name)), "arrays named *.npy"));
            };
            if !KNOWN.contains(&name.as_str()) {
                return Err(unknown_tensor(&path, &name));
            }
            total = total.saturating_add(entry.size());
            names.push(name);
        }
        let most = length.saturating_mul(RATIO).max(SLACK);
        if total > most {
            return Err(Error::expected(ErrorKind::BadFile, path.display(), format_args!("{} unpacked", format_bytes(total)), format_args!("at most {}: weights cannot be packed so small", format_bytes(most))));
        }
        require_memory(&format!("weights of {}", path.display()), total.saturating_mul(2), "use a machine with more memory")?;
        let mut arrays = HashMap::new();
        for (index, name) in names.into_iter().enumerate() {
            let entry = zip.by_index_raw(index).map_err(broken)?;
            let bytes = unpack(&path, &name, entry)?;
            arrays.insert(name.clone(), array(&path, &name, &bytes)?);
        }
        Ok(Npz { path, arrays })
    }

    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.arrays.get(name).map(|(shape, _)| shape.clone())
    }

    pub fn names(&self) -> Vec<String> {
        self.arrays.keys().cloned().collect()
    }

    /// Array `name`, checked against `shape`.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let place = || format!("{}: {name}", self.path.display());
        let (found, values) = self.arrays.get(name).ok_or_else(|| Error::new(ErrorKind::BadTensor, format!("{}: missing", place())))?;
        if found != shape {
            return Err(Error::expected(ErrorKind::BadTensor, place(), format_args!("shape {found:?}"), format_args!("{shape:?}")));
        }
        finite(place(), values, shape)?;
        Ok(Tensor::from_slice(values, shape, &Device::Cpu)?)
    }
}

/// The bytes of one entry. What the archive says of its size bounds what is read, and is not
/// reserved before it is there.
fn unpack<R: Read + ?Sized>(path: &Path, name: &str, mut entry: zip::read::ZipFile<'_, R>) -> Result<Vec<u8>> {
    let (size, method, sum) = (entry.size(), entry.compression(), entry.crc32());
    let place = format!("{}: {name}", path.display());
    let mut bytes = Vec::new();
    let done = match method {
        CompressionMethod::Stored => entry.take(size.saturating_add(1)).read_to_end(&mut bytes),
        CompressionMethod::DEFLATE => flate2::read::DeflateDecoder::new(&mut entry).take(size.saturating_add(1)).read_to_end(&mut bytes),
        other => return Err(Error::expected(ErrorKind::Unsupported, place, format_args!("compressed as {other:?}"), "stored or deflated")),
    };
    done.map_err(|error| Error::wrap(ErrorKind::BadFile, &place, error))?;
    if bytes.len() as u64 != size {
        return Err(Error::expected(ErrorKind::BadFile, place, format_args!("{} bytes", bytes.len()), size));
    }
    let mut check = flate2::Crc::new();
    check.update(&bytes);
    if check.sum() != sum {
        return Err(Error::new(ErrorKind::BadFile, format!("{place}: its checksum is another: the file is damaged")).help("copy or download it again"));
    }
    Ok(bytes)
}

/// An `.npy`: magic, version, a Python dictionary as text, values.
fn array(path: &Path, name: &str, bytes: &[u8]) -> Result<(Vec<usize>, Vec<f32>)> {
    let bad = |text: &str| Error::new(ErrorKind::BadFile, format!("{}: {name}: {text}", path.display()));
    let start = match bytes {
        [0x93, b'N', b'U', b'M', b'P', b'Y', 1, _, ..] => 10,
        [0x93, b'N', b'U', b'M', b'P', b'Y', 2 | 3, _, ..] => 12,
        _ => return Err(bad("not a numpy array")),
    };
    let length = bytes.get(8..start).ok_or_else(|| bad("truncated"))?.iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    let header = bytes.get(start..start + length).and_then(|text| std::str::from_utf8(text).ok()).ok_or_else(|| bad("truncated"))?;
    if let Some(key) = ["descr", "fortran_order", "shape"].iter().find(|key| header.matches(&format!("'{key}':")).count() > 1) {
        return Err(bad(&format!("{key} twice in the header")));
    }
    let field = |key: &str| header.split_once(&format!("'{key}':")).map(|(_, rest)| rest.trim_start()).ok_or_else(|| bad(&format!("no {key} in the header")));
    let kind = field("descr")?.trim_start_matches('\'').split('\'').next().unwrap_or("");
    let size = match kind {
        "<f2" => 2,
        "<f4" => 4,
        "<f8" => 8,
        "|O" => {
            return Err(Error::expected(ErrorKind::Unsupported, format_args!("{}: {name}", path.display()), "an array of objects, which is a pickle", "an array of numbers")
                .help("a pickle can run any program when it is read"))
        }
        other => return Err(Error::expected(ErrorKind::BadTensor, format_args!("{}: {name}", path.display()), other, "<f2, <f4 or <f8")),
    };
    if !field("fortran_order")?.starts_with("False") {
        return Err(Error::expected(ErrorKind::Unsupported, format_args!("{}: {name}", path.display()), "Fortran order", "C order").help("save it with numpy.ascontiguousarray"));
    }
    let shape = field("shape")?.strip_prefix('(').and_then(|rest| rest.split_once(')')).ok_or_else(|| bad("no shape in the header"))?.0;
    let shape = shape.split(',').map(str::trim).filter(|part| !part.is_empty()).map(|part| part.parse().map_err(|_| bad("no shape in the header")));
    let shape: Vec<usize> = shape.collect::<Result<_>>()?;
    let values = &bytes[start + length..];
    let wanted = shape.iter().try_fold(size, |product: usize, axis| product.checked_mul(*axis));
    if wanted != Some(values.len()) {
        return Err(Error::expected(ErrorKind::BadFile, format_args!("{}: {name}", path.display()), format_args!("{} bytes", values.len()), format_args!("shape {shape:?} of {kind}")));
    }
    let values = match size {
        2 => values.as_chunks().0.iter().map(|two| half::f16::from_le_bytes(*two).to_f32()).collect(),
        4 => values.as_chunks().0.iter().map(|four| f32::from_le_bytes(*four)).collect(),
        _ => values.as_chunks().0.iter().map(|eight| f64::from_le_bytes(*eight) as f32).collect(),
    };
    Ok((shape, values))
}
