//! Text while it is generated: ids one by one, text as soon as it is settled.
//!
//! A character may be spread over several tokens, and what a token writes may depend on the one
//! before it; so a short window of ids is decoded and compared with what it was before.

use super::Tokenizer;
use crate::error::Result;

/// What stands for bytes that are no whole character yet.
const BROKEN: char = '\u{fffd}';

/// Ids that the window begins with: enough for a character's tokens before the first new one.
const LEAD: usize = 5;

/// Longest window of ids that may wait for a character's end.
const WAIT: usize = 8;

/// Turns a sequence of ids into text piece by piece. The pieces joined are the text that the ids
/// add to the prompt's.
///
/// ```no_run
/// # let tokenizer = cltlab::Tokenizer::from_file("tokenizer.json")?;
/// let mut text = cltlab::text::Incremental::new(&tokenizer, &[]);
/// for id in tokenizer.encode("Streamed.")? { print!("{}", text.push(id)?); }
/// # Ok::<(), cltlab::Error>(())
/// ```
pub struct Incremental<'a> {
    tokenizer: &'a Tokenizer,
    window: Vec<u32>,
    /// Ids at the window's beginning whose text was given out.
    shown: usize,
}

impl<'a> Incremental<'a> {
    /// Begins after `prompt`, whose text is not repeated.
    pub fn new(tokenizer: &'a Tokenizer, prompt: &[u32]) -> Self {
        let window = prompt[prompt.len().saturating_sub(LEAD)..].to_vec();
        Incremental { tokenizer, shown: window.len(), window }
    }

    /// The text that is settled by one more id; empty while a character is incomplete.
    ///
    /// # Errors
    /// `BadInput` for an id outside the vocabulary.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.window.push(id);
        let (before, now) = self.decode()?;
        if now.ends_with(BROKEN) && self.window.len() - self.shown < WAIT {
            return Ok(String::new());
        }
        let new = added(&before, &now);
        self.window.drain(..self.window.len().saturating_sub(LEAD));
        self.shown = self.window.len();
        Ok(new)
    }

    /// What is left when no id follows: the signs for an incomplete character, or nothing.
    ///
    /// # Errors
    /// As [`Incremental::push`].
    pub fn finish(self) -> Result<String> {
        let (before, now) = self.decode()?;
        Ok(added(&before, &now))
    }

    fn decode(&self) -> Result<(String, String)> {
        Ok((self.tokenizer.decode(&self.window[..self.shown])?, self.tokenizer.decode(&self.window)?))
    }
}

/// What `now` adds to `before`, whose last, incomplete character may be whole now.
fn added(before: &str, now: &str) -> String {
    let same = before.char_indices().zip(now.chars()).find(|((_, a), b)| a != b).map_or(before.len(), |((at, _), _)| at);
    now.get(same..).unwrap_or_default().to_string()
}
