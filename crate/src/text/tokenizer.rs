//! Tokenizers: text to ids and back.
//!
//! Three ways in: a Hugging Face `tokenizer.json`, the vocabulary inside a GGUF file (byte-level
//! or SentencePiece BPE), and a llama2.c `tokenizer.bin` (pieces with scores). All end in one type,
//! which also turns chats into text.

use super::chat::{Chat, ChatConfig};
use super::guarded::{bounded, growth, guarded};
use super::placeholder::{refused, shown};
use super::scored::ScoredPieces;
use super::specials::{self, Beside, Specials};
use super::{gguf, gguf_header};
use crate::error::{Error, ErrorKind, Result};
use crate::files;
use candle_core::quantized::gguf_file::Content;
use std::path::Path;
use std::sync::Arc;

/// Turns text into token ids and back, and chats into text. Cheap to clone.
#[derive(Clone)]
pub struct Tokenizer {
    kind: Arc<Kind>,
    chat: Arc<Chat>,
    specials: Arc<Specials>,
}

pub(super) enum Kind {
    HuggingFace {
        tokenizer: Box<tokenizers::Tokenizer>,
        /// By how much normalising and decoding may grow a text at most.
        growth: [f64; 2],
    },
    Scored(ScoredPieces),
}

/// A Hugging Face tokenizer from its description.
pub(super) fn huggingface(description: &serde_json::Value) -> Result<Kind> {
    let bytes = serde_json::to_vec(description).map_err(|error| Error::wrap(ErrorKind::BadFile, "tokenizer", error))?;
    from_bytes(&bytes)
}

/// A tokenizer without the truncation and padding that its file may have saved: they belong to a training script.
fn from_bytes(bytes: &[u8]) -> Result<Kind> {
    let bad = |error: tokenizers::Error| Error::new(ErrorKind::BadFile, format!("tokenizer: {}", shown(&error))).caused_by(error);
    /// The steps that replace text.
    #[derive(serde::Deserialize)]
    struct Steps {
        normalizer: Option<serde_json::Value>,
        decoder: Option<serde_json::Value>,
    }
    let steps: Steps = serde_json::from_slice(bytes).map_err(|error| bad(error.into()))?;
    let mut tokenizer = guarded(ErrorKind::BadFile, || tokenizers::Tokenizer::from_bytes(bytes).map_err(bad))?;
    tokenizer.with_truncation(None).map_err(bad)?;
    tokenizer.with_padding(None);
    Ok(Kind::HuggingFace { tokenizer: Box::new(tokenizer), growth: [growth(steps.normalizer.as_ref()), growth(steps.decoder.as_ref())] })
}

impl Tokenizer {
    pub(super) fn new(kind: Kind, chat: Chat, specials: Specials) -> Self {
        Tokenizer { kind: Arc::new(kind), chat: Arc::new(chat), specials: Arc::new(specials) }
    }

