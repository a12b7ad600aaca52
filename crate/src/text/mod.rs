//! Text: the first room of the walk.
//!
//! In: files of text. Out: token ids, packed into blocks `[blocks, context]` that a model can run.
//! A [`Tokenizer`] turns text into ids and back; a [`Corpus`] is the documents; [`Blocks`] are
//! the ids, cut into contexts that each begin with the model's special token.

mod chat;
mod chat_guard;
mod corpus;
mod documents;
mod gguf;
pub(crate) mod gguf_header;
mod guarded;
mod incremental;
pub(crate) mod placeholder;
mod prompt;
mod python_json;
mod scored;
mod specials;
mod token;
mod tokenizer;

pub use chat::ChatConfig;
pub use corpus::{Blocks, Corpus, TextConfig};
pub(crate) use gguf::adds_bos;
#[doc(hidden)]
pub use incremental::Incremental;
pub use prompt::Prompt;
pub use token::Token;
pub use tokenizer::Tokenizer;
