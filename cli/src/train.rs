//! `cltlab train` and `cltlab eval`: the notebook's steps from one TOML file.

use super::dry_run::dry_run;
use super::recipe::Recipe;
use super::resume::{same_recipe, same_run};
use clap::Args;
use cltlab::internal::files::lock::FolderLock;
use cltlab::prelude::*;
use cltlab::progress::TrainSample;
use std::path::{Path, PathBuf};
use std::time::Instant;

#[derive(Args)]
pub struct TrainArgs {
    /// TOML file with an optional preset = "anthropic" (or clt_forge_gpt2, eleuther_topk, openclt), whose values the other keys override, and tables [model] [text] [activations] [store] [stream] [clt] [train] [eval] [output]
    #[arg(required_unless_present = "example")]
    config: Option<PathBuf>,
    /// Print a recipe with every key, its default and what it does, and end
    #[arg(long, conflicts_with_all = ["overrides", "resume", "resume_earlier", "dry_run"])]
    example: bool,
    /// Override one key; repeatable
    #[arg(long = "set", value_name = "TABLE.KEY=VALUE")]
    overrides: Vec<String>,
    /// Go on from the newest checkpoint, or begin where there is none yet
    #[arg(long)]
    resume: bool,
    /// As --resume; where the newest checkpoint is damaged, from the newest that is whole
    #[arg(long)]
    resume_earlier: bool,
    /// Print the memory that it needs and the time that it is predicted to take, here and on six cards; train and write nothing
    #[arg(long)]
    dry_run: bool,
    /// With --dry-run: as JSON
    #[arg(long, requires = "dry_run")]
    json: bool,
}

#[derive(Args)]
pub struct EvalArgs {
    /// The file that the CLT was trained with
    #[arg(required_unless_present_all = ["model", "clt", "text"])]
    config: Option<PathBuf>,
    /// Override one key; repeatable
    #[arg(long = "set", value_name = "TABLE.KEY=VALUE", requires = "config")]
    overrides: Vec<String>,
    /// Hub name, folder, .gguf file or llama2.c checkpoint
    #[arg(long)]
    model: Option<String>,
    /// Folder or hub name of a CLT
    #[arg(long)]
    clt: Option<String>,
    /// Text that it was not trained on: a file, a folder or a dataset of the hub
    #[arg(long)]
    text: Option<PathBuf>,
    /// Tokens for FVU, L0 and dead features, at most
    #[arg(long)]
    tokens: Option<usize>,
    /// Tokens for cross-entropy, KL and top-1, at most; 0 leaves them out
    #[arg(long)]
    fidelity_tokens: Option<usize>,
    /// Tokens in a context
    #[arg(long)]
    context: Option<usize>,
    /// Write the report as JSON
    #[arg(short, long)]
    output: Option<PathBuf>,
}

/// What `report.json` holds.
#[derive(serde::Serialize)]
struct RunReport {
    /// True when it was asked to end before its last step.
    stopped: bool,
    steps: usize,
    seconds: f64,
    last: Option<TrainSample>,
    evaluation: Option<Report>,
}

/// Where a run's files lie.
struct Folder(PathBuf);

impl Folder {
    fn of(recipe: &Recipe) -> Result<Self> {
        let folder = recipe.output.folder.as_ref().ok_or_else(|| recipe.missing("output", "folder", "where the training writes"))?;
        Ok(Folder(PathBuf::from(folder)))
    }

    fn checkpoints(&self) -> PathBuf {
        self.0.join("checkpoints")
    }

    fn clt(&self) -> PathBuf {
        self.0.join("clt")
    }
}