    /// Reads a Hugging Face `tokenizer.json`, and chat templates and special tokens from the files
    /// beside it: `tokenizer_config.json`, `special_tokens_map.json`, `chat_template.jinja`. A truncation
    /// or padding that was saved in it is left out.
    ///
    /// # Errors
    /// `MissingFile`, or `BadFile` when the content is not a tokenizer.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = files::read(path)?;
        if let Some(error) = refused(path, &bytes) {
            return Err(error);
        }
        let bytes = files::decode::bytes(path, bytes)?;
        let kind = from_bytes(&bytes).map_err(|error| error.context(path.display()))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let beside = Beside::read(folder)?;
        Ok(Self::with(kind, &beside, Chat::beside(folder)?).map_err(|error| error.context(folder.display()))?.at(path))
    }

    /// A tokenizer that is in memory: what its `tokenizer.json` and its `tokenizer_config.json` would hold.
    pub(crate) fn from_memory(description: &[u8], config: serde_json::Value) -> Result<Self> {
        Self::with(from_bytes(description)?, &Beside::of(config), Chat::default())
    }

    fn with(mut kind: Kind, beside: &Beside, chat: Chat) -> Result<Self> {
        let specials = match &mut kind {
            Kind::HuggingFace { tokenizer, .. } => beside.apply(tokenizer)?,
            Kind::Scored(_) => Specials::default(),
        };
        Ok(Self::new(kind, chat, specials))
    }

    /// Reads the tokenizer and chat templates in a GGUF file's metadata; the weights are not read.
    /// Byte-level BPE with the pre-tokenizers of llama.cpp's names, and SentencePiece BPE.
    ///
    /// Agrees with llama.cpp on SmolLM2's reference prompts, with SentencePiece and Hugging Face
    /// tokenizers on the fixtures.
    ///
    /// # Errors
    /// `MissingFile`, `BadFile`; `Unsupported` for another kind of tokenizer or pre-tokenizer, with
    /// the names of those that are known.
    pub fn from_gguf(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (content, _) = gguf_header::read(path)?;
        Self::from_gguf_header(&content).map(|tokenizer| tokenizer.at(path)).map_err(|error| error.context(path.display()))
    }

    /// The same tokenizer, whose errors name this file.
    pub(crate) fn at(self, path: &Path) -> Self {
        let specials = Specials { place: path.display().to_string(), ..Specials::clone(&self.specials) };
        Tokenizer { specials: Arc::new(specials), ..self }
    }

    /// The file it is from, for errors.
    pub(crate) fn place(&self) -> &str {
        if self.specials.place.is_empty() { "tokenizer" } else { &self.specials.place }
    }

    fn named<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| if self.specials.place.is_empty() { error } else { error.context(&self.specials.place) })
    }

    /// As [`Tokenizer::from_gguf`], from a header that was read.
    pub(crate) fn from_gguf_header(content: &Content) -> Result<Self> {
        gguf::tokenizer(content)
    }

    /// Reads the pieces and scores of a llama2.c `tokenizer.bin` with `vocab` entries.
    ///
    /// # Errors
    /// `MissingFile`, or `BadFile` when the file ends early or is not UTF-8.
    pub(crate) fn from_llama2c(path: impl AsRef<Path>, vocab: usize) -> Result<Self> {
        let path = path.as_ref();
        let pieces = ScoredPieces::parse(&files::read(path)?, vocab).map_err(|error| error.context(path.display()))?;
        let all = pieces.marks();
        Ok(Self::new(Kind::Scored(pieces), Chat::default(), Specials { front: Some(1), all, ..Specials::default() }).at(path))
    }

    /// The same tokenizer with this chat template (Jinja) as its default.
    #[must_use]
    pub fn chat_template(&self, template: &str) -> Self {
        let mut chat = Chat::clone(&self.chat);
        chat.set_default(template);
        Tokenizer { chat: Arc::new(chat), ..self.clone() }
    }

    /// This tokenizer with the chat templates and special tokens of a GGUF header, if it has none
    /// itself. The header's own tokenizer may be of a kind that is not known.
    ///
    /// # Errors
    /// `BadFile` for a vocabulary that is no list of texts.
    pub(crate) fn or_chat_of(mut self, content: &Content) -> Result<Self> {
        if self.specials.front.is_none() {
            self.specials = Arc::new(Specials { front: gguf::specials(content)?.front, ..Specials::clone(&self.specials) });
        }
        if self.chat.is_empty() {
            return Ok(Tokenizer { chat: Arc::new(gguf::chat(content)?), ..self });
        }
        Ok(self)
    }

    /// Names of the chat templates; empty when there are none.
    #[doc(hidden)]
    pub fn chat_templates(&self) -> Vec<String> {
        self.chat.names()
    }

    /// The text of a chat, messages of role and content, by a chat template, the default one unless `config` names
    /// another; it ends where the model's answer begins if `config` asks for that. Encode it as it is: the template
    /// writes the special tokens.
    ///
    /// ```no_run
    /// use cltlab::text::{ChatConfig, Tokenizer};
    /// let tokenizer = Tokenizer::from_gguf("SmolLM2-135M-Instruct.Q4_1.gguf")?;
    /// let text = tokenizer.chat(&[("user", "What is the capital of France?")], &ChatConfig::default())?;
    /// # Ok::<(), cltlab::Error>(())
    /// ```
    ///
    /// Source: equal to transformers' `apply_chat_template` on templates in the manner of ChatML,
    /// Llama 3 and Gemma.
    ///
    /// # Errors
    /// `MissingFile` when there is no template, `BadFile` when it is not one, `BadConfig` for a name that is not there,
    /// `BadInput` when the template refuses the messages, with its words.
    pub fn chat(&self, messages: &[(&str, &str)], config: &ChatConfig) -> Result<String> {
        self.chat.render(messages, config)
    }

    /// Ids of `text`, without any special token added.
    ///
    /// # Errors
    /// `BadInput` when the tokenizer refuses the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.named(self.plain(text))
    }

    fn plain(&self, text: &str) -> Result<Vec<u32>> {
        match &*self.kind {
            Kind::HuggingFace { tokenizer, growth } => {
                bounded(growth[0], text.len())?;
                let wrong = |error: tokenizers::Error| Error::new(ErrorKind::BadInput, format!("tokenizer: {}", shown(&error))).caused_by(error);
                guarded(ErrorKind::BadInput, || tokenizer.encode_fast(text, false).map(|encoding| encoding.get_ids().to_vec()).map_err(wrong))
            }
            Kind::Scored(pieces) => Ok(pieces.encode(text)),
        }
    }

    /// Ids of `text` with the special tokens that the tokenizer's files put around it, as transformers'
    /// AutoTokenizer gives them; none for a text without tokens.
    ///
    /// # Errors
    /// `BadInput` when the tokenizer refuses the text.
    #[doc(hidden)]
    pub fn encode_published(&self, text: &str) -> Result<Vec<u32>> {
        if let Kind::HuggingFace { growth, .. } = &*self.kind {
            self.named(bounded(growth[0], text.len()))?;
        }
        self.named(specials::encode(&self.kind, &self.specials, text))
    }

    /// The special token that stands in front where one is wanted: that of the beginning of text, else
    /// padding's, else that of the end, where the tokenizer's files name one.
    pub(crate) fn front(&self) -> Option<u32> {
        self.specials.front
    }

    /// Whether `id` is a special token.
    pub(crate) fn is_special(&self, id: u32) -> bool {
        self.specials.all.contains(&id)
    }

    /// Text of `ids`, special tokens included.
    ///
    /// # Errors
    /// `BadInput` for an id outside the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.named(self.written(ids))
    }

    fn written(&self, ids: &[u32]) -> Result<String> {
        match &*self.kind {
            Kind::HuggingFace { tokenizer, growth } => {
                // A token has some 16 bytes at most on average.
                bounded(growth[1], ids.len().saturating_mul(16))?;
                guarded(ErrorKind::BadInput, || tokenizer.decode(ids, false).map_err(|error| Error::new(ErrorKind::BadInput, format!("tokenizer: {}", shown(&error))).caused_by(error)))
            }
            Kind::Scored(pieces) => pieces.decode(ids),
        }
    }

    /// One token as text for people; `⟨id⟩` when it has none.
    pub fn token_text(&self, id: u32) -> String {
        let text = match &*self.kind {
            Kind::HuggingFace { .. } => self.decode(&[id]).ok(),
            Kind::Scored(pieces) => pieces.piece(id).map(|bytes| String::from_utf8_lossy(bytes).into_owned()),
        };
        text.filter(|text| !text.is_empty()).unwrap_or_else(|| format!("⟨{id}⟩"))
    }

    /// Id of a token given by its exact text, such as `<|endoftext|>`.
    pub fn id(&self, token: &str) -> Option<u32> {
        match &*self.kind {
            Kind::HuggingFace { tokenizer, .. } => tokenizer.token_to_id(token),
            Kind::Scored(pieces) => pieces.id(token),
        }
    }

    /// Entries in the vocabulary.
    pub fn vocab(&self) -> usize {
        match &*self.kind {
            Kind::HuggingFace { tokenizer, .. } => tokenizer.get_vocab_size(true),
            Kind::Scored(pieces) => pieces.len(),
        }
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer with {} entries", self.vocab())
    }
}
