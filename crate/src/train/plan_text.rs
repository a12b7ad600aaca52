//! A plan as text and as tables.

use super::cards::{CPU_SHARES, SHARES};
use super::plan::{duration, verdict, Plan, Prediction};
use crate::device::format_bytes;

/// A table's headings and rows, all plain text; the first column is left-aligned, the others right.
pub(crate) type Rows = (Vec<&'static str>, Vec<Vec<String>>);

impl Plan {
    /// What is trained and for how long, in sentences.
    pub(crate) fn heads(&self) -> [String; 4] {
        let text = self.text_tokens.map_or(String::new(), |text| format!(", {:.1} times the text's {text}", self.tokens as f64 / text.max(1) as f64));
        [
            "Plan: a prediction; nothing was trained, written or allocated for it.".to_string(),
            format!("{} steps of {} tokens: {} tokens{text}", self.steps, self.batch_tokens, self.tokens),
            format!("{}: {} weights, {:.2} bytes each on a GPU with moments", self.clt, self.weights, self.bytes_per_weight),
            format!("active features of a token and layer: {} ({})", self.active, self.active_from),
        ]
    }

    /// Bytes part by part.
    pub(crate) fn memory_table(&self) -> Rows {
        let rows = self.cpu.parts().into_iter().zip(self.gpu.parts()).map(|((name, cpu), (_, gpu))| vec![name.to_string(), format_bytes(cpu), format_bytes(gpu)]);
        (vec!["memory", "on the CPU", "on a GPU"], rows.collect())
    }

    /// Times: the device here first.
    pub(crate) fn time_table(&self) -> Rows {
        let row = |prediction: &Prediction, here: bool| {
            let shown = |value: Option<f64>, show: &dyn Fn(f64) -> String| value.map_or("-".to_string(), show);
            let need = if here && prediction.device.starts_with("CPU") { &self.cpu } else { &self.gpu };
            vec![
                if here { format!("here: {}", prediction.device) } else { prediction.device.clone() },
                prediction.memory.map_or("-".into(), format_bytes) + if here { " free" } else { "" },
                verdict(prediction, need),
                shown(prediction.bandwidth, &|rate| format!("{:.0}", rate / 1e9)),
                shown(prediction.products, &|rate| if rate < 1e13 { format!("{:.2}", rate / 1e12) } else { format!("{:.0}", rate / 1e12) }),
                shown(prediction.seconds_per_step, &|seconds| format!("{:.2}", 1e3 * seconds)),
                shown(prediction.hours, &|hours| duration(3600.0 * hours)),
            ]
        };
        let rows = std::iter::once(row(&self.here, true)).chain(self.cards.iter().map(|card| row(card, false)));
        (vec!["time, predicted", "memory", "fits", "GB/s", "TFLOP/s", "ms a step", "all steps"], rows.collect())
    }

    /// What each device's row needs said, and which shares are measured.
    pub(crate) fn remarks(&self) -> Vec<String> {
        // Devices of which the same is said stand together.
        let mut own: Vec<(String, &str)> = Vec::new();
        for prediction in std::iter::once(&self.here).chain(&self.cards) {
            for note in &prediction.notes {
                match own.iter_mut().find(|(_, other)| other == note) {
                    Some((devices, _)) => *devices += &format!(", {}", prediction.device),
                    None => own.push((prediction.device.clone(), note)),
                }
            }
        }
        let own = own.into_iter().map(|(devices, note)| format!("{devices}: {note}"));
        let s = SHARES;
        let shares = [("encoder products", s.encoder), ("selection", s.selection), ("decoding", s.decoding), ("dense codes", s.dense), ("decoders", s.decoder_pass), ("encoders", s.encoder_pass), ("lists", s.lists), ("model", s.model)];
        let of = |measured: bool| {
            let some: Vec<_> = shares.iter().filter(|(_, share)| share.measured.is_some() == measured).map(|(name, share)| format!("{name} {:.0} %{}", 100.0 * share.value, share.measured.map_or(String::new(), |place| format!(" ({place})")))).collect();
            if some.is_empty() { "none".to_string() } else { some.join(", ") }
        };
        let [least, middle, most] = CPU_SHARES.map(|share| 100.0 * share);
        let cards = format!("cards: published rates times shares; measured shares: {}; expected, not measured: {}", of(true), of(false));
        let cpu = format!("CPU: rates measured just now times a share of {middle:.0} % ({least:.0} to {most:.0} % measured on two cores of a Zen 4 server)");
        let begin = format!("a training on a GPU begins in main memory, with {} there", format_bytes(self.cpu.weights.saturating_add(self.cpu.step)));
        own.chain([cards, cpu, begin, "not in the time: evaluations, checkpoints, copies from main memory to a GPU".to_string()]).collect()
    }
}

/// Columns side by side.
fn columns((headings, rows): &Rows, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
    let width = |at: usize| rows.iter().map(|row| row[at].chars().count()).chain([headings[at].len()]).max().unwrap_or(0);
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let head: Vec<String> = headings.iter().map(|heading| heading.to_string()).collect();
    for row in std::iter::once(&head).chain(rows) {
        let cells = row.iter().zip(&widths).enumerate().map(|(at, (cell, width))| if at == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") });
        writeln!(f, "{}", cells.collect::<Vec<_>>().join("  "))?;
    }
    Ok(())
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for line in self.heads() {
            writeln!(f, "{line}")?;
        }
        writeln!(f)?;
        columns(&self.memory_table(), f)?;
        writeln!(f)?;
        columns(&self.time_table(), f)?;
        writeln!(f)?;
        let remarks = self.remarks();
        write!(f, "{}", remarks.iter().map(|line| format!("- {line}")).collect::<Vec<_>>().join("\n"))
    }
}
