//! Generation: token after token through a cache of keys and values, shown while it grows.
//!
//! In: a prompt or a chat. Out: a [`Generation`]; on the way each [`Step`] goes to a
//! callback, and the text so far to whatever shows progress (the notebook's live display). Cost: a
//! forward pass of one token each, `O(T)` in attention; the prompt is run once.

use super::forward::Splice;
use super::{Capture, Freeze, GenerateConfig, Model, Past};
use crate::error::Result;
use crate::progress;
use crate::text::{ChatConfig, Incremental, Prompt};
use candle_core::Tensor;
use rand::rngs::StdRng;
use rand::SeedableRng;

/// Why a generation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stop {
    /// `max_tokens` were made.
    Length,
    /// This token came: one of the model's or of the configuration's.
    Token(u32),
    /// This text of the configuration came.
    Text(String),
    /// The model's context is full.
    Context,
    /// The callback or an interrupt asked for it.
    Asked,
}

impl std::fmt::Display for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Stop::Length => f.write_str("as many tokens as asked for"),
            Stop::Token(id) => write!(f, "stop token {id}"),
            Stop::Text(text) => write!(f, "stop text {text:?}"),
            Stop::Context => f.write_str("the context is full"),
            Stop::Asked => f.write_str("stopped"),
        }
    }
}

/// One token as it is made.
pub struct Step<'a> {
    /// The token.
    pub id: u32,
    /// Text that is settled by it: not yet a character that is incomplete or what may become a stop
    /// text. The pieces of all steps and of the end are the generation's text.
    pub text: &'a str,
    /// The logits that it was chosen by, `[V]`; empty at the end, when only text is left.
    pub logits: &'a [f32],
}

/// A finished generation.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// Ids of the prompt.
    pub prompt: Vec<u32>,
    /// Ids that were made, a stop token included.
    pub tokens: Vec<u32>,
    /// Text of `tokens`, without a stop token and ending before a stop text; empty when the model
    /// has no tokenizer.
    pub text: String,
    /// Why it ended.
    pub stop: Stop,
    /// Seconds it took.
    pub seconds: f64,
}

impl std::fmt::Display for Generation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl Model {
    /// Continues a prompt, by default greedily for 32 tokens.
    ///
    /// ```no_run
    /// # use cltlab::{Model, model::GenerateConfig};
    /// let model = Model::load("gpt2", &Default::default())?;
    /// let eight = GenerateConfig { max_tokens: 8, ..GenerateConfig::default() };
    /// println!("{}", model.generate("The capital of France is", &eight)?);
    /// # Ok::<(), cltlab::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Model::stream`].
    pub fn generate(&self, prompt: impl Into<Prompt>, config: &GenerateConfig) -> Result<Generation> {
        self.stream(prompt, config, &mut |_| true)
    }

