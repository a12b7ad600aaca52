//! `cltlab states`: what is known about the model that comes with the library, and what a CLT of it says about it.

use clap::Args;
use cltlab::prelude::*;
use cltlab::states::{Facts, QuestionToken, StateFeatures, SwapConfig};
use serde_json::Value;
use std::path::PathBuf;

#[derive(Args)]
pub struct StatesArgs {
    /// A CLT of the model: which of its features stand for a state, and what swapping them does
    #[arg(long)]
    clt: Option<String>,
    /// The model, or a folder that its recipe made with another seed
    #[arg(long, default_value = "states")]
    model: String,
    /// Swaps of states in questions drawn at random
    #[arg(long, default_value_t = 200)]
    swaps: usize,
    /// Features of a state swapped in each layer
    #[arg(long, default_value_t = SwapConfig::default().features)]
    features: usize,
    /// Layers, from the first, whose features are swapped at the city
    #[arg(long, default_value_t = SwapConfig::default().layers)]
    layers: usize,
    /// Seed of the questions and of the random features
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print for each state the feature that tells it best, at the city and at the last token
    #[arg(long, requires = "clt")]
    list: bool,
    /// State features, each swap and the figures as JSON
    #[arg(short, long, requires = "clt")]
    output: Option<PathBuf>,
    /// Predicted against measured changes, as .svg or .png
    #[arg(long, requires = "clt")]
    picture: Option<PathBuf>,
}

/// Prints what is known; with a CLT its state features and its swaps.
pub fn states(args: &StatesArgs) -> Result<()> {
    let Some(clt) = &args.clt else {
        println!("{}", known(&Facts::load()?));
        return Ok(());
    };
    let model = Model::load(&args.model, &Default::default())?;
    let replacement = Replacement::new(&model, &Clt::load(clt, &Default::default())?)?;
    let features = StateFeatures::find(&replacement)?;
    println!("{features}");
    if args.list {
        list(&features);
    }
    let config = SwapConfig { layers: args.layers, features: args.features, seed: args.seed, ..SwapConfig::default() };
    let check = features.check_swaps(args.swaps, &config)?;
    println!("{check}");
    if let Some(path) = &args.picture {
        check.picture().ok_or_else(|| Error::new(ErrorKind::NotFinite, "no change that was measured is finite"))?.save(path)?;
    }
    let whole = || serde_json::json!({"features": features.best(), "figures": check.figures(), "check": check});
    args.output.as_ref().map_or(Ok(()), |path| cltlab::internal::files::write_json(path, &whole()))
}

/// For each state its best feature at each place, as layer_feature, with its F1.
fn list(features: &StateFeatures) {
    println!("{:>16} {:>18} {:>18}", "state", "at the city", "at the last token");
    for state in &features.facts().states {
        let best = |place: QuestionToken| {
            let of = features.best().iter().filter(|feature| feature.state == state.name && feature.place == place);
            of.max_by(|a, b| a.f1.total_cmp(&b.f1)).map_or_else(String::new, |best| format!("{}_{} {:.2}", best.layer, best.feature, best.f1))
        };
        println!("{:>16} {:>18} {:>18}", state.name, best(QuestionToken::City), best(QuestionToken::Last));
    }
}

/// Facts, held-out questions, and the recipe's figures of each seed.
fn known(facts: &Facts) -> String {
    let cities: usize = facts.states.iter().map(|state| state.cities.len()).sum();
    let held: Vec<String> = facts.held_out.iter().map(|(name, questions)| format!("{} {name}", questions.len())).collect();
    let mut text = format!("{} states, {cities} cities, {} attributes; held-out two-hop questions: {}", facts.states.len(), facts.attributes.len(), held.join(", "));
    for figures in &facts.measured {
        let seed = figures["seed"].as_u64();
        text += &format!("\nseed {}{}", figures["seed"], if seed == Some(facts.seed) { " (this model)" } else { "" });
        for group in ["accuracy", "probe", "patch", "ablation", "skills"] {
            for (name, value) in figures[group].as_object().into_iter().flatten() {
                text += &format!("\n  {:<28} {}", format!("{group} {name}"), numbers(value));
            }
        }
    }
    text
}

/// One number, or one for each layer.
fn numbers(value: &Value) -> String {
    match value.as_array() {
        Some(list) => list.iter().map(numbers).collect::<Vec<_>>().join("  "),
        None => value.as_f64().map_or_else(|| value.to_string(), |number| format!("{number:.3}")),
    }
}
