//! The tokenizer inside a GGUF file's metadata.
//!
//! Two kinds. `tokenizer.ggml.model` = `gpt2` is byte-level BPE with merges, whose text is first cut
//! by the patterns that `tokenizer.ggml.pre` names (the field's list of names; the patterns are those
//! of the models' own `tokenizer.json`). `llama` is SentencePiece BPE: pieces with scores.

use super::chat::Chat;
use super::placeholder::shown;
use super::scored::{Piece, Role, ScoredPieces};
use super::specials::Specials;
use super::tokenizer::{huggingface, Kind, Tokenizer};
use crate::error::{Error, ErrorKind, Result};
use candle_core::quantized::gguf_file::{Content, Value};
use serde_json::json;

/// How text is cut before merging: patterns applied one after the other, and whether a piece that
/// is a token as it stands is taken whole.
struct PreTokenizer {
    names: &'static [&'static str],
    patterns: &'static [&'static str],
    whole: bool,
    /// Unicode's composed form first.
    composed: bool,
}

const WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const THREE_DIGITS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const ONE_DIGIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const MARKS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const CASES: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const CASES_ONLY: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const PRE_TOKENIZERS: &[PreTokenizer] = &[
    PreTokenizer { names: &["default", ""], patterns: &[r"[\p{P}\$\+<=>\^~\|]+", WORDS, r"\p{N}+", "[0-9][0-9][0-9]"], whole: false, composed: false },
    PreTokenizer { names: &["falcon"], patterns: &[r"[\p{P}\$\+<=>\^~\|`]+", WORDS, "[0-9][0-9][0-9]"], whole: false, composed: false },
    PreTokenizer { names: &["gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4", "gigachat", "a.x-4.0", "mellum"], patterns: &[WORDS], whole: false, composed: false },
    PreTokenizer { names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"], patterns: &[r"\p{N}", WORDS], whole: false, composed: false },
    PreTokenizer { names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"], patterns: &[THREE_DIGITS], whole: true, composed: false },
    PreTokenizer { names: &["dbrx", "smaug-bpe", "glm4", "chatglm-bpe"], patterns: &[THREE_DIGITS], whole: false, composed: false },
    PreTokenizer { names: &["qwen2", "deepseek-r1-qwen", "megrez"], patterns: &[ONE_DIGIT], whole: false, composed: true },
    PreTokenizer { names: &["stablelm2", "hunyuan", "solar-open", "grok-2"], patterns: &[ONE_DIGIT], whole: false, composed: false },
    PreTokenizer { names: &["qwen35"], patterns: &[MARKS], whole: false, composed: true },
    PreTokenizer { names: &["gpt-4o", "llama4"], patterns: &[CASES], whole: false, composed: false },
    PreTokenizer { names: &["tekken"], patterns: &[CASES_ONLY], whole: true, composed: false },
];

const BESIDE: &str = "put the model's tokenizer.json beside the GGUF file";

/// Builds the tokenizer that a GGUF header describes, with its chat templates.
///
/// # Errors
/// `Unsupported` for a kind or pre-tokenizer that is not known, with those that are; `BadFile` for
/// lists that are missing or do not fit each other.
pub(super) fn tokenizer(content: &Content) -> Result<Tokenizer> {
    let fields = Fields(content);
    let tokens = fields.strings("tokens")?;
    if tokens.is_empty() {
        return Err(Error::expected(ErrorKind::BadFile, "GGUF field tokenizer.ggml.tokens", "nothing", "the vocabulary").help(BESIDE));
    }
    let types = fields.types(tokens.len())?;
    let chat = fields.chat(&tokens);
    let kind = match fields.text("model") {
        "gpt2" => byte_level(&fields, &tokens, &types)?,
        "llama" => Kind::Scored(scored(&fields, &tokens, &types)?),
        other => {
            return Err(Error::expected(ErrorKind::Unsupported, "GGUF field tokenizer.ggml.model", format_args!("'{}'", shown(other)), "gpt2 or llama").help(BESIDE));
        }
    };
    let specials = fields.specials(&types);
    Ok(Tokenizer::new(kind, chat, specials))
}

/// The chat templates and special tokens alone.
///
/// # Errors
/// `BadFile` for a vocabulary that is no list of texts.
pub(super) fn chat(content: &Content) -> Result<Chat> {
    let fields = Fields(content);
    Ok(fields.chat(&fields.strings("tokens")?))
}

/// The special tokens alone.
///
/// # Errors
/// `BadFile` for a vocabulary that is no list of texts.
pub(super) fn specials(content: &Content) -> Result<Specials> {
    let fields = Fields(content);
    let tokens = fields.strings("tokens")?.len();
    Ok(fields.specials(&fields.types(tokens)?))
}

fn byte_level(fields: &Fields<'_>, tokens: &[String], types: &[i64]) -> Result<Kind> {
    let pre = fields.text("pre");
    let Some(known) = PRE_TOKENIZERS.iter().find(|known| known.names.contains(&pre)) else {
        let names: Vec<_> = PRE_TOKENIZERS.iter().flat_map(|known| known.names).filter(|name| !name.is_empty()).copied().collect();
        return Err(Error::expected(ErrorKind::Unsupported, "GGUF field tokenizer.ggml.pre", format_args!("'{}'", shown(pre)), format_args!("one of {}", names.join(", "))).help(BESIDE));
    };
    let mut steps: Vec<_> =
        known.patterns.iter().map(|pattern| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})).collect();
    steps.push(json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}));
    let mut seen = std::collections::HashMap::new();
    if let Some((id, token, first)) = tokens.iter().enumerate().find_map(|(id, token)| Some((id, token, seen.insert(token.as_str(), id)?))) {
        let got = format!("'{}' twice, as {first} and {id}", shown(token));
        return Err(Error::expected(ErrorKind::BadFile, "GGUF field tokenizer.ggml.tokens", got, "each token once").help(BESIDE));
    }
    let vocab: serde_json::Map<String, serde_json::Value> = tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let added: Vec<_> = roles(types)
        .enumerate()
        .filter(|(_, role)| matches!(role, Role::Control | Role::UserDefined))
        .map(|(id, role)| {
            let special = role == Role::Control;
            json!({"id": id, "content": tokens[id], "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": special})
        })
        .collect();
    let merges = fields.strings("merges")?;
    if merges.is_empty() {
        return Err(Error::expected(ErrorKind::BadFile, "GGUF field tokenizer.ggml.merges", "nothing", "the merges of a gpt2 tokenizer").help(BESIDE));
    }
    let pairs = merges.iter().map(|line| {
        let (left, right) = line.split_once(' ').ok_or_else(|| {
            Error::expected(ErrorKind::BadFile, "GGUF field tokenizer.ggml.merges", format_args!("'{}'", shown(line)), "two pieces with a space between")
        })?;
        Ok(json!([left, right]))
    });
    let pairs = pairs.collect::<Result<Vec<_>>>()?;
    huggingface(&json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": known.composed.then(|| json!({"type": "NFC"})),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}, "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": known.whole,
            "vocab": vocab, "merges": pairs},
    }))
}

