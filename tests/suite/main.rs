//! The one test binary: candle is linked once. Each module proves one room of the walk against
//! something outside ourselves; `support` finds the reference data.

mod attribution;
mod attribution_speed;
mod bad_input;
mod clt;
mod command_line;
mod eval;
mod families;
mod formats;
mod forward;
mod freeze;
mod generation;
mod gradients;
mod graph_json;
mod graph_scores;
mod heads;
mod held;
mod hub;
mod interventions;
mod layering;
mod model_files;
mod model_reference;
mod numbers;
mod per_layer;
mod perturbation;
mod pictures;
mod program;
mod resume;
mod summary;
mod support;
mod targets;
mod text;
mod tokenizers;
mod train_command;
mod train_eval;
mod training;
