//! Generation under interventions: what the changed model goes on to say.
//!
//! In: a prompt, changes, what is held. Out: a [`Generation`]. The prompt is run once with the
//! interventions and whatever the [`Mode`] holds; its keys and values are those of the changed run. Then
//! token after token through the cache with nothing held: slices without an end go on to apply, all others
//! concern the prompt alone (`method.md` §2.7; circuit-tracer's `feature_intervention_generate`, tokens
//! equal, logits to 1e-4). Cost: two passes over the prompt, one if nothing is held, then one a token.

use super::pass::{Plan, Writes};
use super::{InterveneConfig, Intervention, Mode};
use crate::error::Result;
use crate::model::{Capture, Freeze, GenerateConfig, Generation, Logits, MlpSite, Past, Step};
use crate::replacement::Replacement;
use crate::text::Prompt;

impl Replacement {
    /// Continues a prompt with features changed: `config` says what is held on the prompt, `generate` how tokens are
    /// drawn.
    ///
    /// ```no_run
    /// # use cltlab::{intervene::{InterveneConfig, Intervention, Positions}, model::GenerateConfig, replacement::Replacement};
    /// # fn f(replacement: Replacement) -> cltlab::Result<()> {
    /// let doubled = Intervention::scale((3, 120, Positions::From(1)), 2.0);
    /// println!("{}", replacement.generate("Once upon a time", &[doubled], &InterveneConfig::default(), &GenerateConfig::default())?);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Replacement::stream`].
    pub fn generate(&self, prompt: impl Into<Prompt>, interventions: &[Intervention], config: &InterveneConfig, generate: &GenerateConfig) -> Result<Generation> {
        self.stream(prompt, interventions, config, generate, &mut |_| true)
    }

    /// As [`Replacement::generate`], each step shown to `on`, which may return false to end. Without interventions it is
    /// [`Model::stream`](crate::Model::stream) on the same ids.
    ///
    /// # Errors
    /// `BadInput` for a layer, feature or position that does not exist (slices without an end may begin
    /// after the prompt), or a value that is not finite; as [`Replacement::tokens`]; `BadConfig`; `NotFinite`.
    pub fn stream(
        &self,
        prompt: impl Into<Prompt>,
        interventions: &[Intervention],
        config: &InterveneConfig,
        generate: &GenerateConfig,
        on: &mut dyn FnMut(&Step<'_>) -> bool,
    ) -> Result<Generation> {
        let model = self.model();
        config.validate(model.layers())?;
        let tokens = self.tokens(prompt)?;
        let end = tokens.len().saturating_add(generate.max_tokens).min(model.context());
        self.check(interventions, tokens.len(), end)?;
        if interventions.is_empty() {
            return model.stream(tokens, generate, on);
        }
        let held = Plan { replacement: self, interventions, mode: config.mode };
        let after = Plan { mode: Mode::Open, ..held };
        let own = match config.mode {
            Mode::Open => None,
            _ => Some(model.run(&tokens, &Capture { logits: Logits::None, ..Capture::default() })?),
        };
        let mut start = 0;
        model.stream_by(&tokens, generate, on, &mut |input: &[u32], cache: &mut Vec<Past>| {
            let span = start..start + input.len();
            let (plan, run) = if start == 0 { (&held, own.as_ref()) } else { (&after, None) };
            let mut writes = Writes::new(self, input.len());
            start = span.end;
            let mut splice = |layer: usize, site: &MlpSite<'_>| plan.written(layer, site, run, &span, &mut writes).map(Some);
            model.next_logits(input, cache, run.map_or_else(Freeze::none, |run| plan.freeze(run)), &mut splice)
        })
    }
}