fn scored(fields: &Fields<'_>, tokens: &[String], types: &[i64]) -> Result<ScoredPieces> {
    let scores = fields.list("scores");
    if scores.len() != tokens.len() {
        return Err(Error::expected(ErrorKind::BadFile, "GGUF field tokenizer.ggml.scores", format_args!("{} numbers", scores.len()), tokens.len()).help(BESIDE));
    }
    let pieces = tokens.iter().zip(scores).zip(roles(types)).map(|((token, score), role)| {
        let score = score.to_f32().map_err(|error| Error::wrap(ErrorKind::BadFile, "GGUF field tokenizer.ggml.scores", error))?;
        if !score.is_finite() {
            return Err(Error::expected(ErrorKind::BadFile, format_args!("GGUF field tokenizer.ggml.scores: of '{}'", shown(token)), score, "a finite number").help(BESIDE));
        }
        if role == Role::Byte && Piece::byte(token).is_none() {
            return Err(Error::expected(ErrorKind::BadFile, "GGUF field tokenizer.ggml.tokens: a token of type 6, a byte", format_args!("'{}'", shown(token)), "a name like <0x0A>").help(BESIDE));
        }
        Ok(Piece::new(token, score, role))
    });
    let unknown = fields.id("unknown_token_id").unwrap_or(0);
    ScoredPieces::new(pieces.collect::<Result<_>>()?, fields.flag("add_space_prefix").unwrap_or(true), unknown)
}

