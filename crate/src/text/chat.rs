//! Chat templates: messages to the text that a model was tuned on.
//!
//! A template is a Jinja program from `tokenizer_config.json`, `chat_template.jinja` or a GGUF
//! file's metadata. It runs as in Hugging Face transformers: blocks trimmed, `raise_exception`,
//! `strftime_now` and Python's `tojson` at hand, Python's string methods, the tokenizer's special
//! tokens as variables. Cost: microseconds a message.

use super::python_json;
use crate::error::{Error, ErrorKind, Result};
use crate::files;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Value};
use std::collections::BTreeMap;
use std::path::Path;

/// The name of the template that is used when none is asked for.
const DEFAULT: &str = "default";

/// How a chat becomes text.
///
/// ```
/// use cltlab::text::ChatConfig;
/// let config = ChatConfig { variables: r#"{"enable_thinking": false}"#.to_string(), ..ChatConfig::default() };
/// assert!(config.generation_prompt);
/// ```
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ChatConfig {
    /// Ends the text where the model's answer begins. Default true.
    pub generation_prompt: bool,
    /// Which of several named templates. Default `default`.
    pub template: String,
    /// Further variables that the template knows, such as `enable_thinking`, `tools` or
    /// `date_string`: a JSON object, whose order is kept. Default `{}`.
    pub variables: String,
}

impl Default for ChatConfig {
    fn default() -> Self {
        ChatConfig { generation_prompt: true, template: DEFAULT.to_string(), variables: "{}".to_string() }
    }
}

/// A tokenizer's templates by name, and its special tokens by theirs (`bos_token`, ...).
#[derive(Clone, Debug, Default)]
pub(super) struct Chat {
    templates: BTreeMap<String, String>,
    tokens: BTreeMap<String, String>,
}

impl Chat {
    /// Reads what lies beside a `tokenizer.json`; nothing there is no error.
    pub(super) fn beside(folder: &Path) -> Result<Self> {
        let mut chat = Chat::default();
        for name in ["special_tokens_map.json", "tokenizer_config.json"] {
            let path = folder.join(name);
            if path.exists() {
                let json = files::read_json(&path)?;
                chat.take_tokens(&json);
                chat.take_templates(json.get("chat_template"), &path.display().to_string())?;
            }
        }
        let alone = folder.join("chat_template.jinja");
        if alone.exists() {
            chat.insert(DEFAULT, text_of(&alone)?);
        }
        if let Ok(listing) = std::fs::read_dir(folder.join("additional_chat_templates")) {
            for path in listing.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "jinja")) {
                let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
                chat.insert(&name, text_of(&path)?);
            }
        }
        Ok(chat)
    }

    pub(super) fn insert(&mut self, name: &str, template: String) {
        self.templates.insert(name.to_string(), template);
    }

    pub(super) fn set_default(&mut self, template: &str) {
        self.insert(DEFAULT, template.to_string());
    }

    pub(super) fn set_token(&mut self, name: &str, text: String) {
        self.tokens.insert(name.to_string(), text);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.templates.is_empty()
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.templates.keys().cloned().collect()
    }

    /// Special tokens are strings, or objects with the string in `content`.
    fn take_tokens(&mut self, json: &serde_json::Value) {
        for (name, value) in json.as_object().into_iter().flatten().filter(|(name, _)| name.ends_with("_token")) {
            if let Some(text) = value.as_str().or_else(|| value.get("content")?.as_str()) {
                self.set_token(name, text.to_string());
            }
        }
    }

    /// One template as a string, or a list of objects with `name` and `template`.
    fn take_templates(&mut self, field: Option<&serde_json::Value>, place: &str) -> Result<()> {
        let wrong = |got: &serde_json::Value| {
            Error::expected(ErrorKind::BadFile, format_args!("{place}: chat_template"), got, "a string, or a list of objects with name and template")
        };
        match field {
            None | Some(serde_json::Value::Null) => {}
            Some(serde_json::Value::String(template)) => self.set_default(template),
            Some(serde_json::Value::Array(list)) => {
                for entry in list {
                    let text = |field: &str| entry.get(field).and_then(|text| text.as_str()).ok_or_else(|| wrong(entry));
                    self.insert(text("name")?, text("template")?.to_string());
                }
            }
            Some(other) => return Err(wrong(other)),
        }
        Ok(())
    }

    /// The text of `messages`, each a role and a content.
    pub(super) fn render(&self, messages: &[(&str, &str)], config: &ChatConfig) -> Result<String> {
        let source = self.templates.get(&config.template).ok_or_else(|| self.missing(&config.template))?;
        let wrong = |got: &dyn std::fmt::Display| Error::expected(ErrorKind::BadConfig, "ChatConfig::variables", got, "a JSON object");
        let variables: Value = serde_json::from_str(&config.variables).map_err(|error| wrong(&error))?;
        if variables.kind() != ValueKind::Map {
            return Err(wrong(&config.variables));
        }
        let listed: Vec<Value> = messages.iter().map(|(role, content)| Value::from_pairs([("role", *role), ("content", *content)])).collect();
        let names = variables.try_iter().map_err(|error| refused(&error))?;
        let given = names.filter_map(|name| Some((name.as_str()?.to_string(), variables.get_item(&name).ok()?)));
        let own = [("messages", Value::from(listed)), ("add_generation_prompt", Value::from(config.generation_prompt))];
        let tokens = self.tokens.iter().map(|(name, text)| (name.clone(), Value::from(text.as_str())));
        let all = tokens.chain(given).chain(own.map(|(name, value)| (name.to_string(), value)));
        let environment = environment().map_err(|error| refused(&error))?;
        let source = without_marks(source);
        let template = environment.template_from_named_str("chat_template", &source).map_err(|error| refused(&error))?;
        template.render(Value::from_pairs(all)).map_err(|error| refused(&error))
    }

    fn missing(&self, name: &str) -> Error {
        if self.templates.is_empty() {
            return Error::expected(ErrorKind::MissingFile, "tokenizer: chat template", "none", "one in tokenizer_config.json, chat_template.jinja or the GGUF file")
                .help("the model may not be tuned for chats: give it plain text, or a template with Tokenizer::with_chat_template");
        }
        Error::expected(ErrorKind::BadConfig, "ChatConfig::template", format_args!("'{name}'"), format_args!("one of {}", self.names().join(", ")))
    }
}

