//! Cards: model, CLT, run, text, plan and edge check as small tables.

use super::html::{row, Align, Html};
use super::words::count;
use super::{Picture, Show};
use crate::clt::{Clt, Format};
use crate::device::format_bytes;
use crate::intervene::{Deviation, EdgeCheck};
use crate::model::{CltNeed, Generation, Model, Run, Summary};
use crate::progress::TrainSample;
use crate::train::{History, Plan};
use candle_core::{DType, Tensor};

impl Show for Model {
    fn text(&self) -> String {
        self.to_string()
    }

    fn html(&self) -> Html {
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
            ("parameters", format!("{} in {}", count(c.parameters() as f64), self.dtype().as_str())),
            ("special first token", self.special_token().map_or_else(|| "none".to_string(), |id| format!("{:?}", self.token_text(id)))),
            ("fingerprint", self.fingerprint().to_string()),
        ];
        Html::facts(&format!("Model {}", self.name()), &facts)
    }
}

impl Show for Summary {
    fn text(&self) -> String {
        self.to_string()
    }

    fn html(&self) -> Html {
        let columns = [("part", Align::Left), ("shape", Align::Left), ("how many", Align::Right), ("parameters", Align::Right)];
        let parts = self.parts.iter().map(|part| row![part.name.to_string(), format!("{:?}", part.shape), part.count.to_string(), count(part.parameters as f64)]);
        let all = row![Html::text("all").strong(), "", "", count(self.parameters() as f64)];
        let memory = format!(
            "Weights {} in f32, {} in bf16 or f16; keys and values of a full context {}.",
            format_bytes(self.memory(DType::F32)),
            format_bytes(self.memory(DType::BF16)),
            format_bytes(self.cache(self.config.context))
        );
        let usual = self.usual_clts();
        let headings = usual[0].figures().map(|(heading, _)| heading);
        let headings: Vec<_> = ["features per layer", "weights"].into_iter().chain(headings).map(|heading| (heading, Align::Right)).collect();
        let row = |clt: &CltNeed| -> Vec<Html> {
            let bytes = clt.figures().map(|(_, bytes)| format_bytes(bytes));
            [clt.features.to_string(), count(clt.parameters as f64)].into_iter().chain(bytes).map(Html::from).collect()
        };
        let about = "A CLT for it: memory to use it by dtype, to train it here, and with stored gradients elsewhere";
        let tables = [
            Html::table(&columns, parts.chain([all])),
            Html::from(memory).block(),
            Html::from(about).block(),
            Html::table(&headings, usual.iter().map(row)),
        ];
        Html::card(&format!("Summary of {}", self.name), Html::join(tables))
    }
}

impl Show for Run {
    fn text(&self) -> String {
        self.to_string()
    }

    fn html(&self) -> Html {
        let prompt = Html::join(self.token_text.iter().map(|text| Html::token(text).breakable())).block();
        let next = match self.top_next_text(5) {
            Ok(top) if top.is_empty() => Html::from("no logits were kept").small().block(),
            Ok(top) => {
                let rows = top.iter().map(|(text, p)| row![Html::token(text), format!("{:.2} %", 100.0 * p)]);
                Html::table(&[("next token", Align::Left), ("probability", Align::Right)], rows)
            }
            Err(error) => Html::from(error.to_string()),
        };
        Html::card(&format!("Run of {} tokens", self.tokens.len()), Html::join([prompt, next]))
    }
}

impl Show for Generation {
    fn text(&self) -> String {
        self.to_string()
    }

    fn html(&self) -> Html {
        let rate = self.tokens.len() as f64 / self.seconds;
        let line = format!("{} tokens after {}, {rate:.1} tokens/s; {}", self.tokens.len(), self.prompt.len(), self.stop);
        Html::join([Html::passage(&self.text), Html::from(line).small().block()])
    }
}

impl Show for Format {
    fn text(&self) -> String {
        self.to_string()
    }

    fn html(&self) -> Html {
        Html::facts("Format", &[("name", self.to_string())])
    }
}

impl Show for Clt {
    fn text(&self) -> String {
        self.to_string()
    }

    fn html(&self) -> Html {
        let c = self.config();
        let facts = [
            ("model", if c.model_name.is_empty() { "unnamed".to_string() } else { c.model_name.clone() }),
            ("layers L", c.layers.to_string()),
            ("width d", c.width.to_string()),
            ("features per layer F", c.features.to_string()),
            ("activation", c.activation.label()),
            ("reads", c.input.hook().to_string()),
            ("decoder matrices", c.decoders().to_string()),
            ("weights", count(c.parameters() as f64)),
        ];
        Html::facts("Cross-layer transcoder", &facts)
    }
}

impl Show for Plan {
    fn text(&self) -> String {
        self.to_string()
    }

    fn html(&self) -> Html {
        let lines = |lines: &[String]| Html::join(lines.iter().map(|line| Html::text(line).small().block()));
        let table = |(headings, rows): (Vec<&str>, Vec<Vec<String>>)| {
            let columns: Vec<_> = headings.iter().enumerate().map(|(at, heading)| (*heading, if at == 0 { Align::Left } else { Align::Right })).collect();
            Html::table(&columns, rows.into_iter().map(|row| row.into_iter().map(Html::from).collect()))
        };
        let [title, heads @ ..] = self.heads();
        Html::card(&title, Html::join([lines(&heads), table(self.memory_table()), table(self.time_table()), lines(&self.remarks())]))
    }
}

impl Show for History {
    fn text(&self) -> String {
        self.to_string()
    }

    fn picture(&self) -> Option<Picture> {
        Some(self.picture())
    }

    fn curves_until(&self) -> Option<&TrainSample> {
        self.last()
    }

    /// The training curves.
    fn html(&self) -> Html {
        Html::join([self.picture().html(), Html::from(self.to_string()).small().block()]).block()
    }
}

impl Show for Tensor {
    /// Shape, element type and values, those of a large tensor in part.
    fn text(&self) -> String {
        self.to_string()
    }
}

impl Show for EdgeCheck {
    fn text(&self) -> String {
        self.to_string()
    }

    fn html(&self) -> Html {
        let row = |name: &str, d: &Deviation| {
            row![name, d.effects.to_string(), format!("{:.3e}", d.largest), format!("{:.1e}", d.max_abs), format!("{:.1e}", d.relative())]
        };
        let columns = [
            ("effects on", Align::Left),
            ("compared", Align::Right),
            ("largest effect", Align::Right),
            ("largest difference", Align::Right),
            ("relative", Align::Right),
        ];
        let table = Html::table(&columns, [row("features", &self.features), row("logits", &self.logits)]);
        Html::card(&format!("Edges against {} interventions", self.sources), table)
    }
}
