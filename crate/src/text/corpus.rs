//! Corpus: documents from files, then blocks of token ids.
//!
//! Documents are tokenised, joined by the model's special token and cut into contexts of equal
//! length, so that no position is padding. Cost: one pass over the text, 4 bytes a token.

use super::documents::{self, Documents};
use super::Tokenizer;
use crate::error::{Error, ErrorKind, Result};
use crate::files::sealed::checksum;
use crate::hub::{HubConfig, HubRepo};
use crate::included;
use crate::progress;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::SeedableRng;
use std::path::Path;
use std::sync::Arc;

/// Where in a file the text lies, and how much of it is read.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TextConfig {
    /// The field of a JSONL object, or the column of a CSV or parquet file. Default `text`.
    pub field: String,
    /// Reading stops once there are so many bytes of text, after the document that reaches it; a document that goes 64 MiB
    /// beyond is cut there in a plain text file and refused in others. `None` for no limit. Default `None`.
    pub max_bytes: Option<u64>,
}

impl Default for TextConfig {
    fn default() -> Self {
        TextConfig { field: "text".to_string(), max_bytes: None }
    }
}

/// Documents of text. Cheap to clone.
#[derive(Clone)]
pub struct Corpus {
    name: String,
    documents: Arc<Vec<String>>,
}

impl Corpus {
    /// Loads text from `source`: a file or folder, or where there is none of that name `states`, the text that comes with the
    /// library for its small model ([`crate::states`]), or a dataset of the hub.
    ///
    /// Files: a text file (blank lines, two in a row, part documents), a `.jsonl` file (one object
    /// or string a line, field `text`), a `.json` file (the same, or one array of them), a `.csv` or `.tsv` file (the
    /// first row names the fields), a `.parquet` file (string column `text`), or a folder of such files in the order of
    /// their paths: as a dataset of the hub it is searched with its subfolders, and `README.md` and the like, other `.md`
    /// files and hidden ones are left out. All but parquet may be compressed: `.gz`, `.zst`. Text is UTF-8, or UTF-16 or
    /// UTF-32 (a byte order mark is no part of it), or in a plain text file Latin-1. A null or an empty field of a table is no document.
    ///
    /// Datasets: `owner/name` for all of its text, JSONL, CSV and parquet files,
    /// `owner/name/data/train` for those whose path begins so, or the path of one file; after the name
    /// `@revision` may stand (`@refs/convert/parquet` is the hub's own copy in parquet). Files are fetched
    /// one after the other until there is enough text ([`TextConfig::max_bytes`]), once, into the cache
    /// that is shared with Python.
    ///
    /// ```no_run
    /// use cltlab::text::{Corpus, TextConfig};
    /// let first_100_mb = TextConfig { max_bytes: Some(100_000_000), ..TextConfig::default() };
    /// let stories = Corpus::load("roneneldan/TinyStories/data/train", &first_100_mb)?;
    /// let code = Corpus::load("code.jsonl.zst", &TextConfig { field: "content".into(), ..TextConfig::default() })?;
    /// # Ok::<(), cltlab::Error>(())
    /// ```
    ///
    /// # Errors
    /// `MissingFile`; `BadFile` with the line or column that could not be read, for files that are no text, and for packed
    /// ones that hold more than a hundred times their length; a missing field is named with those that are there;
    /// `OutOfMemory`; `BadInput` when no text was found; those of [`Corpus::from_hub`].
    pub fn load(source: impl AsRef<Path>, config: &TextConfig) -> Result<Self> {
        let path = source.as_ref();
        if included::is_named(path) {
            return Self::from_included(config);
        }
        if let Some(dataset) = dataset(path) {
            return Self::from_dataset(dataset, config).map_err(|error| match error.kind() {
                ErrorKind::MissingFile | ErrorKind::Network | ErrorKind::BadInput => error.context(format_args!("{dataset}: no file or folder here; as a dataset of the hub")),
                _ => error,
            });
        }
        let mut documents = Documents::new(config);
        documents.read(path).map_err(|error| match path.exists() {
            true => error,
            false => error.help("give a file, a folder, or a dataset of the hub: owner/name or owner/name/path"),
        })?;
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Self::named(name, documents.texts).map_err(|error| error.context(path.display()))
    }

