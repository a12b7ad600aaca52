//! Prompts: text or token ids, for every verb that takes one.

/// A prompt: text, or token ids.
///
/// Every verb that takes a prompt takes `impl Into<Prompt>`: a `&str`, `String` or `&String`, and ids as a `Vec<u32>`,
/// `&Vec<u32>`, `&[u32]` or an array.
///
/// # Special tokens
/// Ids are run as they are. What a text becomes is decided in one place, by whose verb it is given to:
///
/// | verbs of | ids of a text | shown by |
/// |---|---|---|
/// | [`Model`](crate::Model) | with the special tokens that transformers' AutoTokenizer puts around it (llama.cpp for a GGUF file) | [`Model::tokens`](crate::Model::tokens) |
/// | [`Replacement`](crate::Replacement) | the same, with a special token in front where the text begins with none: the first position is an attention sink, which has no features | [`Replacement::tokens`](crate::Replacement::tokens) |
///
/// So that both see the same positions, give a model the replacement's ids.
///
/// ```no_run
/// # use cltlab::{model::Capture, Model, Replacement};
/// # fn f(model: Model, replacement: Replacement) -> cltlab::Result<()> {
/// let run = model.run("The capital of France is", &Capture::default())?;
/// let same_positions = model.run(replacement.tokens("The capital of France is")?, &Capture::default())?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
pub enum Prompt {
    /// Text, which the model's tokenizer turns into ids.
    Text(String),
    /// Token ids, taken as they are.
    Tokens(Vec<u32>),
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Prompt::Text(text.to_string())
    }
}

impl From<&&str> for Prompt {
    fn from(text: &&str) -> Self {
        Prompt::Text((*text).to_string())
    }
}

impl From<String> for Prompt {
    fn from(text: String) -> Self {
        Prompt::Text(text)
    }
}

impl From<&String> for Prompt {
    fn from(text: &String) -> Self {
        Prompt::Text(text.clone())
    }
}

impl From<Vec<u32>> for Prompt {
    fn from(tokens: Vec<u32>) -> Self {
        Prompt::Tokens(tokens)
    }
}

impl From<&Vec<u32>> for Prompt {
    fn from(tokens: &Vec<u32>) -> Self {
        Prompt::Tokens(tokens.clone())
    }
}

impl From<&[u32]> for Prompt {
    fn from(tokens: &[u32]) -> Self {
        Prompt::Tokens(tokens.to_vec())
    }
}

impl<const N: usize> From<[u32; N]> for Prompt {
    fn from(tokens: [u32; N]) -> Self {
        Prompt::Tokens(tokens.to_vec())
    }
}

impl<const N: usize> From<&[u32; N]> for Prompt {
    fn from(tokens: &[u32; N]) -> Self {
        Prompt::Tokens(tokens.to_vec())
    }
}

impl From<&Prompt> for Prompt {
    fn from(prompt: &Prompt) -> Self {
        prompt.clone()
    }
}
