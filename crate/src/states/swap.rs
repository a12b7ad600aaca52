//! Swaps: another state's features in the place of the city's own. Does the answer become that state's?

use super::{Facts, StateFeatures};
use crate::error::{Error, ErrorKind, Result};
use crate::files;
use crate::intervene::{correlation, Comparison, Intervention, Mode};
use crate::model::Model;
use crate::progress::{stop_requested, Task};
use crate::replacement::LocalReplacement;
use crate::text::Prompt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// Draws of a pair that is not usable before the questions are called too few.
const DRAWS: usize = 1000;

/// Which features are swapped.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SwapConfig {
    /// The first so many layers, at the city. Default 4: after block 3 attention has carried the state on to the last token.
    pub layers: usize,
    /// The most typical so many features of a state in each of them. Default 16.
    pub features: usize,
    /// What may respond. Default [`Mode::FrozenAttention`].
    pub mode: Mode,
    /// Seed of the random features, and of the pairs of [`StateFeatures::check_swaps`]. Default 0.
    pub seed: u64,
}

impl Default for SwapConfig {
    fn default() -> Self {
        SwapConfig { layers: 4, features: 16, mode: Mode::default(), seed: 0 }
    }
}

/// Changes that put one state in another's place.
#[derive(Clone, Debug, PartialEq)]
pub struct Swap {
    /// The old state's features are set to 0, the new one's to their mean activation over its cities.
    pub changes: Vec<Intervention>,
    /// As many random features of the same layers, each moved by as much.
    pub control: Vec<Intervention>,
}

/// What one swap did.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct SwapEffect {
    /// The city in the question.
    pub city: String,
    /// The attribute asked for.
    pub attribute: String,
    /// The state whose features were put in.
    pub state: String,
    /// What the attribute may be: the city's own answer, the new state's, then those of all other states.
    pub answers: Vec<String>,
    /// The likeliest next token after the swap.
    pub after: String,
    /// Change of each answer's logit, less the mean logit's, that the linear model predicts.
    pub predicted: Vec<f64>,
    /// The change that was measured.
    pub measured: Vec<f64>,
    /// The likeliest next token with the random features moved.
    pub control_after: String,
    /// What the random features did to the answers' logits.
    pub control_measured: Vec<f64>,
}

/// Many swaps, with random features beside.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct SwapCheck {
    /// Which features were swapped.
    pub config: SwapConfig,
    /// Each swap.
    pub swaps: Vec<SwapEffect>,
}

/// What many swaps amount to.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct SwapFigures {
    /// Share of swaps after which the new state's answer is the likeliest token.
    pub new_answers: f64,
    /// The same of the random features.
    pub control_new_answers: f64,
    /// Correlation of predicted and measured changes over the answers of all states, the mean over swaps; `None` where in no
    /// swap either varies.
    pub predicted_measured: Option<f64>,
    /// The same of the swaps' predictions with what the random features did.
    pub predicted_control_measured: Option<f64>,
}

impl SwapCheck {
    /// Shares and correlations.
    pub fn figures(&self) -> SwapFigures {
        SwapFigures {
            new_answers: self.share(|swap| &swap.after),
            control_new_answers: self.share(|swap| &swap.control_after),
            predicted_measured: self.correlated(|swap| &swap.measured),
            predicted_control_measured: self.correlated(|swap| &swap.control_measured),
        }
    }

    fn share(&self, after: impl Fn(&SwapEffect) -> &String) -> f64 {
        self.swaps.iter().filter(|swap| *after(swap) == swap.answers[1]).count() as f64 / self.swaps.len() as f64
    }

    fn correlated(&self, measured: impl Fn(&SwapEffect) -> &Vec<f64>) -> Option<f64> {
        let each: Vec<f64> = self.swaps.iter().filter_map(|swap| correlation(swap.predicted.iter().copied().zip(measured(swap).iter().copied()))).collect();
        (!each.is_empty()).then(|| each.iter().sum::<f64>() / each.len() as f64)
    }