    /// The text that comes with the library.
    fn from_included(config: &TextConfig) -> Result<Self> {
        let mut bytes = 0;
        let enough = |text: &String| {
            let before = bytes;
            bytes += text.len() as u64;
            config.max_bytes.is_none_or(|most| before < most)
        };
        Self::named(included::STATES.to_string(), included::text()?.into_iter().take_while(enough).collect())
    }

    fn from_dataset(source: &str, config: &TextConfig) -> Result<Self> {
        let parts: Vec<&str> = source.split('/').collect();
        // refs/convert/parquet and refs/pr/1 are revisions of three parts.
        let of_name = if parts.get(1).is_some_and(|name| name.ends_with("@refs")) { 4 } else { 2 };
        if parts.len() < of_name {
            return Err(Error::expected(ErrorKind::BadInput, "dataset", format_args!("'{source}'"), "owner/name or owner/name/path, as on the hub"));
        }
        Self::from_hub(&HubRepo::dataset(&parts[..of_name].join("/"), &HubConfig::default())?, &parts[of_name..].join("/"), config)
    }

    /// A dataset of an open repository, and a path in it, which may be empty; see [`Corpus::load`].
    ///
    /// # Errors
    /// `MissingFile` when no file's path begins so; those of [`HubRepo::file`] and
    /// [`Corpus::load`].
    pub fn from_hub(repo: &HubRepo, path: &str, config: &TextConfig) -> Result<Self> {
        let place = format!("dataset {}", repo.name());
        let files = if documents::holds_text(path) { vec![path.to_string()] } else { matching(repo.list()?, path, &place)? };
        let mut documents = Documents::new(config);
        for file in &files {
            if documents.enough() {
                break;
            }
            documents.read(&repo.file(file)?).map_err(|error| error.context(&place))?;
        }
        let name = format!("{}/{path}", repo.name());
        Self::named(name.trim_end_matches('/').to_string(), documents.texts).map_err(|error| error.context(place))
    }

    /// A corpus of these documents.
    ///
    /// ```
    /// let corpus = cltlab::Corpus::from_texts(vec!["One.".to_string(), "Two.".to_string()])?;
    /// assert_eq!(corpus.documents(), 2);
    /// # Ok::<(), cltlab::Error>(())
    /// ```
    ///
    /// # Errors
    /// `BadInput` when there is no text in them.
    pub fn from_texts(texts: Vec<String>) -> Result<Self> {
        Self::named("texts".to_string(), texts)
    }

    fn named(name: String, texts: Vec<String>) -> Result<Self> {
        let documents: Vec<String> = texts.into_iter().filter(|text| !text.trim().is_empty()).collect();
        if documents.is_empty() {
            return Err(Error::new(ErrorKind::BadInput, "corpus: got no text, expected at least one document"));
        }
        Ok(Corpus { name, documents: Arc::new(documents) })
    }

