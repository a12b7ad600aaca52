//! Which features stand for a state: what fires on the questions about its cities, and on no others.

use super::Facts;
use crate::clt::SparseCode;
use crate::error::{Error, ErrorKind, Result};
use crate::model::Capture;
use crate::progress::{stop_requested, Task};
use crate::replacement::Replacement;
use rayon::prelude::*;

/// The attribute that the questions ask for: every state has it.
const ASKED: &str = "capital";

/// Where in a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum QuestionToken {
    /// At the city's token.
    City,
    /// At the last token, which the answer follows.
    Last,
}

impl QuestionToken {
    pub(crate) const ALL: [QuestionToken; 2] = [QuestionToken::City, QuestionToken::Last];

    /// Its position among the `tokens` of a question.
    pub(super) fn position(self, tokens: usize) -> usize {
        tokens - if self == QuestionToken::City { 2 } else { 1 }
    }
}

/// A feature beside the state that it tells best.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct StateFeature {
    /// The state.
    pub state: String,
    /// Layer that the feature reads.
    pub layer: usize,
    /// Number within the layer.
    pub feature: usize,
    /// Where it was looked at.
    pub place: QuestionToken,
    /// F1 of "it fires" as a sign of the state, over the questions about all cities: 1 where it fires on the state's cities
    /// and on no others.
    pub f1: f64,
    /// Mean activation over the state's cities.
    pub mean: f32,
}

/// Activations of all features on the questions about all cities.
pub struct StateFeatures {
    pub(super) facts: Facts,
    pub(super) replacement: Replacement,
    /// For each layer, at both places: mean over each state's cities, `[states · features]`.
    means: Vec<[Vec<f32>; 2]>,
    best: Vec<StateFeature>,
    tokens: usize,
}

impl StateFeatures {
    /// Runs the CLT on "The capital of the state containing … is" for every city: 405 forward passes, some two seconds.
    ///
    /// ```no_run
    /// use cltlab::prelude::*;
    /// use cltlab::states::StateFeatures;
    /// let model = Model::load("states", &Default::default())?;
    /// let clt = Clt::load("runs/clt", &Default::default())?;
    /// let features = StateFeatures::find(&Replacement::new(&model, &clt)?)?;
    /// println!("{features}");
    /// # Ok::<(), cltlab::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Mismatch` for another model; `Interrupted`; those of a run.
    pub fn find(replacement: &Replacement) -> Result<Self> {
        let facts = Facts::load()?;
        let owners: Vec<usize> = facts.states.iter().enumerate().flat_map(|(s, state)| state.cities.iter().map(move |_| s)).collect();
        let mut codes = Vec::with_capacity(owners.len());
        let mut tokens = 0;
        let mut task = Task::new("state features", owners.len() as u64, "questions");
        for city in facts.states.iter().flat_map(|state| &state.cities) {
            if stop_requested() {
                return Err(Error::new(ErrorKind::Interrupted, "stopped while the questions about cities were run"));
            }
            let ids = replacement.tokens(facts.question(ASKED, city))?;
            tokens = check(replacement, &ids, tokens)?;
            codes.push(replacement.clt().encode(&replacement.model().run(ids, &Capture::mlp())?)?);
            task.advance(codes.len() as u64);
        }
        task.finish("");
        let (layers, features) = (replacement.clt().layers(), replacement.clt().features());
        let found: Vec<([Vec<f32>; 2], Vec<StateFeature>)> = (0..layers).into_par_iter().map(|layer| {
            let [city, last] = QuestionToken::ALL.map(|place| at(&facts, &owners, &codes, (layer, place, place.position(tokens)), features));
            ([city.0, last.0], city.1.into_iter().chain(last.1).collect())
        }).collect();
        let (means, best): (Vec<_>, Vec<_>) = found.into_iter().unzip();
        Ok(StateFeatures { facts, replacement: replacement.clone(), means, best: best.concat(), tokens })
    }

    /// For each layer, place and state the feature with the highest F1.
    pub fn best(&self) -> &[StateFeature] {
        &self.best
    }

