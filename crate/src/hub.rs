//! Hub: a repository's name to local files.
//!
//! Files are taken from the Hugging Face cache (`HF_HOME`) when they are there, and fetched with a
//! progress event otherwise; the token is the one that `huggingface-cli login` or `HF_TOKEN` left.

use crate::error::{Error, ErrorKind, Result};
use crate::progress;
use hf_hub::api::sync::{ApiBuilder, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use std::path::PathBuf;

/// One repository of the hub at one revision.
pub struct HubRepo {
    name: String,
    repo: Repo,
    cache: Cache,
    api: ApiRepo,
}

impl HubRepo {
    /// `owner/name` or `owner/name@revision`; nothing is fetched yet.
    ///
    /// # Errors
    /// `Network` when the client cannot be set up.
    pub fn open(source: &str) -> Result<Self> {
        let (name, revision) = source.split_once('@').unwrap_or((source, "main"));
        let repo = Repo::with_revision(name.to_string(), RepoType::Model, revision.to_string());
        let token = std::env::var("HF_TOKEN").ok().filter(|token| !token.is_empty());
        let mut builder = ApiBuilder::from_env().with_progress(false);
        if token.is_some() {
            builder = builder.with_token(token);
        }
        let api = builder.build().map_err(|error| Error::new(ErrorKind::Network, format!("hub client: {error}")))?.repo(repo.clone());
        Ok(HubRepo { name: source.to_string(), repo, cache: Cache::from_env(), api })
    }

    /// Local path of one file, from the cache or fetched.
    ///
    /// # Errors
    /// `Network` when it is neither cached nor to be had, with what the hub answered.
    pub fn file(&self, file: &str) -> Result<PathBuf> {
        if let Some(path) = self.cache.repo(self.repo.clone()).get(file) {
            return Ok(path);
        }
        if std::env::var("HF_HUB_OFFLINE").is_ok_and(|value| value == "1" || value.eq_ignore_ascii_case("true")) {
            return Err(Error::new(ErrorKind::Network, format!("hub {}: {file} is not in the cache and HF_HUB_OFFLINE is set", self.name))
                .help("fetch it once with a network, or give a local folder"));
        }
        let name = format!("fetch {}/{file}", self.name);
        self.api.download_with_progress(file, Fetching::new(name)).map_err(|error| {
            let text = error.to_string();
            let help = if text.contains("401") || text.contains("403") {
                "the repository is private or gated: accept its terms on the hub and set HF_TOKEN"
            } else if text.contains("404") {
                "check the repository's name and revision"
            } else {
                "check the network, or give a local folder or GGUF file instead of a hub name"
            };
            Error::new(ErrorKind::Network, format!("hub {}: {file}: {text}", self.name)).help(help)
        })
    }
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
    fn init(&mut self, size: usize, _filename: &str) {
        self.task = Some(progress::Task::new(self.name.clone(), size as u64, "bytes"));
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