    /// Splits by bytes of text into the first `fraction` (for training) and the rest (held out), in the order of the
    /// documents; a document is cut at a line end when the border falls inside it. The rest is the end of the text:
    /// where the text is sorted, by date or by subject, it is of another kind. [`Corpus::shuffled`] before that cures it.
    ///
    /// ```
    /// let texts = (0..100).map(|number| format!("Document {number}.")).collect();
    /// let (train, test) = cltlab::Corpus::from_texts(texts)?.shuffled(0).split(0.9)?;
    /// assert!(train.documents() > test.documents());
    /// # Ok::<(), cltlab::Error>(())
    /// ```
    ///
    /// # Errors
    /// `BadInput` when the fraction is not between 0 and 1 or one side would be empty.
    pub fn split(&self, fraction: f64) -> Result<(Corpus, Corpus)> {
        if !(fraction > 0.0 && fraction < 1.0) {
            return Err(Error::expected(ErrorKind::BadInput, "Corpus::split fraction", fraction, "a number between 0 and 1"));
        }
        let border = (self.bytes() as f64 * fraction) as usize;
        let (mut head, mut tail, mut seen) = (Vec::new(), Vec::new(), 0);
        for document in self.documents.iter() {
            let end = seen + document.len();
            if end <= border {
                head.push(document.clone());
            } else if seen >= border {
                tail.push(document.clone());
            } else {
                let mut cut = border - seen;
                while !document.is_char_boundary(cut) {
                    cut -= 1;
                }
                let cut = document[..cut].rfind('\n').map_or(cut, |at| at + 1);
                head.push(document[..cut].to_string());
                tail.push(document[cut..].to_string());
            }
            seen = end;
        }
        Ok((Self::named(format!("{} (first {fraction})", self.name), head)?, Self::named(format!("{} (rest)", self.name), tail)?))
    }

    /// The same documents in an order drawn by `seed`: before [`Corpus::split`], and before reading is ended by
    /// `max_tokens`, which takes the first ones. A text without blank lines is one document and stays as it is.
    pub fn shuffled(&self, seed: u64) -> Corpus {
        let mut documents = self.documents.to_vec();
        documents.shuffle(&mut StdRng::seed_from_u64(seed));
        Corpus { name: format!("{} (shuffled by {seed})", self.name), documents: Arc::new(documents) }
    }

    /// Where the text came from.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number of documents.
    pub fn documents(&self) -> usize {
        self.documents.len()
    }

    /// Bytes of UTF-8 text.
    pub fn bytes(&self) -> usize {
        self.documents.iter().map(String::len).sum()
    }

    /// The documents.
    pub fn texts(&self) -> &[String] {
        &self.documents
    }

    /// Tokenises and packs into blocks of `context` ids; each block begins with `special` when the
    /// model has such a token. Stops after `max_tokens` ids when given, those of the first documents
    /// ([`Corpus::shuffled`]), so that a short experiment does not tokenise a long corpus.
    ///
    /// # Shapes
    /// Blocks of `[blocks, context]`; the last, incomplete block is dropped.
    ///
    /// # Errors
    /// `BadInput` when the text is shorter than one block or the context shorter than 2.
    pub fn blocks(&self, tokenizer: &Tokenizer, special: Option<u32>, context: usize, max_tokens: Option<usize>) -> Result<Blocks> {
        if context < 2 {
            return Err(Error::expected(ErrorKind::BadInput, "context", context, "at least 2 tokens"));
        }
        let body = context - usize::from(special.is_some());
        let wanted = max_tokens.map_or(usize::MAX, |tokens| tokens.div_ceil(context));
        let mut task = progress::Task::new("tokenise", self.bytes() as u64, "bytes");
        let (mut ids, mut pending, mut done) = (Vec::new(), Vec::new(), 0);
        'documents: for (index, document) in self.documents.iter().enumerate() {
            for piece in pieces(document) {
                pending.extend(tokenizer.encode(piece)?);
                done += piece.len() as u64;
                task.advance(done);
                let whole = pending.len() / body;
                for chunk in pending.chunks_exact(body) {
                    ids.extend(special);
                    ids.extend_from_slice(chunk);
                }
                pending.drain(..whole * body);
                if ids.len() / context >= wanted {
                    ids.truncate(wanted * context);
                    break 'documents;
                }
            }
            if index + 1 < self.documents.len() {
                pending.extend(special);
            }
        }
        if ids.is_empty() {
            return Err(Error::expected(
                ErrorKind::BadInput,
                format_args!("corpus '{}'", self.name),
                format_args!("{} tokens", pending.len()),
                format_args!("at least one context of {body}"),
            )
            .help("give a longer text or a shorter context"));
        }
        task.finish(format!("{} tokens", ids.len()));
        Ok(Blocks { ids: Arc::new(ids), context })
    }
}