    /// Writes all swaps and the figures as JSON.
    ///
    /// # Errors
    /// `DiskFull` or `Io`, with the path.
    pub fn save(&self, path: impl AsRef<std::path::Path>) -> Result<()> {
        files::write_json(path, &serde_json::json!({"figures": self.figures(), "check": self}))
    }
}

impl StateFeatures {
    /// What puts the features of `state` in the place of those of the city's state, at the city of a two-hop question.
    ///
    /// ```no_run
    /// # fn f(replacement: cltlab::Replacement, features: cltlab::states::StateFeatures) -> cltlab::Result<()> {
    /// let question = features.facts().question("capital", "Dallas");
    /// let swap = features.swap(&question, "Texas", "California", &Default::default())?;
    /// println!("{}", replacement.intervene(&question, &swap.changes, &Default::default())?);
    /// println!("{}", replacement.intervene(&question, &swap.control, &Default::default())?);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// `BadInput` for a state that is not known, a prompt of another length than the questions; `BadConfig` naming the field.
    pub fn swap(&self, question: impl Into<Prompt>, from: &str, to: &str, config: &SwapConfig) -> Result<Swap> {
        let local = self.replacement.local(question, &Default::default())?;
        self.changes(&local, [self.facts.index(from)?, self.facts.index(to)?], config, &mut StdRng::seed_from_u64(config.seed))
    }

    fn changes(&self, local: &LocalReplacement, [from, to]: [usize; 2], config: &SwapConfig, random: &mut StdRng) -> Result<Swap> {
        let (layers, features, tokens) = (self.replacement.clt().layers(), self.replacement.clt().features(), local.run().tokens.len());
        if !(1..=layers).contains(&config.layers) {
            return Err(Error::expected(ErrorKind::BadConfig, "SwapConfig::layers", config.layers, format_args!("1 to {layers}")));
        }
        if !(1..=features / 4).contains(&config.features) {
            return Err(Error::expected(ErrorKind::BadConfig, "SwapConfig::features", config.features, format_args!("1 to {}", features / 4)));
        }
        if tokens != self.tokens() {
            return Err(Error::expected(ErrorKind::BadInput, "question", format_args!("{tokens} tokens"), format_args!("{}, as in {:?}", self.tokens(), self.facts.question("capital", "Dallas"))));
        }
        let city = super::QuestionToken::City.position(tokens);
        let mut swap = Swap { changes: Vec::new(), control: Vec::new() };
        for layer in 0..config.layers {
            let (old, new) = (self.typical(layer, from, config.features), self.typical(layer, to, config.features));
            let kept = |feature: usize| new.iter().any(|(other, _)| *other == feature);
            let goals: Vec<(usize, f32)> = old.iter().filter(|(feature, _)| !kept(*feature)).map(|(feature, _)| (*feature, 0.0)).chain(new.iter().copied()).collect();
            let mut taken: Vec<usize> = goals.iter().map(|(feature, _)| *feature).collect();
            for (feature, goal) in goals {
                swap.changes.push(Intervention::set((layer, feature, city), goal));
                let other = std::iter::repeat_with(|| random.random_range(0..features)).find(|other| !taken.contains(other)).unwrap_or(feature);
                taken.push(other);
                let now = local.code().layers[layer].value(city, feature as u32);
                swap.control.push(Intervention::add((layer, other, city), goal - now));
            }
        }
        Ok(swap)
    }

