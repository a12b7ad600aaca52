//! Hub: a repository's name to local files.
//!
//! In: `owner/name` or `owner/name@revision`. Out: paths in the Hugging Face cache, which is shared
//! with Python. What is cached is not asked for again; a fetch that was cut off goes on where it
//! ended, and shows its progress. A build without the feature `hub` reads the cache only. Cost: the network's.

#[cfg_attr(feature = "hub", path = "hub/client.rs")]
#[cfg_attr(not(feature = "hub"), path = "hub/absent.rs")]
mod client;
mod answer;
mod environment;
mod kept;

use crate::error::{Error, ErrorKind, Result};
use crate::files::names::{plain_relative, shown};
use crate::progress;
use answer::{without_passwords, Fault};
use client::Client;
use hf_hub::{Repo, RepoType};
use kept::Kept;
use std::path::{Path, PathBuf};

/// How often a fetch that breaks off is taken up again.
const ATTEMPTS: usize = 5;

/// Where the hub is and what lies here already. The default reads the environment, as Python's
/// `huggingface_hub` does, with `~`, `$NAME` and `${NAME}` in paths.
#[derive(Clone)]
pub struct HubConfig {
    /// Address of the hub: `HF_ENDPOINT`, else `https://huggingface.co`.
    pub endpoint: String,
    /// Folder of the cache: `HF_HUB_CACHE`, else `HUGGINGFACE_HUB_CACHE`, else `HF_HOME/hub`, else
    /// `XDG_CACHE_HOME/huggingface/hub`, else `~/.cache/huggingface/hub`.
    pub cache: PathBuf,
    /// Token for private and gated repositories: `HF_TOKEN`, else `HUGGING_FACE_HUB_TOKEN`, else the
    /// file `HF_TOKEN_PATH`, else `HF_HOME/token`, which `hf auth login` writes. It is sent to the host
    /// of `endpoint` only, never to one that a redirect names.
    pub token: Option<String>,
    /// Asks nothing of the network: `HF_HUB_OFFLINE`, else `TRANSFORMERS_OFFLINE`, is 1, true, yes or on.
    pub offline: bool,
}

impl Default for HubConfig {
    fn default() -> Self {
        environment::read()
    }
}

/// One repository of the hub at one revision.
#[doc(hidden)]
pub struct HubRepo {
    name: String,
    config: HubConfig,
    /// `owner/name`, for a dataset behind `datasets/`.
    address: String,
    revision: String,
    is_dataset: bool,
    kept: Kept,
    client: Client,
}

impl HubRepo {
    /// `owner/name` or `owner/name@revision` (a branch, tag or commit); nothing is fetched yet. The default [`HubConfig`]
    /// is what the environment says.
    ///
    /// # Errors
    /// `BadInput` for what cannot be a repository's name; `Network` when the client cannot be set up.
    pub fn open(source: &str, config: &HubConfig) -> Result<Self> {
        Self::of(false, source, config.clone())
    }

    /// As [`HubRepo::open`], for a dataset.
    ///
    /// # Errors
    /// As [`HubRepo::open`].
    pub fn dataset(source: &str, config: &HubConfig) -> Result<Self> {
        Self::of(true, source, config.clone())
    }

