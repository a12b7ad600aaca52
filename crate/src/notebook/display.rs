//! Display: how a cell's last value is shown.
//!
//! evcxr calls a value's own `evcxr_display`, which prints content blocks on stdout:
//!
//! ```text
//! EVCXR_BEGIN_CONTENT text/html
//! ...
//! EVCXR_END_CONTENT
//! ```
//!
//! Each value here prints itself as HTML (a card, a table, a picture within `<img>`) and as plain
//! text, its `Display`. Works the same on the stock kernel.

use crate::clt::{Clt, Format};
use crate::device::format_bytes;
use crate::eval::Report;
use crate::graph::{Graph, GraphDifference, MergedGraph, QkAttribution};
use crate::intervene::{Deviation, EdgeCheck, Effect, SupernodeCheck};
use crate::model::{CltNeed, Generation, Model, Run, Summary};
use crate::picture::html::{self, Align};
use crate::picture::Picture;
use crate::selftest::{Ceilings, SelfTest};
use crate::train::{History, Plan};
use candle_core::DType;
use std::io::Write;

/// Shows `html`, with `text` for those who cannot show it, as the cell's value. One write, so that
/// threads that print cannot tear it apart.
pub fn show(html: &str, text: &str) {
    // A closed stdout means that the kernel is gone; there is nobody left to tell.
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(blocks(html, text).as_bytes()).and_then(|()| out.flush());
}

/// What [`show`] writes. The end mark cannot occur inside: in HTML its underscores become
/// references, in text a sign without width is put between. Control characters are dropped from text.
pub fn blocks(html: &str, text: &str) -> String {
    const END: &str = "EVCXR_END_CONTENT";
    let html = html.replace(END, "EVCXR&#95;END&#95;CONTENT");
    let text: String = text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect();
    let text = text.replace(END, "EVCXR_END\u{2060}_CONTENT");
    format!("EVCXR_BEGIN_CONTENT text/html\n{html}\n{END}\nEVCXR_BEGIN_CONTENT text/plain\n{text}\n{END}\n")
}

impl Picture {
    /// Shows the picture in a notebook.
    pub fn evcxr_display(&self) {
        show(&self.html(), &self.to_string());
    }
}

impl Model {
    /// Shows a card in a notebook.
    pub fn evcxr_display(&self) {
        let c = self.config();
        let heads = if c.kv_heads == c.heads { c.heads.to_string() } else { format!("{} (of {} kv)", c.heads, c.kv_heads) };
        let facts = [
            ("architecture", c.architecture.clone()),
            ("layers L", c.layers.to_string()),
            ("width d", c.width.to_string()),
            ("MLP width", c.mlp_width.to_string()),
            ("heads", heads),
            ("vocabulary V", c.vocab.to_string()),
            ("context", format!("{} tokens", c.context)),
            ("parameters", format!("{} in {}", html::count(c.parameters() as f64), self.dtype().as_str())),
            ("special first token", self.special_token().map_or_else(|| "none".to_string(), |id| format!("{:?}", self.token_text(id)))),
            ("fingerprint", self.fingerprint().to_string()),
        ];
        show(&html::facts(&format!("Model {}", self.name()), &facts), &self.to_string());
    }
}

impl SelfTest {
    /// Shows its checks as a table in a notebook.
    pub fn evcxr_display(&self) {
        let columns = [("", Align::Left), ("compared", Align::Left), ("deviation", Align::Right), ("allowed", Align::Right)];
        let row = |check: &crate::selftest::Check| {
            let verdict = if check.passed() { "ok" } else { "FAILED" };
            vec![verdict.to_string(), check.name.clone(), format!("{:.1e}", check.deviation), format!("{:.0e}", check.bound)]
        };
        let rows: Vec<Vec<String>> = self.checks.iter().map(row).collect();
        show(&format!("<p>Self-test of {}</p>{}", html::escape(&self.device), html::table(&columns, &rows)), &self.to_string());
    }
}

impl Ceilings {
    /// Shows the device's limits in a notebook.
    pub fn evcxr_display(&self) {
        show(&format!("<p>{}</p>", html::escape(&self.to_string())), &self.to_string());
    }
}

impl Summary {
    /// Shows parts and needs as tables in a notebook.
    pub fn evcxr_display(&self) {
        let columns = [("part", Align::Left), ("shape", Align::Left), ("how many", Align::Right), ("parameters", Align::Right)];
        let mut rows: Vec<Vec<String>> = self
            .parts
            .iter()
            .map(|part| vec![part.name.to_string(), format!("{:?}", part.shape), part.count.to_string(), html::count(part.parameters as f64)])
            .collect();
        rows.push(vec!["<b>all</b>".to_string(), String::new(), String::new(), html::count(self.parameters() as f64)]);
        let memory = format!(
            "Weights {} in f32, {} in bf16 or f16; keys and values of a full context {}.",
            format_bytes(self.memory(DType::F32)),
            format_bytes(self.memory(DType::BF16)),
            format_bytes(self.cache(self.config.context))
        );
        let usual = self.usual_clts();
        let headings = usual[0].figures().map(|(heading, _)| heading);
        let headings: Vec<_> = ["features per layer", "weights"].into_iter().chain(headings).map(|heading| (heading, Align::Right)).collect();
        let row = |clt: &CltNeed| {
            let bytes = clt.figures().map(|(_, bytes)| format_bytes(bytes));
            [clt.features.to_string(), html::count(clt.parameters as f64)].into_iter().chain(bytes).collect::<Vec<_>>()
        };
        let clts: Vec<_> = usual.iter().map(row).collect();
        let tables = format!(
            "{}<div>{}</div><div style=\"margin-top:6px\">A CLT for it: memory to use it by dtype, to train it here, and with stored gradients elsewhere</div>{}",
            html::table(&columns, &rows),
            html::escape(&memory),
            html::table(&headings, &clts)
        );
        show(&html::card(&format!("Summary of {}", self.name), &tables), &self.to_string());
    }
}