    /// Swaps states in `count` two-hop questions, drawn at random, whose answers the model knows; beside each as many random
    /// features of the same layers, moved by as much.
    ///
    /// # Errors
    /// `BadConfig` naming the field; `BadInput` for no swap; `Interrupted`; those of a run.
    pub fn check_swaps(&self, count: usize, config: &SwapConfig) -> Result<SwapCheck> {
        if count == 0 {
            return Err(Error::expected(ErrorKind::BadInput, "StateFeatures::check_swaps: count", 0, "at least 1"));
        }
        let mut random = StdRng::seed_from_u64(config.seed);
        let mut task = Task::new("swaps", count as u64, "questions");
        let mut swaps = Vec::new();
        while swaps.len() < count {
            if stop_requested() {
                return Err(Error::new(ErrorKind::Interrupted, "stopped while states were swapped"));
            }
            let (attribute, city, states) = draw(&self.facts, &mut random)?;
            swaps.push(self.effect(&attribute, &city, states, config, &mut random)?);
            task.advance(swaps.len() as u64);
        }
        let check = SwapCheck { config: config.clone(), swaps };
        task.finish(check.to_string());
        Ok(check)
    }

    fn effect(&self, attribute: &str, city: &str, states: [usize; 2], config: &SwapConfig, random: &mut StdRng) -> Result<SwapEffect> {
        let facts = &self.facts;
        let [from, to] = states.map(|state| &facts.states[state]);
        let local = self.replacement.local(facts.question(attribute, city), &Default::default())?;
        let swap = self.changes(&local, states, config, random)?;
        let mut answers: Vec<String> = Vec::with_capacity(facts.states.len());
        for answer in [from, to].into_iter().chain(&facts.states).filter_map(|state| state.attributes.get(attribute)) {
            if !answers.contains(answer) {
                answers.push(answer.clone());
            }
        }
        let model = self.replacement.model();
        let ids = answers.iter().map(|answer| one_token(model, answer)).collect::<Result<Vec<_>>>()?;
        let own = Comparison::of(&local, &swap.changes, config.mode, &ids)?;
        let control = Comparison::of(&local, &swap.control, config.mode, &ids)?;
        let said = |token: u32| model.token_text(token).trim().to_string();
        Ok(SwapEffect {
            city: city.to_string(),
            attribute: attribute.to_string(),
            state: to.name.clone(),
            answers,
            after: said(own.likeliest),
            predicted: own.predicted,
            measured: own.measured,
            control_after: said(control.likeliest),
            control_measured: control.measured,
        })
    }
}

/// The id of a name, which is one token.
fn one_token(model: &Model, name: &str) -> Result<u32> {
    match model.tokenizer()?.encode(&format!(" {name}"))?[..] {
        [id] => Ok(id),
        ref ids => Err(Error::expected(ErrorKind::Mismatch, format_args!("{name:?}"), format_args!("{} tokens", ids.len()), "one token, as in the model that comes with the library")),
    }
}

/// An attribute, a city, and the numbers of its state and of another one whose answer differs.
fn draw(facts: &Facts, random: &mut StdRng) -> Result<(String, String, [usize; 2])> {
    for _ in 0..DRAWS {
        let (from, to) = (random.random_range(0..facts.states.len()), random.random_range(0..facts.states.len()));
        let (Some(attribute), Some(city)) = (facts.attributes.choose(random), facts.states[from].cities.choose(random)) else { continue };
        let answers = [from, to].map(|state| facts.states[state].attributes.get(attribute));
        if from != to && answers.iter().all(Option::is_some) && answers[0] != answers[1] {
            return Ok((attribute.clone(), city.clone(), [from, to]));
        }
    }
    Err(Error::expected(ErrorKind::BadFile, "known.json: states", "no two states whose answers differ", "such states"))
}

impl std::fmt::Display for SwapCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let r = |agreement: Option<f64>| agreement.map_or_else(|| "–".to_string(), |r| format!("{r:.3}"));
        let SwapFigures { new_answers, control_new_answers, predicted_measured, predicted_control_measured } = self.figures();
        writeln!(f, "{} swaps of {} features in each of {} layers: {:.1} % give the new state's answer", self.swaps.len(), self.config.features, self.config.layers, 100.0 * new_answers)?;
        writeln!(f, "random features moved as much: {:.1} % give it", 100.0 * control_new_answers)?;
        write!(f, "changes of the answers of all states, predicted against measured: r = {}; against what the random features do: r = {} (means over swaps)", r(predicted_measured), r(predicted_control_measured))
    }
}
