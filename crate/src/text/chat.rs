//! Chat templates: messages to the text that a model was tuned on.
//!
//! A template is a Jinja program from `tokenizer_config.json`, `chat_template.jinja` or a GGUF
//! file's metadata. It runs as in Hugging Face transformers: blocks trimmed, `raise_exception`,
//! `strftime_now` and Python's `tojson` at hand, Python's string methods, the tokenizer's special
//! tokens as variables. A template is anybody's program, so its steps, its memory, what it writes and
//! its depth are bounded. Cost: microseconds a message.

use super::chat_guard;
use super::python_json::{self, Bounded};
use crate::error::{Error, ErrorKind, Result};
use crate::files;
use crate::files::names::shown;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Value};
use std::collections::BTreeMap;
use std::path::Path;

/// The name of the template that is used when none is asked for.
const DEFAULT: &str = "default";

/// Bytes of a template; published ones have less than a third.
const LONGEST: usize = 128 << 10;
/// Steps of a template, and for each message and each byte of messages and variables. A step also pays for 64 bytes of strings.
const STEPS: u64 = 300_000;
const STEPS_A_MESSAGE: u64 = 20_000;
/// Bytes that a template may write, beyond those of messages and variables, which it may write so many times.
const WRITTEN: usize = 4 << 20;
const TIMES: usize = 8;
/// Stack of the thread that runs it: enough for the deepest value that its steps can make. Only what is used takes memory.
const STACK: usize = 1 << 30;

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
                let json = files::read_json_object(&path)?;
                chat.take_tokens(&json);
                chat.take_templates(json.get("chat_template"), &path.display().to_string())?;
            }
        }
        let alone = folder.join("chat_template.jinja");
        if alone.exists() {
            chat.insert(DEFAULT, files::read_text(&alone)?);
        }
        if let Ok(listing) = std::fs::read_dir(folder.join("additional_chat_templates")) {
            for path in listing.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "jinja")) {
                let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
                chat.insert(&name, files::read_text(&path)?);
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
        if source.len() > LONGEST {
            return Err(Error::expected(ErrorKind::BadFile, "chat template", format_args!("{} bytes", source.len()), format_args!("at most {LONGEST}")));
        }
        let given = messages.iter().map(|(role, content)| role.len() + content.len()).sum::<usize>() + config.variables.len();
        let steps = STEPS + STEPS_A_MESSAGE * messages.len() as u64 + given as u64;
        let most = WRITTEN + TIMES * given;
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("chat template".to_string()).stack_size(STACK);
            let thread = thread.spawn_scoped(scope, || self.run(source, messages, config, steps, most));
            let thread = thread.map_err(|error| Error::wrap(ErrorKind::OutOfMemory, "chat template: no thread to run it", error))?;
            thread.join().unwrap_or_else(|_| Err(Error::new(ErrorKind::BadFile, "chat template: it made the program that runs it fail").help("give another with Tokenizer::chat_template")))
        })
    }

    /// Runs a template, in so many steps and to so many bytes of text at most.
    fn run(&self, source: &str, messages: &[(&str, &str)], config: &ChatConfig, steps: u64, most: usize) -> Result<String> {
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
        let mut environment = environment(most).map_err(|error| refused(&error))?;
        environment.set_fuel(Some(steps));
        chat_guard::short_chains(source).map_err(|error| refused(&error))?;
        let source = chat_guard::guarded(&without_marks(source)).map_err(|error| refused(&error))?;
        let template = environment.template_from_named_str("chat_template", &source).map_err(|error| refused(&error))?;
        let mut out = Bounded { bytes: Vec::new(), most };
        template.render_captured_to(Value::from_pairs(all), &mut out).map_err(|error| refused(&error))?;
        if out.bytes.is_empty() {
            return Err(Error::expected(ErrorKind::BadFile, "chat template", "no text from these messages", "the text of a chat").help("give another with Tokenizer::with_chat_template"));
        }
        String::from_utf8(out.bytes).map_err(|error| Error::wrap(ErrorKind::BadFile, "chat template", error))
    }

    fn missing(&self, name: &str) -> Error {
        if self.templates.is_empty() {
            return Error::expected(ErrorKind::MissingFile, "tokenizer: chat template", "none", "one in tokenizer_config.json, chat_template.jinja or the GGUF file")
                .help("the model may not be tuned for chats: give it plain text, or a template with Tokenizer::chat_template");
        }
        Error::expected(ErrorKind::BadConfig, "ChatConfig::template", format_args!("'{name}'"), format_args!("one of {}", self.names().join(", ")))
    }
}

/// Begins the message of what `raise_exception` raised: the template's own refusal of the messages.
const RAISED: &str = "raise_exception: ";

fn refused(error: &minijinja::Error) -> Error {
    if let Some(said) = error.detail().and_then(|detail| detail.strip_prefix(RAISED)) {
        return Error::new(ErrorKind::BadInput, format!("chat template: it refused the messages: {}", shown(said)));
    }
    let line = error.line().map_or_else(String::new, |line| format!(" line {line}"));
    if error.kind() == minijinja::ErrorKind::OutOfFuel {
        return Error::new(ErrorKind::BadFile, format!("chat template{line}: it does more than any number of messages needs, or does not end")).help("give another with Tokenizer::chat_template");
    }
    let cause = std::error::Error::source(error).map(ToString::to_string);
    let detail = error.detail().map(str::to_string).or(cause).map_or_else(String::new, |detail| format!(": {}", shown(&detail)));
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

/// The settings and functions that transformers gives to a template; `most` bounds the JSON that it makes.
fn environment(most: usize) -> Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    chat_guard::install(&mut environment, most);
    environment.set_formatter(move |out, state, value| match value.kind() {
        ValueKind::None => Ok(out.write_str("None")?),
        ValueKind::Bool => Ok(out.write_str(if value.is_true() { "True" } else { "False" })?),
        ValueKind::Seq | ValueKind::Map | ValueKind::Plain => {
            // A value that holds itself would be written without an end.
            shallow(value, most)?;
            minijinja::escape_formatter(out, state, value)
        }
        _ => minijinja::escape_formatter(out, state, value),
    });
    environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> { Err(invalid(format!("{RAISED}{message}"))) });
    environment.add_function("strftime_now", |format: String| strftime_now(&format));
    environment.add_filter("tojson", move |value: Value, options: Kwargs| to_json(&value, &options, most));
    Ok(environment)
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> minijinja::Error {
    minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, message)
}

/// Python's `json.dumps(value, ensure_ascii=False)`, with its `indent` and `sort_keys`.
fn to_json(value: &Value, options: &Kwargs, most: usize) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let sorted = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let text = if sorted {
        shallow(value, most)?;
        // The tree of serde_json keeps its keys in order.
        serde_json::to_value(value).and_then(|tree| python_json::text(&tree, indent, most))
    } else {
        python_json::text(value, indent, most)
    };
    text.map_err(|error| invalid(format!("tojson: {error}")))
}

/// Refuses a value of too many levels or too much text.
fn shallow(value: &Value, most: usize) -> Result<(), minijinja::Error> {
    match python_json::text(value, None, most) {
        Err(error) if error.is_io() => Err(invalid(error.to_string())),
        _ => Ok(()),
    }
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