/// Trains; writes checkpoints, metrics, the CLT and a report.
pub fn train(args: &TrainArgs) -> Result<()> {
    let begin = Instant::now();
    let Some(path) = args.config.as_ref().filter(|_| !args.example) else {
        crate::out::write(super::recipe::EXAMPLE);
        return Ok(());
    };
    let recipe = Recipe::read(path, &args.overrides)?;
    let folder = Folder::of(&recipe)?;
    let config = TrainConfig {
        checkpoint_dir: Some(recipe.train.checkpoint_dir.clone().unwrap_or_else(|| folder.checkpoints())),
        checkpoint_every: if recipe.says_checkpoints() { recipe.train.checkpoint_every } else { recipe.train.steps.div_ceil(10) },
        metrics: Some(recipe.train.metrics.clone().unwrap_or_else(|| folder.0.join("metrics.jsonl"))),
        ..recipe.train.clone()
    };
    config.validate()?;
    let saved = dtype(&recipe, "[output] dtype", &recipe.output.dtype)?.unwrap_or(DType::F32);
    if args.dry_run {
        return dry_run(&recipe, &config, args.json);
    }
    recipe.keeps_inputs(&folder.0, config.metrics.as_deref())?;
    let checkpoints = config.checkpoint_dir.clone().unwrap_or_default();
    let (_lock, checkpoints_lock) = locks(&folder.0, &checkpoints)?;
    let begun = has_checkpoint(&checkpoints);
    if begun && !args.resume && !args.resume_earlier {
        return Err(Error::new(ErrorKind::BadInput, format!("{}: holds checkpoints of an earlier run", checkpoints.display()))
            .help("give --resume to go on, or another folder: --set output.folder=..."));
    }
    if begun {
        same_recipe(&recipe, &folder.0)?;
    }
    stop_on_signals()?;
    let source = Source::open(&recipe)?;
    let mut trainer = match begun {
        true if args.resume_earlier => {
            let (trainer, damaged) = Trainer::resume_or_earlier(&checkpoints, &source.activations)?;
            damaged.iter().for_each(|error| eprintln!("left aside: {error}"));
            trainer
        }
        true => Trainer::resume(&checkpoints, &source.activations)?,
        false => source.begin(&recipe, &config)?,
    };
    trainer.set_lock(checkpoints_lock);
    if begun {
        trainer.set_config(&config)?;
        same_run(&recipe, &trainer, source.model.as_ref(), &source.activations)?;
    }
    if let (Some(model), Some(text), true) = (&source.model, &source.held_out, config.eval_every > 0) {
        trainer = trainer.held_out(model, text, &recipe.eval)?;
    }
    if let (Some(model), Some(_)) = (&source.model, &source.held_out) {
        recipe.eval.validate(model.context())?;
        recipe.eval.fits(&trainer.clt_config().activation)?;
    }
    cltlab::internal::files::create_folder(&folder.0)?;
    cltlab::internal::files::sweep(&folder.0);
    cltlab::internal::files::write_atomic(folder.0.join("config.toml"), recipe.text()?.as_bytes())?;
    let trained = if !trainer.is_done() { trainer.run().map(|_| ()) } else { Ok(()) };
    // Not finite: what was reached before that step is kept.
    if trained.as_ref().is_err_and(|error| error.kind() != ErrorKind::NotFinite) {
        return trained;
    }
    if trainer.steps() == 0 {
        trained?;
        return Err(Error::new(ErrorKind::Interrupted, "stopped before the first step"));
    }
    trainer.save(&checkpoints)?;
    let clt = trainer.clt()?;
    clt.save(folder.clt(), &CltSaveConfig { dtype: saved, ..CltSaveConfig::default() })?;
    let evaluation = match (&source.model, &source.held_out) {
        (Some(model), Some(text)) if !progress::stop_requested() => Some(evaluate(model, &clt, text, &recipe.eval)),
        _ => None,
    };
    let evaluation = match evaluation {
        Some(Err(error)) if error.kind() == ErrorKind::Interrupted => None,
        other => other.transpose()?,
    };
    let stopped = !trainer.is_done();
    let report = RunReport { stopped, steps: trainer.steps(), seconds: begin.elapsed().as_secs_f64(), last: trainer.history().last().cloned(), evaluation };
    cltlab::internal::files::write_json(folder.0.join("report.json"), &report)?;
    println!("{clt}\n{}", trainer.history());
    match (config.target_l0, trainer.reached_l0()) {
        (Some(l0), Some(step)) => println!("L0 {l0} reached at step {step}"),
        (Some(l0), None) => println!("L0 {l0} not reached"),
        _ => {}
    }
    if let Some(evaluation) = &report.evaluation {
        println!("{evaluation}");
    }
    println!("written to {}{}", folder.0.display(), if stopped { "; stopped early, --resume goes on" } else { "" });
    trained
}