fn text_of(path: &Path) -> Result<String> {
    String::from_utf8(files::read(path)?).map_err(|error| Error::new(ErrorKind::BadFile, format!("{}: {error}", path.display())))
}

/// Begins the message of what `raise_exception` raised: the template's own refusal of the messages.
const RAISED: &str = "raise_exception: ";

fn refused(error: &minijinja::Error) -> Error {
    if let Some(said) = error.detail().and_then(|detail| detail.strip_prefix(RAISED)) {
        return Error::new(ErrorKind::BadInput, format!("chat template: it refused the messages: {said}"));
    }
    let line = error.line().map_or_else(String::new, |line| format!(" line {line}"));
    let detail = error.detail().map_or_else(String::new, |detail| format!(": {detail}"));
    Error::new(ErrorKind::BadFile, format!("chat template{line}: {}{detail}", error.kind()))
}

/// The training marks `{% generation %}` and `{% endgeneration %}` become comments: they say which
/// text is the model's own and write nothing.
fn without_marks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (head, tail) = rest.split_at(at);
        out.push_str(head);
        let end = tail.find("%}").map_or(tail.len(), |end| end + 2);
        let (tag, after) = tail.split_at(end);
        let inside = tag.trim_start_matches("{%").trim_end_matches("%}");
        if matches!(inside.trim_matches('-').trim(), "generation" | "endgeneration") {
            let sign = |there: bool| if there { "-" } else { "" };
            out += &format!("{{#{} {}#}}", sign(inside.starts_with('-')), sign(inside.ends_with('-')));
        } else {
            out.push_str(tag);
        }
        rest = after;
    }
    out + rest
}

/// The settings and functions that transformers gives to a template.
fn environment() -> Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_formatter(|out, state, value| match value.kind() {
        ValueKind::None => Ok(out.write_str("None")?),
        ValueKind::Bool => Ok(out.write_str(if value.is_true() { "True" } else { "False" })?),
        _ => minijinja::escape_formatter(out, state, value),
    });
    environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> { Err(invalid(format!("{RAISED}{message}"))) });
    environment.add_function("strftime_now", |format: String| strftime_now(&format));
    environment.add_filter("tojson", to_json);
    Ok(environment)
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> minijinja::Error {
    minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, message)
}

/// Python's `json.dumps(value, ensure_ascii=False)`, with its `indent` and `sort_keys`.
fn to_json(value: Value, options: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let sorted = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let text = if sorted {
        // The tree of serde_json keeps its keys in order.
        serde_json::to_value(&value).and_then(|tree| python_json::text(&tree, indent))
    } else {
        python_json::text(&value, indent)
    };
    text.map_err(|error| invalid(format!("tojson: {error}")))
}

/// The local time by C's format.
fn strftime_now(format: &str) -> Result<String, minijinja::Error> {
    let format = std::ffi::CString::new(format).map_err(|error| invalid(format!("strftime_now: {error}")))?;
    let mut buffer = [0_u8; 256];
    // SAFETY: `now` is a plain structure that localtime_r fills; strftime writes at most the
    // buffer's length and returns how much.
    let length = unsafe {
        let seconds = libc::time(std::ptr::null_mut());
        let mut now: libc::tm = std::mem::zeroed();
        if libc::localtime_r(&seconds, &mut now).is_null() {
            return Err(invalid("strftime_now: the system gives no local time"));
        }
        libc::strftime(buffer.as_mut_ptr().cast(), buffer.len(), format.as_ptr(), &now)
    };
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}