/// `source` where it names a dataset of the hub: nothing of that name lies here, and it is `owner/name` or longer. Two
/// parts of which the second is a name of a text file are a path.
fn dataset(source: &Path) -> Option<&str> {
    let text = source.to_str().filter(|text| !text.starts_with(['.', '/', '~']) && !source.exists())?;
    let parts: Vec<&str> = text.split('/').collect();
    let named = parts.len() >= 2 && parts.iter().all(|part| !part.is_empty());
    (named && !(parts.len() == 2 && documents::holds_text(text))).then_some(text)
}

/// The files of a dataset that `path` means.
fn matching(files: Vec<String>, path: &str, place: &str) -> Result<Vec<String>> {
    if files.iter().any(|file| file == path) {
        return Ok(vec![path.to_string()]);
    }
    let (wanted, others): (Vec<String>, Vec<String>) = files.into_iter().partition(|file| file.starts_with(path) && documents::holds_text(file));
    if wanted.is_empty() {
        let some: Vec<&str> = others.iter().map(String::as_str).filter(|file| documents::holds_text(file)).take(5).collect();
        let error = Error::new(ErrorKind::MissingFile, format!("{place}: no text, JSONL, CSV or parquet file whose path begins with '{path}'"));
        return Err(error.help(if some.is_empty() { "it holds none at all: try the revision refs/convert/parquet".into() } else { format!("it has {}", some.join(", ")) }));
    }
    Ok(wanted)
}

impl std::fmt::Debug for Corpus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Corpus '{}': {} documents, {:.2} MB of text", self.name, self.documents(), self.bytes() as f64 / 1e6)
    }
}

/// Token ids packed into contexts of equal length. Cheap to clone.
#[derive(Clone)]
pub struct Blocks {
    ids: Arc<Vec<u32>>,
    context: usize,
}

impl Blocks {
    /// Contexts of `context` ids each, one after the other; a rest that fills none is left out.
    ///
    /// # Errors
    /// `BadInput` for a context shorter than 2, or fewer ids than one.
    ///
    /// ```
    /// let blocks = cltlab::text::Blocks::from_ids((0..100).collect(), 16)?;
    /// assert_eq!((blocks.len(), blocks.block(1).map(|block| block[0])), (6, Some(16)));
    /// # Ok::<(), cltlab::Error>(())
    /// ```
    pub fn from_ids(mut ids: Vec<u32>, context: usize) -> Result<Self> {
        if context < 2 || ids.len() < context {
            return Err(Error::expected(ErrorKind::BadInput, "Blocks::from_ids", format_args!("{} ids, context {context}", ids.len()), "a context of at least 2, and ids for one"));
        }
        ids.truncate(ids.len() / context * context);
        Ok(Blocks { ids: Arc::new(ids), context })
    }

    /// Number of blocks.
    pub fn len(&self) -> usize {
        self.ids.len() / self.context
    }

    /// True when there is no block; [`Corpus::blocks`] never returns such a value.
    #[doc(hidden)]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Ids in a block.
    pub fn context(&self) -> usize {
        self.context
    }

    /// A checksum of all ids, 16 hexadecimal digits.
    pub(crate) fn fingerprint(&self) -> String {
        let bytes: Vec<u8> = self.ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        format!("{:016x}", checksum(&bytes))
    }

    /// The ids of one block, or `None` past the end.
    pub fn block(&self, index: usize) -> Option<&[u32]> {
        self.ids.get(index * self.context..(index + 1) * self.context)
    }
}

impl std::fmt::Debug for Blocks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Blocks [{}, {}]", self.len(), self.context)
    }
}

/// Pieces of some 64 kB that end at a line: a tokenizer's time grows faster than its text.
fn pieces(document: &str) -> impl Iterator<Item = &str> {
    let mut rest = document;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut end = rest.len().min(1 << 16);
        while !rest.is_char_boundary(end) {
            end += 1;
        }
        if end < rest.len() {
            end = rest[..end].rfind('\n').map_or(end, |at| at + 1);
        }
        let (piece, tail) = rest.split_at(end);
        rest = tail;
        Some(piece)
    })
}
