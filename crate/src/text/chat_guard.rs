//! What a template may not do, beyond its number of steps: keep a namespace within a namespace, which would be a value that
//! holds itself, or make a text by a method that is longer than any chat.

use minijinja::value::{ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value};

/// The attribute by which a namespace is known, and the filter through which its attributes are set.
const MARK: &str = "cltlab_namespace";
const FILTER: &str = "cltlab_kept";
/// Levels and entries of a value that a namespace keeps.
const DEPTH: usize = 128;
const ENTRIES: usize = 200_000;
/// Operators in one tag; published templates have some ten.
const OPERATORS: usize = 1000;

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// Refuses a tag of more than [`OPERATORS`] operators: the parser's time grows with the square of a chain's length.
///
/// # Errors
/// `SyntaxError` with the number and the line.
pub(super) fn short_chains(source: &str) -> Result<(), Error> {
    let mut at = 0;
    while let Some((start, end)) = ["{{", "{%", "{#"].iter().zip(["}}", "%}", "#}"]).filter_map(|(open, close)| Some((at + source[at..].find(open)? + 2, close))).min() {
        if end == "#}" {
            at = source[start..].find(end).map_or(source.len(), |length| start + length + end.len());
            continue;
        }
        let (count, length) = operators(&source[start..], end);
        if count > OPERATORS {
            let line = source[..start].matches('\n').count() + 1;
            return Err(Error::new(ErrorKind::SyntaxError, format!("line {line}: got a tag of {count} operators, expected at most {OPERATORS}")));
        }
        at = start + length;
    }
    Ok(())
}

/// How many operators stand in a tag before `end`, outside of its texts, and how many bytes it has.
fn operators(tag: &str, end: &str) -> (usize, usize) {
    let (mut quote, mut escaped, mut count, mut word) = (None, false, 0, 0);
    for (at, c) in tag.char_indices() {
        let is_word = c.is_alphanumeric() || c == '_';
        if quote.is_none() && !is_word {
            count += usize::from(["not", "and", "or", "if", "else", "is", "in"].contains(&&tag[word..at]));
        }
        match (quote, c) {
            _ if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(open), _) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, _) if tag[at..].starts_with(end) => return (count, at + end.len()),
            (None, '-' | '+' | '*' | '/' | '%' | '~' | '|' | '.' | '<' | '>' | '=' | '!' | '(' | '[' | '{') => count += 1,
            _ => {}
        }
        if !is_word {
            word = at + c.len_utf8();
        }
    }
    (count, tag.len())
}

/// `source` with a check around what is assigned to an attribute: `{% set n.x = (…)|cltlab_kept %}`.
///
/// # Errors
/// `InvalidOperation` for a template that uses the names of the check itself.
pub(super) fn guarded(source: &str) -> Result<String, Error> {
    if source.contains(MARK) || source.contains(FILTER) {
        return Err(invalid("a name that is kept for checks"));
    }
    let mut out = String::with_capacity(source.len());
    let mut done = 0;
    for (at, _) in source.match_indices("{%") {
        let Some((start, end)) = assigned(source, at + 2).filter(|(start, _)| *start >= done) else { continue };
        out += &format!("{}({})|{FILTER}", &source[done..start], &source[start..end]);
        done = end;
    }
    Ok(out + &source[done..])
}

/// Where the value lies that the tag at `at` assigns to an attribute.
fn assigned(source: &str, at: usize) -> Option<(usize, usize)> {
    let inside = source[at..].trim_start_matches(['-', '+']).trim_start().strip_prefix("set").filter(|rest| rest.starts_with(|c: char| c.is_whitespace() || c == '('))?;
    let (equals, close) = (inside.find('=')?, inside.find("%}")?);
    if close < equals || !inside[..equals].contains('.') {
        return None;
    }
    let start = source.len() - inside.len() + equals + 1;
    let (mut quote, mut escaped) = (None, false);
    for (offset, c) in source[start..].char_indices() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(open), _) if c == open => quote = None,
            (None, '"' | '\'') => quote = Some(c),
            (None, '%') if source[start + offset..].starts_with("%}") => {
                let value = source[start..start + offset].trim_end_matches(['-', '+']).trim_end();
                return Some((start, start + value.len()));
            }
            _ => {}
        }
    }
    None
}

/// Gives the environment the check of [`guarded`], and Python's methods with a bound of `most` bytes.
pub(super) fn install(environment: &mut Environment<'static>, most: usize) {
    environment.add_filter(FILTER, |value: Value| {
        let mut left = ENTRIES;
        keepable(&value, DEPTH, &mut left).map(|()| value)
    });
    environment.add_function("namespace", |given: Option<ValueOrKwargs>| -> Result<Value, Error> {
        let mut pairs = vec![(MARK.to_string(), Value::from(true))];
        if let Some(given) = given.map(ValueOrKwargs::into_value) {
            for name in given.try_iter()? {
                pairs.push((name.to_string(), given.get_item(&name)?));
            }
        }
        minijinja::functions::namespace(Some(Value::from_pairs(pairs).into()))
    });
    environment.set_unknown_method_callback(move |state: &mut State, value: &Value, method: &str, args: &[Value]| {
        if value.as_str().is_some_and(|text| longest(text, method, args) > most) {
            return Err(invalid(format!("{method}: more than {most} bytes of text")));
        }
        minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
    });
}

fn keepable(value: &Value, depth: usize, left: &mut usize) -> Result<(), Error> {
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable | ValueKind::Plain) {
        return Ok(());
    }
    if value.get_attr(MARK).is_ok_and(|mark| !mark.is_undefined()) {
        return Err(invalid("a namespace within a namespace"));
    }
    if depth == 0 {
        return Err(invalid(format!("more than {DEPTH} levels, one within the other")));
    }
    let Ok(entries) = value.try_iter() else { return Ok(()) };
    for entry in entries {
        *left = left.checked_sub(1).ok_or_else(|| invalid(format!("a value of more than {ENTRIES} entries")))?;
        let inner = if value.kind() == ValueKind::Map { value.get_item(&entry)? } else { entry };
        keepable(&inner, depth - 1, left)?;
    }
    Ok(())
}

/// The most bytes that a method of a text gives.
fn longest(text: &str, method: &str, args: &[Value]) -> usize {
    match (method, args) {
        ("replace", [old, new, ..]) => {
            let (old, new) = (old.as_str().unwrap_or(""), new.as_str().unwrap_or(""));
            text.len().saturating_add(text.matches(old).count().saturating_mul(new.len()))
        }
        ("join", [list, ..]) => {
            let lengths = list.try_iter().into_iter().flatten().take(1 << 20).map(|item| item.as_str().map_or(32, str::len).saturating_add(text.len()));
            lengths.fold(0, usize::saturating_add)
        }
        // A width has a few digits.
        ("format", _) if text.as_bytes().windows(7).any(|digits| digits.iter().all(u8::is_ascii_digit)) => usize::MAX,
        _ => text.len(),
    }
}