/// A type of numbers that a recipe names.
pub fn dtype(recipe: &Recipe, field: &str, word: &Option<String>) -> Result<Option<DType>> {
    let known = |word: &String| match word.as_str() {
        "f32" => Ok(DType::F32),
        "bf16" => Ok(DType::BF16),
        "f16" => Ok(DType::F16),
        _ => Err(recipe.bad(field, word, "f32, bf16 or f16")),
    };
    word.as_ref().map(known).transpose()
}

/// What a recipe names, opened.
struct Source {
    model: Option<Model>,
    activations: Activations,
    held_out: Option<Corpus>,
}

impl Source {
    fn open(recipe: &Recipe) -> Result<Self> {
        let dtype = dtype(recipe, "[model] dtype", &recipe.model.dtype)?;
        let model = recipe.model.source.as_ref().map(|name| Model::load(name, &LoadConfig { dtype, output: recipe.model.output, device: None })).transpose()?;
        let (text, held_out) = texts(recipe)?;
        let activations = match (&recipe.activations.file, &model, &text) {
            (Some(file), _, _) => Activations::load(file, &Default::default())?,
            (None, _, _) if recipe.activations.store.is_some() => stored(recipe, model.as_ref(), text.as_ref())?,
            (None, Some(model), Some(text)) => Activations::stream(model, text, &recipe.stream)?,
            (None, None, _) => return Err(recipe.missing("model", "source", "the model that the CLT belongs to; or give [activations] file")),
            (None, _, None) => return Err(recipe.missing("text", "source", "the text to train on; or give [activations] file")),
        };
        Ok(Source { model, activations, held_out })
    }

    fn begin(&self, recipe: &Recipe, config: &TrainConfig) -> Result<Trainer> {
        let (activations, init) = (&self.activations, recipe.init.as_ref().map(|init| Clt::load(init, &CltLoadConfig::on(&cltlab::candle::Device::Cpu))).transpose()?);
        let base = match (&init, &self.model) {
            (Some(clt), _) => clt.config().clone(),
            (None, Some(model)) => CltConfig::for_model(model),
            (None, None) => CltConfig { layers: activations.layers(), width: activations.width(), features: 2 * activations.width(), ..CltConfig::default() },
        };
        let input = if recipe.activations.file.is_some() { None } else { Some(activations.input()) };
        let shape = shape(recipe, base, input, activations.model_fingerprint())?;
        match &init {
            Some(clt) => Trainer::from_clt(activations, clt, &shape, config),
            None => Trainer::new(activations, &shape, config),
        }
    }
}

/// What a recipe trains: `base` as the preset shapes it, with the keys of `[clt]`; the activations' input and fingerprint where `base`
/// has none of its own.
pub fn shape(recipe: &Recipe, base: CltConfig, input: Option<InputSite>, fingerprint: &str) -> Result<CltConfig> {
    // A CLT that is there has a shape.
    let base = recipe.preset.filter(|_| recipe.init.is_none()).map_or(base.clone(), |preset| preset.shape(&base));
    let model_fingerprint = if base.model_fingerprint.is_empty() { fingerprint.to_string() } else { base.model_fingerprint.clone() };
    let base = CltConfig { input: input.unwrap_or(base.input), model_fingerprint, ..base };
    recipe.clt(&base)
}

/// Evaluates a CLT on held-out text.
pub fn eval(args: &EvalArgs) -> Result<()> {
    stop_on_signals()?;
    let recipe = args.config.as_ref().map(|path| Recipe::read(path, &args.overrides)).transpose()?;
    let usual = recipe.as_ref().map(|recipe| recipe.eval.clone()).unwrap_or_default();
    let config = EvalConfig {
        context: args.context.unwrap_or(usual.context),
        tokens: args.tokens.unwrap_or(usual.tokens),
        fidelity_tokens: args.fidelity_tokens.unwrap_or(usual.fidelity_tokens),
        ..usual
    };
    let device = auto_device()?;
    let missing = |what: &str| Error::new(ErrorKind::BadInput, format!("cltlab eval: no {what}")).help("name it in the file or give --model, --clt and --text");
    let name = args.model.as_ref().or(recipe.as_ref().and_then(|recipe| recipe.model.source.as_ref())).ok_or_else(|| missing("model"))?;
    let folder = match (&args.clt, &recipe) {
        (Some(clt), _) => clt.clone(),
        (None, Some(recipe)) => Folder::of(recipe)?.clt().to_string_lossy().into_owned(),
        (None, None) => return Err(missing("CLT")),
    };
    let text = match (&args.text, &recipe) {
        (Some(text), _) => Corpus::load(text, &Default::default())?,
        (None, Some(recipe)) => texts(recipe)?.1.ok_or_else(|| missing("held-out text"))?,
        (None, None) => return Err(missing("text")),
    };
    let clt = Clt::load(&folder, &CltLoadConfig::on(&device))?;
    let model = Model::load(name, &LoadConfig { output: Some(clt.config().output), ..LoadConfig::on(&device) })?;
    let report = evaluate(&model, &clt, &text, &config)?;
    println!("{clt}\n{report}");
    args.output.as_ref().map_or(Ok(()), |path| report.save(path))
}

