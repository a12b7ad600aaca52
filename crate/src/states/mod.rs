//! The model that comes with the library, and what is known about it.
//!
//! `Model::load("states")` is a Llama of 6 layers that writes simple English, knows 50 states of the US, 405 of their cities
//! and ten attributes of each state, and answers questions that need both ("The capital of the state containing Dallas is")
//! without having seen them. In: a [`Replacement`] of it. Out: [`StateFeatures`], the features that stand for a state, and a
//! [`SwapCheck`], whether another state's features in their place give that state's answers. Its card with all figures is
//! `models/states/README.md`. Source of the question: Anthropic's *Circuit Tracing*, section on multi-step reasoning.

mod features;
mod swap;

pub use features::{QuestionToken, StateFeature, StateFeatures};
pub use swap::{Swap, SwapCheck, SwapConfig, SwapEffect, SwapFigures};

use crate::error::{Error, ErrorKind, Result};
use crate::included;
use std::collections::BTreeMap;

/// What the model was taught, which questions were held out, and what was measured.
///
/// ```
/// use cltlab::states::Facts;
/// let facts = Facts::load()?;
/// assert_eq!(facts.question("capital", "Dallas"), "The capital of the state containing Dallas is");
/// assert_eq!(facts.answer("capital", "Dallas")?, "Austin");
/// # Ok::<(), cltlab::Error>(())
/// ```
#[derive(Clone, Debug, serde::Deserialize)]
pub struct Facts {
    /// A two-hop question, with `{attribute}` and `{city}` in it.
    pub question: String,
    /// The states, in alphabetical order.
    pub states: Vec<State>,
    /// Names of the attributes.
    pub attributes: Vec<String>,
    /// Two-hop questions that are in no training text, (city, attribute): `pairs`, both of which are in other questions;
    /// `attributes`, whose state and attribute are in no question together; `cities`, whose city is in no question.
    pub held_out: BTreeMap<String, Vec<(String, String)>>,
    /// What the recipe measured on each seed: accuracies, probe, patches, ablations, by name.
    pub measured: Vec<serde_json::Value>,
    /// Which of the seeds is the library's model.
    pub seed: u64,
}

/// One state.
#[derive(Clone, Debug, serde::Deserialize)]
pub struct State {
    /// Its name, one token.
    pub name: String,
    /// Its cities, each one token.
    pub cities: Vec<String>,
    /// The attributes that it has, each value one token.
    pub attributes: BTreeMap<String, String>,
}

impl Facts {
    /// Reads what the library holds.
    ///
    /// # Errors
    /// None but for a library that was built from damaged files: `BadFile`.
    pub fn load() -> Result<Self> {
        included::json("known.json", included::KNOWN)
    }

    /// The two-hop question about an attribute of a city's state.
    pub fn question(&self, attribute: &str, city: &str) -> String {
        self.question.replace("{attribute}", attribute).replace("{city}", city)
    }

    /// The state of a city; `BadInput` for one that the model was not taught.
    fn state_of(&self, city: &str) -> Result<&State> {
        self.states.iter().find(|state| state.cities.iter().any(|name| name == city)).ok_or_else(|| unknown("city", city, "a city of Facts::states"))
    }

    /// The answer to a two-hop question.
    ///
    /// # Errors
    /// `BadInput` for a city or an attribute that the model was not taught.
    pub fn answer(&self, attribute: &str, city: &str) -> Result<&str> {
        let state = self.state_of(city)?;
        state.attributes.get(attribute).map(String::as_str).ok_or_else(|| {
            let known: Vec<&str> = state.attributes.keys().map(String::as_str).collect();
            unknown("attribute", attribute, &format!("one that {} has: {}", state.name, known.join(", ")))
        })
    }

    /// The place of a state in [`Facts::states`].
    fn index(&self, state: &str) -> Result<usize> {
        self.states.iter().position(|known| known.name == state).ok_or_else(|| unknown("state", state, "a state of Facts::states, such as Texas"))
    }
}

fn unknown(what: &str, got: &str, expected: &str) -> Error {
    Error::expected(ErrorKind::BadInput, what, format_args!("{got:?}"), expected)
}
