//! Tokenizers: text to ids and back.
//!
//! Three ways in: a Hugging Face `tokenizer.json`, the vocabulary inside a GGUF file (byte-level
//! BPE), and a llama2.c `tokenizer.bin` (pieces with scores). All end in one type.

use super::scored::ScoredPieces;
use crate::error::{Error, ErrorKind, Result};
use crate::files;
use serde_json::json;
use std::path::Path;
use std::sync::Arc;

/// Turns text into token ids and back. Cheap to clone.
#[derive(Clone)]
pub struct Tokenizer(Arc<Kind>);

enum Kind {
    HuggingFace(Box<tokenizers::Tokenizer>),
    Scored(ScoredPieces),
}

/// The vocabulary of a GGUF file, as its metadata gives it.
pub(crate) struct GgufVocabulary {
    pub model: String,
    pub pre: String,
    pub tokens: Vec<String>,
    pub merges: Vec<String>,
    /// llama.cpp's token types; 3 is a control token, 4 user-defined.
    pub types: Vec<u32>,
}

impl Tokenizer {
    /// Reads a Hugging Face `tokenizer.json`.
    ///
    /// # Errors
    /// `MissingFile`, or `BadFile` when the content is not a tokenizer.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::from_bytes(&files::read(path)?).map_err(|error| error.context(path.display()))
    }

    /// Reads the pieces and scores of a llama2.c `tokenizer.bin` with `vocab` entries.
    ///
    /// # Errors
    /// `MissingFile`, or `BadFile` when the file ends early or is not UTF-8.
    pub fn from_llama2c(path: impl AsRef<Path>, vocab: usize) -> Result<Self> {
        let path = path.as_ref();
        let pieces = ScoredPieces::parse(&files::read(path)?, vocab).map_err(|error| error.context(path.display()))?;
        Ok(Tokenizer(Arc::new(Kind::Scored(pieces))))
    }

    /// Builds the tokenizer that a GGUF file describes. Byte-level BPE (`tokenizer.ggml.model` =
    /// `gpt2`) with the pre-tokenizers `smollm`, `gpt-2` and `default`; checked against llama.cpp's
    /// ids for SmolLM2 through the reference prompts.
    pub(crate) fn from_gguf(vocabulary: &GgufVocabulary) -> Result<Self> {
        if vocabulary.model != "gpt2" {
            return Err(Error::expected(ErrorKind::Unsupported, "GGUF field tokenizer.ggml.model", &vocabulary.model, "gpt2")
                .help("put the model's tokenizer.json beside the GGUF file"));
        }
        let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let pre_tokenizer = match vocabulary.pre.as_str() {
            "smollm" => json!({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true}, byte_level]}),
            "gpt-2" | "default" | "" => byte_level,
            other => {
                return Err(Error::expected(ErrorKind::Unsupported, "GGUF field tokenizer.ggml.pre", other, "smollm, gpt-2 or default")
                    .help("put the model's tokenizer.json beside the GGUF file"));
            }
        };
        let vocab: serde_json::Map<String, serde_json::Value> =
            vocabulary.tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
        let added: Vec<_> = vocabulary
            .types
            .iter()
            .enumerate()
            .filter(|(_, kind)| matches!(kind, 3 | 4))
            .filter_map(|(id, kind)| vocabulary.tokens.get(id).map(|token| (id, token, *kind == 3)))
            .map(|(id, token, special)| {
                json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": special})
            })
            .collect();
        let merges: Vec<_> = vocabulary.merges.iter().filter_map(|line| line.split_once(' ')).map(|(a, b)| json!([a, b])).collect();
        let description = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": null, "pre_tokenizer": pre_tokenizer, "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                "vocab": vocab, "merges": merges},
        });
        let bytes = serde_json::to_vec(&description).map_err(|error| Error::new(ErrorKind::BadFile, error.to_string()))?;
        Self::from_bytes(&bytes)
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let tokenizer = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|error| Error::new(ErrorKind::BadFile, format!("tokenizer: {error}")))?;
        Ok(Tokenizer(Arc::new(Kind::HuggingFace(Box::new(tokenizer)))))
    }

    /// Ids of `text`, without any special token added.
    ///
    /// # Errors
    /// `BadInput` when the tokenizer refuses the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match &*self.0 {
            Kind::HuggingFace(tokenizer) => tokenizer
                .encode_fast(text, false)
                .map(|encoding| encoding.get_ids().to_vec())
                .map_err(|error| Error::new(ErrorKind::BadInput, format!("tokenizer: {error}"))),
            Kind::Scored(pieces) => Ok(pieces.encode(text)),
        }
    }

    /// Text of `ids`, special tokens included.
    ///
    /// # Errors
    /// `BadInput` for an id outside the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        match &*self.0 {
            Kind::HuggingFace(tokenizer) => tokenizer
                .decode(ids, false)
                .map_err(|error| Error::new(ErrorKind::BadInput, format!("tokenizer: {error}"))),
            Kind::Scored(pieces) => pieces.decode(ids),
        }
    }

    /// One token as text for people; `⟨id⟩` when it has none.
    pub fn token_text(&self, id: u32) -> String {
        let text = match &*self.0 {
            Kind::HuggingFace(_) => self.decode(&[id]).ok(),
            Kind::Scored(pieces) => pieces.piece(id).map(|bytes| String::from_utf8_lossy(bytes).into_owned()),
        };
        text.filter(|text| !text.is_empty()).unwrap_or_else(|| format!("⟨{id}⟩"))
    }

    /// Id of a token given by its exact text, such as `<|endoftext|>`.
    pub fn id(&self, token: &str) -> Option<u32> {
        match &*self.0 {
            Kind::HuggingFace(tokenizer) => tokenizer.token_to_id(token),
            Kind::Scored(pieces) => pieces.id(token.as_bytes()),
        }
    }

    /// Entries in the vocabulary.
    pub fn vocab(&self) -> usize {
        match &*self.0 {
            Kind::HuggingFace(tokenizer) => tokenizer.get_vocab_size(true),
            Kind::Scored(pieces) => pieces.len(),
        }
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer with {} entries", self.vocab())
    }
}
