//! Hub: a repository's name to local files.
//!
//! In: `owner/name` or `owner/name@revision`. Out: paths in the Hugging Face cache, which is shared
//! with Python. What is cached is not asked for again; a fetch that was cut off goes on where it
//! ended, and shows its progress. Cost: the network's.

use crate::error::{Error, ErrorKind, Result};
use crate::progress;
use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use std::path::{Path, PathBuf};

/// How often a fetch that breaks off is taken up again.
const ATTEMPTS: usize = 5;

/// Where the hub is and what lies here already. The default reads the environment, as Python's
/// `huggingface_hub` does.
#[derive(Clone)]
pub struct HubConfig {
    /// Address of the hub: `HF_ENDPOINT`, else `https://huggingface.co`.
    pub endpoint: String,
    /// Folder of the cache: `HF_HUB_CACHE`, else `HF_HOME/hub`, else `~/.cache/huggingface/hub`.
    pub cache: PathBuf,
    /// Token for private and gated repositories: `HF_TOKEN`, else the file `HF_TOKEN_PATH`, else
    /// `HF_HOME/token`, which `hf auth login` writes.
    pub token: Option<String>,
    /// Asks nothing of the network: `HF_HUB_OFFLINE` is 1, true, yes or on.
    pub offline: bool,
}

impl Default for HubConfig {
    fn default() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let usual = Cache::from_env();
        let token_file = set("HF_TOKEN_PATH").map_or_else(|| usual.token_path(), PathBuf::from);
        let saved = || std::fs::read_to_string(token_file).ok().filter(|token| !token.trim().is_empty());
        HubConfig {
            endpoint: set("HF_ENDPOINT").map_or_else(|| "https://huggingface.co".to_string(), |url| url.trim_end_matches('/').to_string()),
            cache: set("HF_HUB_CACHE").map_or_else(|| usual.path().clone(), PathBuf::from),
            token: set("HF_TOKEN").or_else(saved).map(|token| token.trim().to_string()),
            offline: set("HF_HUB_OFFLINE").is_some_and(|value| ["1", "true", "yes", "on"].contains(&value.to_lowercase().as_str())),
        }
    }
}

/// One repository of the hub at one revision.
pub struct HubRepo {
    name: String,
    config: HubConfig,
    repo: Repo,
    api: ApiRepo,
}

impl HubRepo {
    /// `owner/name` or `owner/name@revision` (a branch, tag or commit); nothing is fetched yet.
    ///
    /// # Errors
    /// `BadInput` for what cannot be a repository's name; `Network` when the client cannot be set up.
    pub fn open(source: &str) -> Result<Self> {
        Self::open_with(source, HubConfig::default())
    }

    /// As [`HubRepo::open`], from another hub or cache.
    ///
    /// # Errors
    /// As [`HubRepo::open`].
    pub fn open_with(source: &str, config: HubConfig) -> Result<Self> {
        Self::of(RepoType::Model, source, config)
    }

    /// As [`HubRepo::open`], for a dataset.
    ///
    /// # Errors
    /// As [`HubRepo::open`].
    pub fn dataset(source: &str) -> Result<Self> {
        Self::dataset_with(source, HubConfig::default())
    }

    /// As [`HubRepo::dataset`], from another hub or cache.
    ///
    /// # Errors
    /// As [`HubRepo::open`].
    pub fn dataset_with(source: &str, config: HubConfig) -> Result<Self> {
        Self::of(RepoType::Dataset, source, config)
    }

