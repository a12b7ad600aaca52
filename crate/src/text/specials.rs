//! Which special tokens a tokenizer has, and which it puts around a text, as transformers' AutoTokenizer does.
//!
//! `tokenizer_config.json` decides: with `add_bos_token` or `add_eos_token` there, exactly these are put around
//! (transformers 5, `TokenizersBackend`), else what `tokenizer.json`'s `post_processor` says. Its `add_prefix_space`
//! goes before that of a byte-level pre-tokenizer.

use super::guarded::guarded;
use super::placeholder::{refused, shown};
use super::tokenizer::Kind;
use crate::error::{Error, ErrorKind, Result};
use crate::files;
use serde_json::{json, Value};
use std::path::Path;
use tokenizers::{PostProcessorWrapper, PreTokenizerWrapper};

/// Special tokens by their part, and all of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Specials {
    /// The token that stands in front where one is wanted: the beginning of text, else padding, else the end.
    pub front: Option<u32>,
    /// All ids that are special.
    pub all: Vec<u32>,
    /// Put before every text, by a GGUF header.
    pub before: Option<u32>,
    /// Put after every text, by a GGUF header.
    pub after: Option<u32>,
    /// The file that the tokenizer is from.
    pub place: String,
}

/// What lies beside a `tokenizer.json`.
pub(super) struct Beside {
    /// `special_tokens_map.json`, then `tokenizer_config.json`, which goes before it.
    files: Vec<Value>,
}

/// Names of the special tokens that a tokenizer may have.
const NAMES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"];

impl Beside {
    /// Of a `tokenizer_config.json` that is in memory.
    pub(super) fn of(config: Value) -> Self {
        Beside { files: vec![config] }
    }

    pub(super) fn read(folder: &Path) -> Result<Self> {
        let mut found = Vec::new();
        for name in ["special_tokens_map.json", "tokenizer_config.json"] {
            let path = folder.join(name);
            if path.exists() {
                let bytes = files::read(&path)?;
                if let Some(error) = refused(&path, &bytes) {
                    return Err(error);
                }
                let json: Value = files::read_json_object(&path)?;
                for name in NAMES {
                    let known = |value: &Value| value.is_null() || text(value).is_some();
                    if let Some(value) = json.get(name).filter(|value| !known(value)) {
                        return Err(Error::expected(ErrorKind::BadFile, format_args!("{}: {name}", path.display()), shown(value), "a token's text, or an object with it in content"));
                    }
                }
                found.push(json);
            }
        }
        Ok(Beside { files: found })
    }

    /// A field of the last file that has it and not null.
    fn get(&self, field: &str) -> Option<&Value> {
        self.files.iter().rev().find_map(|file| file.get(field).filter(|value| !value.is_null()))
    }

    fn flag(&self, field: &str) -> Result<Option<bool>> {
        let wrong = |value: &Value| Error::expected(ErrorKind::BadFile, format_args!("tokenizer_config.json: {field}"), shown(value), "true or false");
        self.get(field).map(|value| value.as_bool().ok_or_else(|| wrong(value))).transpose()
    }

    /// The text of a special token: a string, or an object with it in `content`.
    fn token(&self, name: &str) -> Option<&str> {
        text(self.get(name)?)
    }