    fn of(is_dataset: bool, source: &str, config: HubConfig) -> Result<Self> {
        let (name, revision) = source.split_once('@').unwrap_or((source, "main"));
        let fits = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c)) && !text.contains("..") && plain_relative(text, "").is_ok();
        if !fits(name) || !fits(revision) || name.split('/').count() > 2 {
            let what = if is_dataset { "dataset" } else { "model" };
            return Err(Error::expected(ErrorKind::BadInput, what, format_args!("'{}'", shown(source)), "a hub name: owner/name or owner/name@revision")
                .help("give a folder, a .gguf file, or a hub name like gpt2"));
        }
        if config.token.as_ref().is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(Error::new(ErrorKind::AccessDenied, "HF_TOKEN: holds characters that no token has").help("copy it anew from the hub's settings"));
        }
        let (kind, prefix) = if is_dataset { (RepoType::Dataset, "datasets/") } else { (RepoType::Model, "") };
        let repo = Repo::with_revision(name.to_string(), kind, revision.to_string());
        let kept = Kept::new(&config.cache, repo.folder_name(), revision);
        let client = Client::new(&config);
        Ok(HubRepo { name: source.to_string(), config, address: format!("{prefix}{name}"), revision: revision.to_string(), is_dataset, kept, client })
    }

    /// The name that it was opened with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Local path of one file, from the cache or fetched.
    ///
    /// # Errors
    /// `BadFile` for a name that is not a relative path of plain components; `MissingFile` when the
    /// repository, the revision or the file does not exist, or is not cached while offline;
    /// `AccessDenied` when it is private or gated; `Network` when the hub cannot be reached;
    /// `Unsupported` when it is not cached and the build lacks the feature `hub`; `DiskFull` or `Io` for the cache.
    pub fn file(&self, file: &str) -> Result<PathBuf> {
        let path = self.path(file)?;
        if let Some(path) = self.kept.get(path) {
            return Ok(path);
        }
        if self.config.offline {
            return Err(self.error(ErrorKind::MissingFile, file, "not in the cache, and HF_HUB_OFFLINE is set").help("fetch it once with a network, or give a local folder"));
        }
        let mut attempt = 1;
        loop {
            match self.fetch(file, path) {
                Ok(path) => return Ok(path),
                Err(Fault::BrokeOff(_)) if attempt < ATTEMPTS && !progress::stop_requested() => attempt += 1,
                Err(fault) => {
                    if matches!(&fault, Fault::Status(404, code) if code == "EntryNotFound") {
                        self.kept.note_absent(path);
                    }
                    return Err(self.refused(file, fault));
                }
            }
        }
    }

    fn path<'a>(&self, file: &'a str) -> Result<&'a Path> {
        plain_relative(file, "file").map_err(|error| error.context(format_args!("hub {}", self.name)))
    }

    fn fetch(&self, file: &str, path: &Path) -> Result<PathBuf, Fault> {
        let url = format!("{}/{}/resolve/{}/{file}", self.config.endpoint, self.address, self.revision.replace('/', "%2F"));
        let about = self.client.about(&url)?;
        let missing = |what: &str| Fault::Answer(format!("the hub did not say the {what} of the file: is HF_ENDPOINT a hub?"));
        let commit = about.commit.ok_or_else(|| missing("commit (x-repo-commit)"))?;
        let etag = about.etag.ok_or_else(|| missing("etag"))?;
        let size = about.size.ok_or_else(|| missing("size"))?;
        self.kept.put(path, &commit, &etag, size, |start, out| {
            let mut task = progress::Task::new(format!("fetch {}/{file}", self.name), size, "bytes");
            self.client.download(&url, start, out, &mut |done| task.advance(done))
        })
    }

    /// Local path of a file that lies in the cache; nothing is asked. `None` also for a name that
    /// [`HubRepo::file`] refuses.
    pub fn cached(&self, file: &str) -> Option<PathBuf> {
        self.kept.get(self.path(file).ok()?)
    }

    /// Paths of all files of the repository, sorted; while offline, of those that lie in the cache.
    ///
    /// # Errors
    /// As [`HubRepo::file`].
    pub fn list(&self) -> Result<Vec<String>> {
        let what = "list of files";
        let mut files = if self.config.offline {
            let snapshot = self.kept.snapshot().filter(|snapshot| snapshot.is_dir());
            let snapshot = snapshot.ok_or_else(|| {
                self.error(ErrorKind::MissingFile, what, "nothing of it is in the cache, and HF_HUB_OFFLINE is set").help("fetch it once with a network, or give a local folder")
            })?;
            let mut found = Vec::new();
            walk(&snapshot, "", &mut found)?;
            found
        } else {
            let kind = if self.is_dataset { "" } else { "models/" };
            let url = format!("{}/api/{kind}{}/revision/{}", self.config.endpoint, self.address, self.revision.replace('/', "%2F"));
            let info = self.client.json(&url).map_err(|fault| self.refused(what, fault))?;
            let names = info.get("siblings").and_then(serde_json::Value::as_array);
            let names = names.map(|names| names.iter().map(|file| file.get("rfilename").and_then(|name| name.as_str()).map(str::to_string)).collect());
            names.flatten().ok_or_else(|| self.error(ErrorKind::Network, what, "the hub's answer has no siblings with rfilename"))?
        };
        files.sort();
        Ok(files)
    }

    /// As [`HubRepo::file`], `None` for a file that the repository does not have, which is asked once
    /// for each commit.
    ///
    /// # Errors
    /// As [`HubRepo::file`], without `MissingFile`.
    pub fn optional(&self, file: &str) -> Result<Option<PathBuf>> {
        let path = self.path(file)?;
        if self.kept.get(path).is_none() && self.kept.absence(path).is_some_and(|mark| mark.exists()) {
            return Ok(None);
        }
        match self.file(file) {
            Ok(path) => Ok(Some(path)),
            Err(error) if error.kind() == ErrorKind::MissingFile => Ok(None),
            // As offline: what is not in the cache is not had.
            Err(error) if cfg!(not(feature = "hub")) && error.kind() == ErrorKind::Unsupported => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn error(&self, kind: ErrorKind, file: &str, text: &str) -> Error {
        Error::new(kind, format!("hub {}: {}: {text}", self.name, shown(file)))
    }

    /// The hub's answer as an error: its status, and its own word for what is wrong.
    fn refused(&self, file: &str, fault: Fault) -> Error {
        let (status, code, said) = match fault {
            #[cfg(not(feature = "hub"))]
            Fault::Absent => {
                let error = self.error(ErrorKind::Unsupported, file, "not in the cache, and this build cannot ask the hub: it lacks the feature `hub`");
                return error.help("build cltlab with the feature `hub` (on by default), or give a local folder");
            }
            Fault::Disk(path, error) => return Error::io(path, error),
            Fault::Status(status, code) => (status, code, format!("the hub answered {status}")),
            Fault::Answer(text) | Fault::BrokeOff(text) => (0, String::new(), text),
        };
        let code = self.client.hide(&shown(&code));
        let said = if code.is_empty() { said } else { format!("{said} {code}") };
        let terms = format!("accept its terms at {}/{}", without_passwords(&self.config.endpoint), self.name.split('@').next().unwrap_or(""));
        let has_token = self.config.token.is_some();
        match (status, code.as_str()) {
            (_, "GatedRepo") | (403, _) if has_token => self.error(ErrorKind::AccessDenied, file, &said).help(format!("the token has no access: {terms} with the account of HF_TOKEN")),
            (_, "GatedRepo") | (403, _) => self.error(ErrorKind::AccessDenied, file, &said).help(format!("the repository is gated: {terms}, then set HF_TOKEN")),
            (401, _) if has_token => self.error(ErrorKind::AccessDenied, file, &said).help("check the repository's name, and that the token in HF_TOKEN is valid and may read it"),
            (401, _) => self.error(ErrorKind::AccessDenied, file, &said).help("check the repository's name; if it is private, set HF_TOKEN"),
            (404, "RevisionNotFound") => self.error(ErrorKind::MissingFile, file, &said).help("check the revision after the @"),
            (404, "EntryNotFound") => self.error(ErrorKind::MissingFile, file, &said).help("the repository does not have this file"),
            (404, _) => self.error(ErrorKind::MissingFile, file, &said).help("check the repository's name and revision"),
            (429 | 500.., _) => self.error(ErrorKind::Network, file, &said).help("the hub is busy: try again later"),
            _ => self.error(ErrorKind::Network, file, &said).help("check the network, or give a local folder or GGUF file instead of a hub name"),
        }
    }
}

/// Paths of the files below `folder`, each after `prefix`.
fn walk(folder: &Path, prefix: &str, into: &mut Vec<String>) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(|error| Error::io(folder, error))? {
        let entry = entry.map_err(|error| Error::io(folder, error))?;
        let path = entry.path();
        let name = format!("{prefix}{}", path.file_name().unwrap_or_default().to_string_lossy());
        // A link to a folder is not followed: it may lead back here.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&path, &format!("{name}/"), into)?;
        } else {
            into.push(name);
        }
    }
    Ok(())
}
