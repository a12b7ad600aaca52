//! Prompts to token ids: the one place that decides which text gets special tokens.

use super::Model;
use crate::error::{Error, ErrorKind, Result};
use crate::text::{Prompt, Token};

/// What stands in front of a text's ids.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Front {
    /// The special tokens that the tokenizer's files put around a text.
    AsPublished,
    /// The same, and a special token in front where the text begins with none.
    Special,
}

impl Model {
    /// Ids of a prompt as the model's verbs run it: a text with the special tokens that its tokenizer's files put
    /// around it, as transformers' AutoTokenizer gives them (llama.cpp for a GGUF file), a first token that the text
    /// begins with already not twice; ids as they are. See [`Prompt`].
    ///
    /// # Errors
    /// `MissingFile` for text without a tokenizer; `BadInput` for a prompt without tokens, longer than the context, or
    /// with an id outside the vocabulary.
    pub fn tokens(&self, prompt: impl Into<Prompt>) -> Result<Vec<u32>> {
        self.ids(prompt.into(), Front::AsPublished)
    }

    /// Ids of a prompt with `front` before those of a text. The special token is that of the beginning of text, else
    /// padding's, else that of the end, as in circuit-tracer; it need not be one that the model's training contexts
    /// begin with.
    pub(crate) fn ids(&self, prompt: Prompt, front: Front) -> Result<Vec<u32>> {
        let ids = match prompt {
            Prompt::Tokens(ids) => ids,
            Prompt::Text(text) => {
                let mut ids = self.encode(&text)?;
                let tokenizer = self.tokenizer()?;
                let begins = ids.first().is_some_and(|id| tokenizer.is_special(*id) || self.special_token() == Some(*id));
                let special = tokenizer.front().or(self.special_token()).filter(|_| front == Front::Special && !begins);
                if let Some(special) = special {
                    ids.insert(0, special);
                }
                ids
            }
        };
        self.check_tokens(&ids)?;
        Ok(ids)
    }

    /// The id of a token that is given by its id or by its text.
    ///
    /// # Errors
    /// `BadInput` for an id outside the vocabulary, and for a text that is not one token, with the tokens that it is;
    /// `MissingFile` for a text without a tokenizer.
    pub(crate) fn token_id(&self, token: &Token) -> Result<u32> {
        let text = match token {
            Token::Id(id) if (*id as usize) < self.vocab() => return Ok(*id),
            Token::Id(id) => return Err(Error::expected(ErrorKind::BadInput, "token, vocabulary", id, format_args!("less than {}", self.vocab()))),
            Token::Text(text) => text,
        };
        let tokenizer = self.tokenizer()?;
        match tokenizer.encode(text)?[..] {
            [id] if self.token_text(id).trim_start() == text.trim_start() => Ok(id),
            [id] => Err(Error::expected(ErrorKind::BadInput, format_args!("token {token}"), format_args!("{:?} of the vocabulary", self.token_text(id)), "a text that is one of its tokens")),
            ref ids => {
                let parts: Vec<String> = ids.iter().map(|id| format!("{:?}", self.token_text(*id))).collect();
                let error = Error::expected(ErrorKind::BadInput, format_args!("token {token}"), format_args!("{} tokens: {}", ids.len(), parts.join(", ")), "one token");
                let spaced = format!(" {text}");
                Err(match tokenizer.encode(&spaced) {
                    Ok(ids) if ids.len() == 1 => error.help(format!("{spaced:?}, with a space in front, is one")),
                    _ => error.help("give the first of them, or an id"),
                })
            }
        }
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let tokenizer = self.tokenizer()?;
        let mut ids = tokenizer.encode_published(text)?;
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.vocab()) {
            let error = Error::expected(ErrorKind::Mismatch, format_args!("{}: token id", tokenizer.place()), id, format_args!("below the model's vocabulary of {}", self.vocab()));
            return Err(error.help("the tokenizer belongs to another model"));
        }
        if ids.is_empty() {
            return Err(Error::expected(ErrorKind::BadInput, "prompt", "no tokens", "at least one").help("give a text that is not empty"));
        }
        let special = self.special_token().filter(|special| self.config().add_special && ids.first() != Some(special));
        if let Some(special) = special {
            ids.insert(0, special);
        }
        Ok(ids)
    }
}
