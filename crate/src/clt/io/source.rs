//! Where a CLT's files are: a folder, or a repository of the hub.
//!
//! Pickles are refused by name: reading one runs whatever program it holds.

use crate::error::{Error, ErrorKind, Result};
use crate::files::names::plain_relative;
use crate::files::walk::walk;
use crate::hub::{HubConfig, HubRepo};
use std::path::{Path, PathBuf};

/// A folder, or a repository and a folder in it.
pub(super) enum Source {
    Folder(PathBuf),
    Hub(HubRepo, String, String),
}

impl Source {
    /// A folder, `owner/name`, `owner/name@revision`, or a folder of a repository `owner/name//folder@revision`.
    pub fn open(source: &str) -> Result<Self> {
        let path = PathBuf::from(source);
        if path.is_dir() {
            return Ok(Source::Folder(path));
        }
        if path.exists() {
            refuse_pickle(&path)?;
            return Err(Error::expected(ErrorKind::BadInput, source, "a file", "the folder that it lies in"));
        }
        let (whole, revision) = source.split_once('@').map_or((source, None), |(whole, revision)| (whole, Some(revision)));
        let (repo, folder) = whole.split_once("//").unwrap_or((whole, ""));
        if repo.split('/').count() == 2 && !source.starts_with(['.', '/', '~']) {
            let repo = revision.map_or_else(|| repo.to_string(), |revision| format!("{repo}@{revision}"));
            return Ok(Source::Hub(HubRepo::open(&repo, &HubConfig::default())?, folder.trim_matches('/').to_string(), source.to_string()));
        }
        Err(Error::new(ErrorKind::MissingFile, format!("{source}: no such folder"))
            .help("give the folder of a CLT (a training writes it to clt/ in its folder), or a hub name owner/name or owner/name//folder"))
    }

    pub fn name(&self) -> String {
        match self {
            Source::Folder(folder) => folder.display().to_string(),
            Source::Hub(_, _, name) => name.clone(),
        }
    }

    /// A folder on disk within this one, when it is there.
    pub fn inside(&self, name: &str) -> Option<Self> {
        match self {
            Source::Folder(folder) => Some(folder.join(name)).filter(|inner| inner.is_dir()).map(Source::Folder),
            Source::Hub(..) => None,
        }
    }

    /// The path of a file, on the hub after it was fetched.
    ///
    /// # Errors
    /// `BadFile` for a name that is no path of plain names below the folder; those of [`HubRepo::file`].
    pub fn file(&self, name: &str) -> Result<PathBuf> {
        plain_relative(name, &self.name())?;
        match self {
            Source::Folder(folder) => Ok(folder.join(name)),
            Source::Hub(repo, folder, _) if folder.is_empty() => repo.file(name),
            Source::Hub(repo, folder, _) => repo.file(&format!("{folder}/{name}")),
        }
    }

    /// A file that may be absent.
    pub fn optional(&self, name: &str) -> Option<PathBuf> {
        self.file(name).ok().filter(|path| path.exists())
    }

    /// Whether a file is there; on the hub, whether the repository has it.
    pub fn has(&self, name: &str) -> Result<bool> {
        match self {
            Source::Folder(folder) => Ok(folder.join(name).exists()),
            Source::Hub(repo, folder, _) if folder.is_empty() => Ok(repo.optional(name)?.is_some()),
            Source::Hub(repo, folder, _) => Ok(repo.optional(&format!("{folder}/{name}"))?.is_some()),
        }
    }

    /// Every file below the folder whose name passes, three levels down, sorted. A repository of the
    /// hub cannot be searched: nothing there.
    pub fn find(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        if let Source::Folder(folder) = self {
            walk(folder, 3, &mut |path| {
                if path.file_name().is_some_and(|name| wanted(&name.to_string_lossy())) {
                    found.push(path);
                }
                Ok(())
            })?;
        }
        found.sort();
        Ok(found)
    }

    /// The file of each layer among those whose name passes, in order from layer 0. The layer stands in
    /// the path: `layer_3`, `layers.3`, `blocks.3`, `h.3`, or else the first number in it.
    pub fn layer_files(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
        self.layer_files_by(wanted, |_| Ok(None))
    }

    /// As [`Source::layer_files`], where something beside the file may say the layer.
    pub fn layer_files_by(&self, wanted: impl Fn(&str) -> bool, says: impl Fn(&Path) -> Result<Option<usize>>) -> Result<Vec<PathBuf>> {
        let Source::Folder(folder) = self else { return Ok(Vec::new()) };
        let mut numbered = Vec::new();
        for path in self.find(wanted)? {
            let inside = path.strip_prefix(folder).unwrap_or(&path).to_string_lossy().into_owned();
            let Some(layer) = says(&path)?.or_else(|| layer_number(&inside)) else {
                return Err(Error::expected(ErrorKind::BadFile, path.display(), "no layer number in its path", "layer_0 or the like"));
            };
            numbered.push((layer, path));
        }
        numbered.sort();
        for (expected, pair) in numbered.iter().enumerate() {
            if pair.0 == expected {
                continue;
            }
            let twice = expected > 0 && numbered[expected - 1].0 == pair.0;
            let got = if twice { format!("two files for layer {}", pair.0) } else { format!("no file for layer {expected}, one for layer {}", pair.0) };
            return Err(Error::expected(ErrorKind::BadFile, self.name(), got, "one file for each layer from 0 on")
                .help("give a folder that holds one transcoder for each layer"));
        }
        Ok(numbered.into_iter().map(|(_, path)| path).collect())
    }

    /// `BadFile` naming a pickle, if that is what there is instead of weights.
    pub fn refuse_pickles(&self) -> Result<()> {
        self.find(is_pickle)?.first().map_or(Ok(()), |path| refuse_pickle(path))
    }
}

fn is_pickle(name: &str) -> bool {
    ["pt", "pth", "pkl", "pickle", "bin", "ckpt"].iter().any(|ending| name.rsplit_once('.').is_some_and(|(_, end)| end == *ending))
}

fn refuse_pickle(path: &Path) -> Result<()> {
    if !is_pickle(&path.to_string_lossy()) {
        return Ok(());
    }
    Err(Error::expected(ErrorKind::Unsupported, path.display(), "a pickle", "safetensors or npz")
        .help("a pickle can run any program when it is read; load it in Python, if you trust it, and save its tensors with safetensors"))
}

/// The layer that a path or hook name names.
pub(super) fn layer_number(text: &str) -> Option<usize> {
    let number = |at: usize| {
        let rest = text[at..].trim_start_matches(['.', '_', '-', 's']);
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        rest[..digits].parse().ok()
    };
    let named = ["layer", "block", "h."].iter().find_map(|word| text.match_indices(word).find_map(|(at, _)| number(at + word.len())));
    named.or_else(|| text.find(|c: char| c.is_ascii_digit()).and_then(number))
}
