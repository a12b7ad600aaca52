//! One token, given by its id or by its text.

use std::str::FromStr;

/// A token, by its id or by its text.
///
/// From a `str`, digits alone are an id and all else is a text; in double quotes everything is a text. A text must be
/// one token of the model's tokenizer; most words have a space in front.
///
/// ```
/// use cltlab::text::Token;
/// assert_eq!(Token::from(42), Token::Id(42));
/// assert_eq!(Token::from(" Austin"), Token::Text(" Austin".to_string()));
/// assert_eq!((Token::from("42"), Token::from("\"42\"")), (Token::Id(42), Token::Text("42".to_string())));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
pub enum Token {
    /// Its number in the vocabulary.
    Id(u32),
    /// Its text, a space in front included.
    Text(String),
}

impl From<u32> for Token {
    fn from(id: u32) -> Self {
        Token::Id(id)
    }
}

impl From<&str> for Token {
    fn from(text: &str) -> Self {
        match text.trim().parse() {
            Ok(id) if text.trim().bytes().all(|byte| byte.is_ascii_digit()) => Token::Id(id),
            _ => Token::Text(text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text).to_string()),
        }
    }
}

impl From<String> for Token {
    fn from(text: String) -> Self {
        Token::from(text.as_str())
    }
}

impl FromStr for Token {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Token::from(text))
    }
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Token::Id(id) => write!(f, "{id}"),
            Token::Text(text) => write!(f, "{text:?}"),
        }
    }
}