/// Opens the store that the recipe names; makes or completes it first when there is a model and a text.
fn stored(recipe: &Recipe, model: Option<&Model>, text: Option<&Corpus>) -> Result<Activations> {
    let folder = recipe.activations.store.clone().unwrap_or_default();
    if let (Some(model), Some(text)) = (model, text) {
        Activations::store(model, text, &folder, &recipe.store)?;
    }
    Activations::load(folder, &read_config(recipe))
}

/// How a store is read: `[stream]` says.
pub fn read_config(recipe: &Recipe) -> ReadConfig {
    let stream = &recipe.stream;
    ReadConfig { buffer_tokens: stream.buffer_tokens, passes: stream.passes, seed: stream.seed, ahead: stream.ahead.unwrap_or(ReadConfig::default().ahead) }
}

/// The text to train on and the text held out.
fn texts(recipe: &Recipe) -> Result<(Option<Corpus>, Option<Corpus>)> {
    let table = &recipe.text;
    let config = TextConfig { field: table.field.clone().unwrap_or(TextConfig::default().field), max_bytes: table.max_bytes };
    let text = table.source.as_ref().map(|source| Corpus::load(source, &config)).transpose()?;
    let given = table.held_out_source.as_ref().map(|source| Corpus::load(source, &config)).transpose()?;
    match (text, given, recipe.text.held_out.unwrap_or(0.05)) {
        (Some(text), None, share) if share > 0.0 => text.split(1.0 - share).map(|(head, tail)| (Some(head), Some(tail))),
        (text, given, _) => Ok((text, given)),
    }
}

fn has_checkpoint(folder: &Path) -> bool {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.into_iter().any(|name| name.starts_with("step-") && name.ends_with(".safetensors"))
}

/// Keeps other trainings out of the folders that this one writes: the run's, and the one of its checkpoints, which may be the same.
fn locks(folder: &Path, checkpoints: &Path) -> Result<(Option<FolderLock>, FolderLock)> {
    let run = FolderLock::take(folder)?;
    let same = || Some(folder.canonicalize().ok()? == checkpoints.canonicalize().ok()?);
    if same() == Some(true) { Ok((None, run)) } else { Ok((Some(run), FolderLock::take(checkpoints)?)) }
}

/// The first of SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 ends the run after its step; the same one a
/// second time ends the process. A SIGHUP that is ignored, as `nohup` has it, stays so.
fn stop_on_signals() -> Result<()> {
    extern "C" fn on_signal(_signal: i32) {
        progress::request_stop();
    }
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGUSR1, libc::SIGUSR2] {
        // SAFETY: the handler does one atomic store; SA_RESETHAND gives the second signal its usual effect.
        let refused = unsafe {
            let mut before: libc::sigaction = std::mem::zeroed();
            if signal == libc::SIGHUP && libc::sigaction(signal, std::ptr::null(), &mut before) == 0 && before.sa_sigaction == libc::SIG_IGN {
                continue;
            }
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as extern "C" fn(i32) as libc::sighandler_t;
            action.sa_flags = libc::SA_RESTART | libc::SA_RESETHAND;
            libc::sigaction(signal, &action, std::ptr::null_mut()) != 0
        };
        if refused {
            return Err(Error::new(ErrorKind::Unsupported, format!("signal handler: {}", std::io::Error::last_os_error())));
        }
    }
    Ok(())
}