impl Run {
    /// Shows the prompt and the likeliest next tokens in a notebook.
    pub fn evcxr_display(&self) {
        let prompt: String = self.token_text.iter().map(|text| format!("{}<wbr>", html::token(text))).collect();
        let next = match self.top_next_text(5) {
            Ok(top) if top.is_empty() => "<div><small>no logits were kept</small></div>".to_string(),
            Ok(top) => {
                let rows: Vec<Vec<String>> = top.iter().map(|(text, p)| vec![html::token(text), format!("{:.2} %", 100.0 * p)]).collect();
                html::table(&[("next token", Align::Left), ("probability", Align::Right)], &rows)
            }
            Err(error) => html::escape(&error.to_string()),
        };
        show(&html::card(&format!("Run of {} tokens", self.tokens.len()), &format!("<div>{prompt}</div>{next}")), &self.to_string());
    }
}

impl Generation {
    /// Shows the text, and how it ended, in a notebook.
    pub fn evcxr_display(&self) {
        let rate = self.tokens.len() as f64 / self.seconds;
        let line = format!("{} tokens after {}, {rate:.1} tokens/s; {}", self.tokens.len(), self.prompt.len(), self.stop);
        show(&format!("{}<div><small>{}</small></div>", html::passage(&self.text), html::escape(&line)), &self.to_string());
    }
}

impl Format {
    /// Shows the name in a notebook.
    pub fn evcxr_display(&self) {
        show(&html::facts("Format", &[("name", self.to_string())]), &self.to_string());
    }
}

impl Clt {
    /// Shows a card in a notebook.
    pub fn evcxr_display(&self) {
        let c = self.config();
        let facts = [
            ("model", if c.model_name.is_empty() { "unnamed".to_string() } else { c.model_name.clone() }),
            ("layers L", c.layers.to_string()),
            ("width d", c.width.to_string()),
            ("features per layer F", c.features.to_string()),
            ("activation", c.activation.label()),
            ("reads", c.input.hook().to_string()),
            ("decoder matrices", c.decoders().to_string()),
            ("weights", html::count(c.parameters() as f64)),
        ];
        show(&html::facts("Cross-layer transcoder", &facts), &self.to_string());
    }
}

impl History {
    /// Shows the training curves in a notebook.
    pub fn evcxr_display(&self) {
        let line = self.to_string();
        show(&format!("<div>{}<div><small>{}</small></div></div>", self.picture().html(), html::escape(&line)), &line);
    }
}

impl Plan {
    /// Shows memory and times as tables in a notebook.
    pub fn evcxr_display(&self) {
        let lines = |lines: &[String]| lines.iter().map(|line| format!("<div><small>{}</small></div>", html::escape(line))).collect::<String>();
        let table = |(headings, rows): (Vec<&str>, Vec<Vec<String>>)| {
            let columns: Vec<_> = headings.iter().enumerate().map(|(at, heading)| (*heading, if at == 0 { Align::Left } else { Align::Right })).collect();
            let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| html::escape(cell)).collect()).collect();
            html::table(&columns, &rows)
        };
        let [title, heads @ ..] = self.heads();
        let body = format!("{}{}{}{}", lines(&heads), table(self.memory_table()), table(self.time_table()), lines(&self.remarks()));
        show(&html::card(&title, &body), &self.to_string());
    }
}

impl Report {
    /// Shows charts, figures and the table of layers in a notebook.
    pub fn evcxr_display(&self) {
        show(&self.html(), &self.to_string());
    }
}

impl Graph {
    /// Shows picture, scores and strongest edges in a notebook.
    pub fn evcxr_display(&self) {
        show(&self.html(), &self.to_string());
    }
}

impl GraphDifference {
    /// Shows what one graph has more of than another in a notebook.
    pub fn evcxr_display(&self) {
        show(&self.html(), &self.to_string());
    }
}

impl MergedGraph {
    /// Shows the mean graph, and the features that most prompts share, in a notebook.
    pub fn evcxr_display(&self) {
        show(&self.html(), &self.to_string());
    }
}

impl QkAttribution {
    /// Shows the strongest pairs of a score's parts in a notebook.
    pub fn evcxr_display(&self) {
        show(&self.html(), &self.to_string());
    }
}

impl Effect {
    /// Shows predicted beside measured changes in a notebook.
    pub fn evcxr_display(&self) {
        show(&self.html(), &self.to_string());
    }
}

impl SupernodeCheck {
    /// Shows predicted and measured effects of groups beside random features' in a notebook.
    pub fn evcxr_display(&self) {
        show(&self.html(), &self.to_string());
    }
}

impl EdgeCheck {
    /// Shows the deviations as a small table in a notebook.
    pub fn evcxr_display(&self) {
        let row = |name: &str, d: &Deviation| {
            vec![name.to_string(), d.effects.to_string(), format!("{:.3e}", d.largest), format!("{:.1e}", d.max_abs), format!("{:.1e}", d.relative())]
        };
        let columns = [
            ("effects on", Align::Left),
            ("compared", Align::Right),
            ("largest effect", Align::Right),
            ("largest difference", Align::Right),
            ("relative", Align::Right),
        ];
        let table = html::table(&columns, &[row("features", &self.features), row("logits", &self.logits)]);
        show(&html::card(&format!("Edges against {} interventions", self.sources), &table), &self.to_string());
    }
}