    /// Puts into the tokenizer what the files beside it say, and finds its special tokens.
    pub(super) fn apply(&self, tokenizer: &mut tokenizers::Tokenizer) -> Result<Specials> {
        self.prefix_space(tokenizer)?;
        let id = |name: &str| self.token(name).and_then(|text| tokenizer.token_to_id(text));
        let [bos, pad, eos] = ["bos_token", "pad_token", "eos_token"].map(id);
        let mut all: Vec<u32> = NAMES.iter().filter_map(|name| id(name)).collect();
        for list in ["additional_special_tokens", "extra_special_tokens"].iter().filter_map(|field| self.get(field)?.as_array()) {
            all.extend(list.iter().filter_map(|token| tokenizer.token_to_id(text(token)?)));
        }
        if all.is_empty() {
            let added = tokenizer.get_added_tokens_decoder();
            all.extend(added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id));
        }
        let (add_bos, add_eos) = (self.flag("add_bos_token")?, self.flag("add_eos_token")?);
        if add_bos.is_some() || add_eos.is_some() {
            let part = |wanted: Option<bool>, name: &str, id: Option<u32>| Some((self.token(name).filter(|_| wanted == Some(true))?, id?));
            around(tokenizer, part(add_bos, "bos_token", bos), part(add_eos, "eos_token", eos))?;
        }
        Ok(Specials { front: bos.or(pad).or(eos), all, ..Specials::default() })
    }

    fn prefix_space(&self, tokenizer: &mut tokenizers::Tokenizer) -> Result<()> {
        let class = self.get("tokenizer_class").and_then(Value::as_str).unwrap_or("");
        // GPT-2's class says false where the file says nothing.
        let usual = class.starts_with("GPT2Tokenizer").then_some(false);
        let Some(wanted) = self.flag("add_prefix_space")?.or(usual) else { return Ok(()) };
        if let Some(PreTokenizerWrapper::ByteLevel(found)) = tokenizer.get_pre_tokenizer() {
            let mut changed = *found;
            changed.add_prefix_space = wanted;
            tokenizer.with_pre_tokenizer(Some(changed));
        }
        Ok(())
    }
}

fn text(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

/// Makes the tokenizer put exactly these tokens around a text.
fn around(tokenizer: &mut tokenizers::Tokenizer, before: Option<(&str, u32)>, after: Option<(&str, u32)>) -> Result<()> {
    let piece = |token: &(&str, u32)| json!({"SpecialToken": {"id": token.0, "type_id": 0}});
    let own = json!({"Sequence": {"id": "A", "type_id": 0}});
    let single: Vec<Value> = before.iter().map(piece).chain([own.clone()]).chain(after.iter().map(piece)).collect();
    let tokens: serde_json::Map<String, Value> =
        before.iter().chain(&after).map(|(text, id)| (text.to_string(), json!({"id": text, "ids": [id], "tokens": [text]}))).collect();
    let pair = json!([own, {"Sequence": {"id": "B", "type_id": 1}}]);
    let template = json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens});
    let wrong = |error: serde_json::Error| Error::wrap(ErrorKind::BadFile, "tokenizer_config.json: special tokens", error);
    let processor: PostProcessorWrapper = serde_json::from_value(template).map_err(wrong)?;
    tokenizer.with_post_processor(Some(processor));
    Ok(())
}

/// Ids of `text` with the special tokens that belong around it, each once: a text that begins with the same
/// token gets no second one. Nothing for a text without tokens.
pub(super) fn encode(kind: &Kind, specials: &Specials, text: &str) -> Result<Vec<u32>> {
    let mut ids = match kind {
        Kind::HuggingFace { tokenizer, .. } => {
            let encoding = guarded(ErrorKind::BadInput, || {
                tokenizer.encode_fast(text, true).map_err(|error| Error::new(ErrorKind::BadInput, format!("tokenizer: {}", shown(&error))).caused_by(error))
            })?;
            let (ids, mask) = (encoding.get_ids(), encoding.get_special_tokens_mask());
            if mask.iter().all(|added| *added == 1) {
                return Ok(Vec::new());
            }
            let twice = matches!((ids, mask), ([first, second, ..], [1, 0, ..]) if first == second);
            ids[usize::from(twice)..].to_vec()
        }
        Kind::Scored(pieces) => pieces.encode(text),
    };
    if ids.is_empty() {
        return Ok(ids);
    }
    if let Some(before) = specials.before.filter(|before| ids.first() != Some(before)) {
        ids.insert(0, before);
    }
    ids.extend(specials.after.filter(|after| ids.last() != Some(after)));
    Ok(ids)
}
