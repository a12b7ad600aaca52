//! `cltlab compare reports`: the evaluations of several CLTs as one table.

use clap::{Args, ValueEnum};
use cltlab::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// What the table is sorted by, best first.
#[derive(Clone, Copy, ValueEnum)]
enum Column {
    /// Fraction of variance unexplained, smallest first
    Fvu,
    /// Active features per token and layer, smallest first
    L0,
    /// Share of dead features, smallest first
    Dead,
    /// Loss of the model that the replacement keeps, largest first
    Recovered,
    /// KL divergence of the replacement from the model, smallest first
    Kl,
    /// Equal likeliest tokens, largest first
    Top1,
    /// As the reports are given
    Given,
}

#[derive(Args)]
pub struct ReportsArgs {
    /// Reports that eval -o and train write, or folders of trainings
    #[arg(required = true)]
    reports: Vec<PathBuf>,
    /// What the table is sorted by, best first
    #[arg(long, value_enum, default_value = "fvu")]
    sort: Column,
    /// As JSON, with the figures of each layer
    #[arg(long)]
    json: bool,
}

/// The figures of one CLT; those of the replacement model where they were measured.
#[derive(Serialize)]
struct Row {
    name: String,
    fvu: f64,
    l0: f64,
    dead: f64,
    loss_recovered: Option<f64>,
    kl: Option<f64>,
    top1: Option<f64>,
    tokens: usize,
    report: Report,
}

impl Row {
    fn key(&self, column: Column) -> Option<f64> {
        match column {
            Column::Fvu => Some(self.fvu),
            Column::L0 => Some(self.l0),
            Column::Dead => Some(self.dead),
            Column::Recovered => self.loss_recovered.map(|share| -share),
            Column::Kl => self.kl,
            Column::Top1 => self.top1.map(|share| -share),
            Column::Given => Some(0.0),
        }
    }
}

/// Prints the table.
pub fn reports(args: &ReportsArgs) -> Result<()> {
    let mut rows = args.reports.iter().map(|path| read(path)).collect::<Result<Vec<_>>>()?;
    // What was not measured comes last.
    rows.sort_by(|a, b| match (a.key(args.sort), b.key(args.sort)) {
        (Some(a), Some(b)) => a.total_cmp(&b),
        (a, b) => b.is_some().cmp(&a.is_some()),
    });
    if args.json {
        let text = serde_json::to_string_pretty(&rows).map_err(|error| Error::wrap(ErrorKind::NotFinite, "reports as JSON", error))?;
        println!("{text}");
        return Ok(());
    }
    let width = rows.iter().map(|row| crate::out::printable(&row.name).chars().count()).max().unwrap_or(0).max("CLT".len());
    println!("{:width$}    FVU     L0  dead %  loss kept %  KL nats  top-1 %  tokens", "CLT");
    for row in &rows {
        let percent = |share: Option<f64>| share.map_or_else(|| "–".to_string(), |share| format!("{:.1}", 100.0 * share));
        let kl = row.kl.map_or_else(|| "–".to_string(), |kl| format!("{kl:.3}"));
        let name = crate::out::printable(&row.name);
        println!(
            "{name:width$}  {:.3}  {:5.1}  {:>6}  {:>11}  {kl:>7}  {:>7}  {:>6}",
            row.fvu,
            row.l0,
            percent(Some(row.dead)),
            percent(row.loss_recovered),
            percent(row.top1),
            row.tokens
        );
    }
    println!("means over layers; loss kept: of the loss between no MLPs (0) and the model (100); –: not measured");
    Ok(())
}

/// The report in a file, or in `report.json` of a training's folder.
fn read(path: &Path) -> Result<Row> {
    let file = if path.is_dir() { path.join("report.json") } else { path.to_path_buf() };
    let whole: Value = cltlab::internal::files::read_json_object(&file)?;
    let own = whole.get("evaluation").unwrap_or(&whole);
    if own.is_null() {
        return Err(Error::new(ErrorKind::BadInput, format!("{}: the training has no evaluation: it ended early, or had no model or held-out text", file.display()))
            .help("cltlab eval measures it: eval ... -o report.json"));
    }
    let report = Report::deserialize(own).map_err(|error| Error::wrap(ErrorKind::BadFile, format_args!("{}: not a report of cltlab eval or train", file.display()), error))?;
    if report.layers.is_empty() {
        return Err(Error::expected(ErrorKind::BadFile, format_args!("{}: layers", file.display()), "none", "at least one"));
    }
    let is_measured = report.fidelity_tokens > 0;
    let kept = |value: f64| is_measured.then_some(value);
    Ok(Row {
        name: name_of(path),
        fvu: report.fvu(),
        l0: report.l0(),
        dead: report.dead(),
        loss_recovered: kept(report.loss_recovered()),
        kl: kept(report.kl),
        top1: kept(report.top1),
        tokens: report.tokens,
        report,
    })
}

/// The path without what all reports end in.
fn name_of(path: &Path) -> String {
    let short = match path.file_name() {
        Some(name) if name == "report.json" => path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(path),
        _ => path,
    };
    short.display().to_string()
}
