//! Where a CLT reads and writes, in the names that other programs have for it: TransformerLens hooks,
//! module paths with `.input` or `.output`.

use super::import::CltLoadConfig;
use crate::activations::InputSite;
use crate::error::{Error, ErrorKind, Result};
use crate::model::OutputSite;

/// Norms before the MLP, as model families name them.
const BEFORE: [&str; 6] = ["ln_2", "ln2", "post_attention_layernorm", "pre_feedforward_layernorm", "post_attention_norm", "ffn_norm"];

/// The input site that `text` names. `post_attention_layernorm` is Llama's; Gemma has another norm of that
/// name, which no CLT reads.
pub(super) fn input(text: &str) -> Option<InputSite> {
    if let Some(site) = [InputSite::ResidMid, InputSite::MlpIn, InputSite::Normalized].into_iter().find(|site| text.ends_with(site.hook())) {
        return Some(site);
    }
    // TransformerLens' copy of the residual stream for the MLP's norm.
    if text.ends_with("hook_mlp_in") {
        return Some(InputSite::ResidMid);
    }
    let (module, end) = text.rsplit_once('.')?;
    let name = module.rsplit('.').next()?;
    match end {
        "input" if BEFORE.contains(&name) => Some(InputSite::ResidMid),
        "output" if BEFORE.contains(&name) => Some(InputSite::MlpIn),
        "input" if name == "mlp" => Some(InputSite::MlpIn),
        _ => None,
    }
}

/// The output site that `text` names.
pub(super) fn output(text: &str) -> Option<OutputSite> {
    if text.ends_with("mlp.output") || text.ends_with(OutputSite::BeforeNorm.hook()) {
        return Some(OutputSite::BeforeNorm);
    }
    (text.ends_with(OutputSite::AfterNorm.hook()) || text.ends_with("post_feedforward_layernorm.output")).then_some(OutputSite::AfterNorm)
}

/// Both sites: what `import` says, else what the names at `place` say.
pub(super) fn both(import: &CltLoadConfig, place: &str, reads: Option<&str>, writes: Option<&str>) -> Result<(InputSite, OutputSite)> {
    let unknown = |field: &str, got: Option<&str>| {
        let got = got.map_or_else(|| "no name".to_string(), |name| format!("'{name}'"));
        Error::expected(ErrorKind::Unsupported, format_args!("{place}: {field}"), got, "the name of a site that is captured here").help(format!("say it: CltLoadConfig::{field}"))
    };
    let input = import.input.or_else(|| reads.and_then(input)).ok_or_else(|| unknown("input", reads))?;
    let output = import.output.or_else(|| writes.and_then(output)).ok_or_else(|| unknown("output", writes))?;
    Ok((input, output))
}