    /// Continues a prompt and shows each step to `on`, which may return false to end. Ends after `max_tokens`, a stop
    /// token or stop text, at the context's end, or when a stop is requested.
    ///
    /// ```no_run
    /// # use cltlab::{Model, model::GenerateConfig};
    /// # let model = Model::load("gpt2", &Default::default())?;
    /// model.stream("Once upon a time", &GenerateConfig::default(), &mut |step| {
    ///     print!("{}", step.text);
    ///     true
    /// })?;
    /// # Ok::<(), cltlab::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Model::tokens`]; `BadConfig`; `MissingFile` for stop texts without a tokenizer; `NotFinite`.
    pub fn stream(&self, prompt: impl Into<Prompt>, config: &GenerateConfig, on: &mut dyn FnMut(&Step<'_>) -> bool) -> Result<Generation> {
        let mut next = |input: &[u32], cache: &mut Vec<Past>| self.next_logits(input, cache, Freeze::none(), &mut |_, _| Ok(None));
        self.stream_by(&self.tokens(prompt)?, config, on, &mut next)
    }

    /// The model's answer to a chat, messages of role and content, by its chat template.
    ///
    /// ```no_run
    /// # use cltlab::{Model, model::GenerateConfig};
    /// # let model = Model::load("SmolLM2-135M-Instruct.Q4_1.gguf", &Default::default())?;
    /// let answer = model.chat(&[("user", "What is the capital of France?")], &GenerateConfig::default())?;
    /// println!("{answer}");
    /// # Ok::<(), cltlab::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Model::chat_tokens`]; `BadConfig`.
    pub fn chat(&self, messages: &[(&str, &str)], config: &GenerateConfig) -> Result<Generation> {
        self.generate(self.chat_tokens(messages, &ChatConfig::default())?, config)
    }

    /// Ids of a chat. Nothing is put in front: the template writes the special tokens.
    ///
    /// # Errors
    /// As [`Tokenizer::chat`](crate::Tokenizer::chat); `BadInput` when it is longer than
    /// the context.
    pub fn chat_tokens(&self, messages: &[(&str, &str)], config: &ChatConfig) -> Result<Vec<u32>> {
        let tokenizer = self.tokenizer()?;
        let tokens = tokenizer.encode(&tokenizer.chat(messages, config)?)?;
        self.check_tokens(&tokens)?;
        Ok(tokens)
    }

    /// As [`Model::stream`], with `next(input, cache)` in place of the plain pass: it runs `input`,
    /// first the prompt, then token by token, after what the cache holds, and gives the logits `[V]` after it.
    pub(crate) fn stream_by(
        &self,
        tokens: &[u32],
        config: &GenerateConfig,
        on: &mut dyn FnMut(&Step<'_>) -> bool,
        next: &mut dyn FnMut(&[u32], &mut Vec<Past>) -> Result<Vec<f32>>,
    ) -> Result<Generation> {
        config.validate()?;
        self.check_tokens(tokens)?;
        let begun = std::time::Instant::now();
        let mut random = StdRng::seed_from_u64(config.seed);
        let mut writer = Writer::new(self, tokens, config)?;
        let mut task = progress::Task::new("generate", config.max_tokens.min(self.context() - tokens.len()) as u64, "tokens");
        let mut cache = vec![Past::default(); self.layers()];
        let (mut input, mut made) = (tokens.to_vec(), Vec::new());
        let stop = loop {
            if made.len() >= config.max_tokens {
                break Stop::Length;
            }
            if tokens.len() + made.len() >= self.context() {
                break Stop::Context;
            }
            if progress::stop_requested() {
                break Stop::Asked;
            }
            let logits = next(&input, &mut cache)?;
            let id = config.choose(&logits, &mut random)?;
            made.push(id);
            let ends = self.config().stop_tokens.contains(&id) || config.stop_tokens.contains(&id);
            let settled = if ends { String::new() } else { writer.push(id)? };
            let goes_on = on(&Step { id, text: &settled, logits: &logits });
            task.write(made.len() as u64, &writer.text);
            if ends {
                break Stop::Token(id);
            }
            if let Some(text) = writer.stopped.take() {
                break Stop::Text(text);
            }
            if !goes_on {
                break Stop::Asked;
            }
            input = vec![id];
        };
        let rest = writer.finish(&stop)?;
        if let (false, Some(id)) = (rest.is_empty(), made.last()) {
            on(&Step { id: *id, text: &rest, logits: &[] });
        }
        let seconds = begun.elapsed().as_secs_f64();
        task.finish(format!("{} tokens, {:.1} tokens/s", made.len(), made.len() as f64 / seconds));
        Ok(Generation { prompt: tokens.to_vec(), tokens: made, text: writer.text, stop, seconds })
    }

    /// Runs `input` after what the cache holds; logits `[V]` after its last token.
    pub(crate) fn next_logits(&self, input: &[u32], cache: &mut Vec<Past>, freeze: Freeze<'_>, splice: &mut Splice<'_>) -> Result<Vec<f32>> {
        let ids = Tensor::from_slice(input, (1, input.len()), self.device())?;
        let passed = self.pass(&ids, Capture::last_logits(), freeze, splice, Some(cache))?;
        match passed.logits {
            Some(logits) => Ok(logits.flatten_all()?.to_vec1()?),
            None => Ok(Vec::new()),
        }
    }
}

/// The text so far. What may yet become a stop text is held back.
struct Writer<'a> {
    decoder: Option<Incremental<'a>>,
    stops: &'a [String],
    text: String,
    held: String,
    stopped: Option<String>,
}

impl<'a> Writer<'a> {
    fn new(model: &'a Model, prompt: &[u32], config: &'a GenerateConfig) -> Result<Self> {
        let tokenizer = if config.stop.is_empty() { model.tokenizer().ok() } else { Some(model.tokenizer()?) };
        let decoder = tokenizer.map(|tokenizer| Incremental::new(tokenizer, prompt));
        Ok(Writer { decoder, stops: &config.stop, text: String::new(), held: String::new(), stopped: None })
    }

    /// Takes a token in; returns what is settled by it.
    fn push(&mut self, id: u32) -> Result<String> {
        let Some(decoder) = &mut self.decoder else { return Ok(String::new()) };
        self.held += &decoder.push(id)?;
        Ok(self.settle())
    }

    fn settle(&mut self) -> String {
        let found = self.stops.iter().filter_map(|stop| Some((self.held.find(stop.as_str())?, stop))).min_by_key(|(at, _)| *at);
        let settled = match found {
            Some((at, stop)) => {
                self.stopped = Some(stop.clone());
                at
            }
            None => self.held.len() - self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0),
        };
        let out: String = self.held.drain(..settled).collect();
        self.text += &out;
        out
    }

    /// What was held back; nothing after a stop text.
    fn finish(&mut self, stop: &Stop) -> Result<String> {
        if matches!(stop, Stop::Text(_)) {
            return Ok(String::new());
        }
        let rest = self.decoder.take().map(Incremental::finish).transpose()?.unwrap_or_default();
        let out = std::mem::take(&mut self.held) + &rest;
        self.text += &out;
        Ok(out)
    }
}

/// Bytes at the end of `text` that `stop` may begin with.
fn overlap(text: &str, stop: &str) -> usize {
    stop.char_indices().map(|(at, _)| at).filter(|at| text.ends_with(&stop[..*at])).max().unwrap_or(0)
}