    fn of(kind: RepoType, source: &str, config: HubConfig) -> Result<Self> {
        let (name, revision) = source.split_once('@').unwrap_or((source, "main"));
        let fits = |text: &str, more: &str| !text.is_empty() && !text.contains("..") && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c) || more.contains(c));
        if !fits(name, "/") || !fits(revision, "/") || name.split('/').any(str::is_empty) {
            let what = if matches!(kind, RepoType::Dataset) { "dataset" } else { "model" };
            return Err(Error::expected(ErrorKind::BadInput, what, format_args!("'{source}'"), "a hub name: owner/name or owner/name@revision")
                .help("give a folder, a .gguf file, or a hub name like gpt2"));
        }
        let repo = Repo::with_revision(name.to_string(), kind, revision.to_string());
        let builder = ApiBuilder::from_cache(Cache::new(config.cache.clone())).with_endpoint(config.endpoint.clone());
        let api = builder.with_progress(false).with_token(config.token.clone()).build();
        let api = api.map_err(|error| Error::new(ErrorKind::Network, format!("hub client: {error}")))?.repo(repo.clone());
        Ok(HubRepo { name: source.to_string(), config, repo, api })
    }

    /// The name that it was opened with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Local path of one file, from the cache or fetched.
    ///
    /// # Errors
    /// `MissingFile` when the repository, the revision or the file does not exist, or is not cached
    /// while offline; `AccessDenied` when it is private or gated; `Network` when the hub cannot be
    /// reached; `DiskFull` or `Io` for the cache.
    pub fn file(&self, file: &str) -> Result<PathBuf> {
        if let Some(path) = self.cached(file) {
            return Ok(path);
        }
        if self.config.offline {
            return Err(self.error(ErrorKind::MissingFile, file, "not in the cache, and HF_HUB_OFFLINE is set").help("fetch it once with a network, or give a local folder"));
        }
        let mut attempt = 1;
        loop {
            match self.api.download_with_progress(file, Fetching::new(format!("fetch {}/{file}", self.name))) {
                Ok(path) => return Ok(path),
                Err(error) if attempt < ATTEMPTS && broke_off(&error) && !progress::stop_requested() => attempt += 1,
                Err(error) => {
                    if says_absent(&error) {
                        self.note_absent(file);
                    }
                    return Err(self.refused(file, &error));
                }
            }
        }
    }

    /// Local path of a file that lies in the cache; nothing is asked.
    pub fn cached(&self, file: &str) -> Option<PathBuf> {
        Cache::new(self.config.cache.clone()).repo(self.repo.clone()).get(file)
    }

    /// Paths of all files of the repository, sorted; while offline, of those that lie in the cache.
    ///
    /// # Errors
    /// As [`HubRepo::file`].
    pub fn list(&self) -> Result<Vec<String>> {
        let mut files = if self.config.offline {
            let snapshot = self.commit().map(|commit| self.folder().join("snapshots").join(commit)).filter(|snapshot| snapshot.is_dir());
            let snapshot = snapshot.ok_or_else(|| {
                self.error(ErrorKind::MissingFile, "list of files", "nothing of it is in the cache, and HF_HUB_OFFLINE is set").help("fetch it once with a network, or give a local folder")
            })?;
            let mut found = Vec::new();
            walk(&snapshot, "", &mut found)?;
            found
        } else {
            let info = self.api.info().map_err(|error| self.refused("list of files", &error))?;
            info.siblings.into_iter().map(|file| file.rfilename).collect()
        };
        files.sort();
        Ok(files)
    }

    /// The repository's folder in the cache.
    fn folder(&self) -> PathBuf {
        self.config.cache.join(self.repo.folder_name())
    }

    /// The commit that the revision stood for when something of it was fetched.
    fn commit(&self) -> Option<String> {
        let text = std::fs::read_to_string(self.folder().join("refs").join(self.repo.revision())).ok()?;
        Some(text.trim().to_string())
    }

    /// Where it is kept that the repository does not have a file, as Python's `huggingface_hub` keeps
    /// it; `None` before anything of this revision was fetched.
    fn absence(&self, file: &str) -> Option<PathBuf> {
        Some(self.folder().join(".no_exist").join(self.commit()?).join(file))
    }

    /// A mark that cannot be written only costs another question.
    fn note_absent(&self, file: &str) {
        if let Some(mark) = self.absence(file) {
            let _ = mark.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(mark, ""));
        }
    }

    /// As [`HubRepo::file`], `None` for a file that the repository does not have, which is asked once
    /// for each commit.
    ///
    /// # Errors
    /// As [`HubRepo::file`], without `MissingFile`.
    pub fn optional(&self, file: &str) -> Result<Option<PathBuf>> {
        if self.cached(file).is_none() && self.absence(file).is_some_and(|mark| mark.exists()) {
            return Ok(None);
        }
        match self.file(file) {
            Ok(path) => Ok(Some(path)),
            Err(error) if error.kind() == ErrorKind::MissingFile => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn error(&self, kind: ErrorKind, file: &str, text: &str) -> Error {
        Error::new(kind, format!("hub {}: {file}: {text}", self.name))
    }

    /// The hub's answer as an error: its status, and its own word for what is wrong.
    fn refused(&self, file: &str, error: &ApiError) -> Error {
        let (status, code) = match error {
            ApiError::RequestError(inner) => match &**inner {
                ureq::Error::Status(status, response) => (*status, response.header("x-error-code").unwrap_or("")),
                ureq::Error::Transport(_) => (0, ""),
            },
            ApiError::IoError(io) if !broke_off(error) => return Error::io(&self.config.cache, io),
            _ => (0, ""),
        };
        let said = match (status, code) {
            (0, _) => error.to_string(),
            (status, "") => format!("the hub answered {status}"),
            (status, code) => format!("the hub answered {status} {code}"),
        };
        let terms = format!("accept its terms at {}/{}", self.config.endpoint, self.name.split('@').next().unwrap_or(""));
        let has_token = self.config.token.is_some();
        match (status, code) {
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
    for entry in std::fs::read_dir(folder).map_err(|error| Error::io(folder, &error))? {
        let path = entry.map_err(|error| Error::io(folder, &error))?.path();
        let name = format!("{prefix}{}", path.file_name().unwrap_or_default().to_string_lossy());
        if path.is_dir() {
            walk(&path, &format!("{name}/"), into)?;
        } else {
            into.push(name);
        }
    }
    Ok(())
}

/// The hub answered that the repository does not have the file.
fn says_absent(error: &ApiError) -> bool {
    let ApiError::RequestError(inner) = error else { return false };
    matches!(&**inner, ureq::Error::Status(404, response) if response.header("x-error-code") == Some("EntryNotFound"))
}

/// The connection ended while the file came: what came is kept, the rest can be asked for.
fn broke_off(error: &ApiError) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, TimedOut, UnexpectedEof};
    matches!(error, ApiError::IoError(io) if matches!(io.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | TimedOut | UnexpectedEof))
}

/// hf-hub's progress, as events.
struct Fetching {
    name: String,
    task: Option<progress::Task>,
    done: u64,
}

impl Fetching {
    fn new(name: String) -> Self {
        Fetching { name, task: None, done: 0 }
    }
}

impl hf_hub::api::Progress for Fetching {
    /// Called twice for a file: before it is opened, and when the first byte comes.
    fn init(&mut self, size: usize, _filename: &str) {
        self.done = 0;
        if self.task.is_none() {
            self.task = Some(progress::Task::new(self.name.clone(), size as u64, "bytes"));
        }
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        if let Some(task) = &mut self.task {
            task.advance(self.done);
        }
    }

    fn finish(&mut self) {
        self.task = None;
    }
}