    /// How many states have a feature of at least this F1 in `layer` at `place`.
    pub(crate) fn told(&self, layer: usize, place: QuestionToken, f1: f64) -> usize {
        self.best.iter().filter(|feature| feature.layer == layer && feature.place == place && feature.f1 >= f1).count()
    }

    /// What is known about the model.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The `count` features of `layer` at the city whose mean activation over the state's cities exceeds that over all
    /// states most, each with that mean.
    pub(super) fn typical(&self, layer: usize, state: usize, count: usize) -> Vec<(usize, f32)> {
        let means = &self.means[layer][0];
        let (states, features) = (self.facts.states.len(), self.replacement.clt().features());
        let value = |s: usize, f: usize| means[s * features + f];
        let mut excess: Vec<(f32, usize)> = (0..features).map(|f| (value(state, f) - (0..states).map(|s| value(s, f)).sum::<f32>() / states as f32, f)).collect();
        excess.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        excess.into_iter().take(count).filter(|(excess, _)| *excess > 0.0).map(|(_, f)| (f, value(state, f))).collect()
    }

    /// Tokens of a question.
    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }
}

/// Each question has as many tokens as the others, which names of one token make sure.
fn check(replacement: &Replacement, ids: &[u32], before: usize) -> Result<usize> {
    if before != 0 && ids.len() != before || ids.len() < 3 {
        return Err(Error::expected(ErrorKind::Mismatch, format_args!("questions about cities, to {}", replacement.model().name()), format_args!("{before} and {} tokens", ids.len()), "as many for each city")
            .help("state features are those of the model that comes with the library: Model::load(\"states\")"));
    }
    Ok(ids.len())
}

/// Means over each state's cities, and for each state the feature that tells it best.
fn at(facts: &Facts, owners: &[usize], codes: &[SparseCode], (layer, place, position): (usize, QuestionToken, usize), features: usize) -> (Vec<f32>, Vec<StateFeature>) {
    let states = facts.states.len();
    let (mut sums, mut fires, mut all) = (vec![0f32; states * features], vec![0u32; states * features], vec![0u32; features]);
    for (state, code) in owners.iter().zip(codes) {
        let (ids, values) = code.layers[layer].token(position);
        for (id, value) in ids.iter().zip(values) {
            sums[state * features + *id as usize] += value;
            fires[state * features + *id as usize] += 1;
            all[*id as usize] += 1;
        }
    }
    let best = facts.states.iter().enumerate().map(|(s, state)| {
        let cities = state.cities.len();
        let f1 = |f: usize| 2.0 * f64::from(fires[s * features + f]) / (f64::from(all[f]) + cities as f64);
        let (feature, f1) = (0..features).map(|f| (f, f1(f))).fold((0, -1.0), |best, next| if next.1 > best.1 { next } else { best });
        StateFeature { state: state.name.clone(), layer, feature, place, f1, mean: sums[s * features + feature] / cities as f32 }
    });
    let best = best.collect();
    for (s, state) in facts.states.iter().enumerate() {
        sums[s * features..(s + 1) * features].iter_mut().for_each(|sum| *sum /= state.cities.len() as f32);
    }
    (sums, best)
}

impl std::fmt::Display for StateFeatures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "States with one feature that fires on their cities and few others, of {}:", self.facts.states.len())?;
        write!(f, "{:>8} {:>18} {:>18}", "layer", "at the city", "at the last token")?;
        write!(f, "\n{:>8} {:>9} {:>8} {:>9} {:>8}", "", "F1 >= .8", ">= .6", "F1 >= .8", ">= .6")?;
        for layer in 0..self.means.len() {
            let told = |place, f1| self.told(layer, place, f1);
            write!(f, "\n{layer:>8} {:>9} {:>8} {:>9} {:>8}", told(QuestionToken::City, 0.8), told(QuestionToken::City, 0.6), told(QuestionToken::Last, 0.8), told(QuestionToken::Last, 0.6))?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for StateFeatures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}