/// Whether llama.cpp puts the beginning of text before a prompt: as the file says, else by the kind of tokenizer.
pub(crate) fn adds_bos(content: &Content) -> bool {
    let fields = Fields(content);
    let usual = match fields.text("model") {
        "llama" => true,
        "gpt2" => ["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken"].contains(&fields.text("pre")),
        _ => false,
    };
    fields.flag("add_bos_token").unwrap_or(usual)
}

/// llama.cpp's token types.
fn roles(types: &[i64]) -> impl Iterator<Item = Role> + '_ {
    types.iter().map(|kind| match kind {
        2 => Role::Unknown,
        3 => Role::Control,
        4 => Role::UserDefined,
        5 => Role::Unused,
        6 => Role::Byte,
        _ => Role::Normal,
    })
}

/// The metadata below `tokenizer.`.
struct Fields<'a>(&'a Content);

impl<'a> Fields<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.metadata.get(&format!("tokenizer.ggml.{key}"))
    }

    fn text(&self, key: &str) -> &'a str {
        self.get(key).and_then(|value| value.to_string().ok()).map_or("", String::as_str)
    }

    fn flag(&self, key: &str) -> Option<bool> {
        self.get(key)?.to_bool().ok()
    }

    fn id(&self, key: &str) -> Option<u32> {
        self.get(key)?.to_u64().ok()?.try_into().ok()
    }

    fn list(&self, key: &str) -> &'a [Value] {
        self.get(key).and_then(|value| value.to_vec().ok()).map_or(&[], Vec::as_slice)
    }

    fn strings(&self, key: &str) -> Result<Vec<String>> {
        let texts = self.list(key).iter().map(|value| value.to_string().cloned());
        texts.collect::<Result<_, _>>().map_err(|error| Error::wrap(ErrorKind::BadFile, format_args!("GGUF field tokenizer.ggml.{key}"), error))
    }

    /// A type for each token; a file without types has normal ones only.
    fn types(&self, tokens: usize) -> Result<Vec<i64>> {
        let types: Vec<i64> = self.list("token_type").iter().map(|value| value.to_i32().map_or_else(|_| value.to_u64().map_or(1, |kind| kind as i64), i64::from)).collect();
        match types.len() {
            0 => Ok(vec![1; tokens]),
            length if length == tokens => Ok(types),
            length => Err(Error::expected(ErrorKind::BadFile, "GGUF field tokenizer.ggml.token_type", format_args!("{length} types"), tokens).help(BESIDE)),
        }
    }

    /// The special tokens, and which llama.cpp puts around a text.
    fn specials(&self, types: &[i64]) -> Specials {
        let id = |key: &str| self.id(key).filter(|id| (*id as usize) < types.len());
        let (bos, pad, eos) = (id("bos_token_id"), id("padding_token_id"), id("eos_token_id"));
        let control = roles(types).zip(0..).filter(|(role, _)| *role == Role::Control).map(|(_, id)| id);
        Specials {
            front: bos.or(pad).or(eos),
            all: control.chain([bos, pad, eos].into_iter().flatten()).collect(),
            before: bos.filter(|_| adds_bos(self.0)),
            after: eos.filter(|_| self.flag("add_eos_token") == Some(true)),
            place: String::new(),
        }
    }

    fn chat(&self, tokens: &[String]) -> Chat {
        let mut chat = Chat::default();
        for (key, value) in &self.0.metadata {
            let name = key.strip_prefix("tokenizer.chat_template").map(|rest| rest.strip_prefix('.').unwrap_or("default"));
            if let (Some(name), Ok(template)) = (name, value.to_string()) {
                chat.insert(name, template.clone());
            }
        }
        for (key, name) in [("bos", "bos_token"), ("eos", "eos_token"), ("unknown", "unk_token"), ("padding", "pad_token")] {
            if let Some(text) = self.id(&format!("{key}_token_id")).and_then(|id| tokens.get(id as usize)) {
                chat.set_token(name, text.clone());
            }
        }
        chat
    }
}
