//! Summaries against the files: counted parameters are those of the checkpoint, and a CLT's are
//! those of the CLT.

use crate::support;
use cltlab::candle::{DType, Device};
use cltlab::clt::{Activation, CltConfig};
use cltlab::model::{LoadConfig, Optimizer, Summary};
use cltlab::{ErrorKind, Model};

/// Buffers that older checkpoints carry along.
const BUFFERS: [&str; 3] = [".attn.bias", ".masked_bias", ".inv_freq"];

#[test]
fn parameters_are_those_of_the_files() {
    let (mut compared, mut wrong) = (0, Vec::new());
    for entry in std::fs::read_dir(support::fixture("parity")).unwrap() {
        let folder = entry.unwrap().path();
        let summary = Summary::read(&folder.to_string_lossy()).unwrap();
        let stored = support::tensors(&folder.join("model.safetensors"));
        let stored = stored.iter().filter(|(name, _)| !BUFFERS.iter().any(|end| name.ends_with(end)));
        let numbers: usize = stored.map(|(_, tensor)| tensor.elem_count()).sum();
        assert_eq!(summary.config.parameters(), summary.parameters());
        if summary.parameters() != numbers as u64 {
            wrong.push(format!("got {}, expected {numbers}: {summary}", summary.parameters()));
        }
        compared += 1;
    }
    println!("{compared} models compared");
    assert!(compared >= 10 && wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn needs_are_those_of_the_clt() {
    let folder = support::fixture("attribution/llama/model").to_string_lossy().into_owned();
    let summary = Summary::read(&folder).unwrap();
    let model = Model::load(&folder, &LoadConfig::on(&Device::Cpu)).unwrap();
    assert_eq!(Summary { dtype: None, ..model.summary() }, summary, "read before loading and after it");
    assert_eq!(model.summary().dtype, Some(DType::F32));
    let shape = CltConfig { features: 96, activation: Activation::TopK { k: 4 }, ..CltConfig::for_model(&model) };
    let need = summary.clt(96);
    assert_eq!(need.parameters, shape.parameters());
    assert_eq!(need.memory(DType::BF16), 2 * shape.parameters());
    assert_eq!(need.training(DType::F32, Optimizer::Adam), 16 * shape.parameters());
    assert_eq!(need.training(DType::BF16, Optimizer::Adam8Bit), 6 * shape.parameters());
    assert_eq!(need.training_here(), 12 * shape.parameters());
    let c = model.config();
    assert_eq!(summary.cache(10), (2 * 4 * 10 * c.layers * c.kv_heads * c.head_dim) as u64);
    let text = summary.to_string();
    for word in ["embedding", "MLP gate", "96", "training here", "8-bit Adam"] {
        assert!(text.contains(word), "{text}");
    }
    assert_eq!(Summary::read("/nonexistent/folder").unwrap_err().kind(), ErrorKind::MissingFile);
}

/// The published size of SmolLM2-135M.
#[test]
#[ignore = "needs .cltlab/models/SmolLM2-135M-Instruct.Q4_1.gguf"]
fn smollm2_has_its_published_size() {
    let summary = Summary::read(&support::smollm2().to_string_lossy()).unwrap();
    println!("{summary}");
    assert_eq!(summary.parameters(), 134_515_008);
}
