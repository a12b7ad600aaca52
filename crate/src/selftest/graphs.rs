//! Checks of codes, reconstructions and attribution graphs on a GPU, against the CPU's: a model and CLTs of random numbers.

use super::random::random;
use super::{deviation, random_clt, worse, Check, RandomModel};
use crate::clt::{Activation, Clt, CltConfig, SparseCode};
use crate::error::Result;
use crate::graph::{AttributeConfig, Graph};
use crate::model::{DevicePass, InputSite, LoadConfig, Sites};
use crate::replacement::Replacement;
use candle_core::{DType, Device, Tensor};

fn clt(model: &RandomModel, activation: Activation, per_layer: bool) -> Result<Clt> {
    random_clt(&CltConfig { layers: model.layers, width: model.width, features: 200, activation, per_layer, ..CltConfig::default() }, 3)
}

fn numbers(tensors: &[Tensor]) -> Result<Vec<f64>> {
    let values = tensors.iter().map(|tensor| Ok(tensor.flatten_all()?.to_vec1::<f32>()?)).collect::<Result<Vec<_>>>()?;
    Ok(values.concat().into_iter().map(f64::from).collect())
}

/// What a GPU makes of inputs, codes and prompts, against what the CPU does.
pub(super) fn checks(device: &Device, done: &mut dyn FnMut(Check)) -> Result<()> {
    let shape = RandomModel::default();
    let inputs = (0..shape.layers).map(|l| random(l as u64, &[37, shape.width], 0.0, 1.7)).collect::<Result<Vec<_>>>()?;
    let jump = Activation::JumpRelu { threshold: 0.4, bandwidth: 1.0 };
    for (name, activation, per_layer) in [("relu", Activation::Relu, false), ("jump_relu", jump.clone(), false), ("top_k 8, per layer", Activation::TopK { k: 8 }, true)] {
        let here = clt(&shape, activation, per_layer)?;
        let there = here.to_device(device)?;
        let moved = inputs.iter().map(|x| Ok(x.to_device(device)?)).collect::<Result<Vec<_>>>()?;
        let (expected, got) = (here.encode_inputs(&inputs)?, there.encode_inputs(&moved)?);
        let same = expected.layers.iter().zip(&got.layers).all(|(a, b)| a.features == b.features && a.offsets == b.offsets);
        let values = |code: &SparseCode| code.layers.iter().flat_map(|layer| layer.values.clone()).map(f64::from).collect::<Vec<_>>();
        let apart = if same { deviation(values(&got), values(&expected)) } else { f64::INFINITY };
        done(Check { name: format!("{name}: code of {} entries", expected.active()), deviation: apart, bound: 1e-5 });
        let apart = deviation(numbers(&there.decode(&expected, &[])?)?, numbers(&here.decode(&expected, &[])?)?);
        done(Check { name: format!("{name}: reconstruction"), deviation: apart, bound: 1e-5 });
    }
    sites(&shape, device, done)?;
    for (name, per_layer) in [("CLT", false), ("PLT", true)] {
        let clt = clt(&shape, jump.clone(), per_layer)?;
        let (expected, got) = (graph(&shape, &clt, &Device::Cpu)?, graph(&shape, &clt, device)?);
        let ends = |graph: &Graph| graph.edges().iter().map(|edge| (edge.source, edge.target)).collect::<Vec<_>>();
        let weights = |graph: &Graph| graph.edges().iter().map(|edge| f64::from(edge.weight)).collect::<Vec<_>>();
        let apart = if ends(&expected) == ends(&got) { deviation(weights(&got), weights(&expected)) } else { f64::INFINITY };
        done(Check { name: format!("{name}: graph of {} edges", expected.edges().len()), deviation: apart, bound: 1e-4 });
    }
    Ok(())
}

/// What every MLP of a model reads and writes for two contexts: by the pass that serves evaluation, and by the one that fills a training's
/// buffer on the device.
fn sites(shape: &RandomModel, device: &Device, done: &mut dyn FnMut(Check)) -> Result<()> {
    let (contexts, context) = (2, 40);
    let load = |device: &Device| shape.load(&LoadConfig { dtype: Some(DType::F32), ..LoadConfig::on(device) });
    let ids: Vec<u32> = (0..contexts * context).map(|i| ((i * 23 + 7) % shape.vocab) as u32).collect();
    let visited = |device: &Device| -> Result<[Vec<f64>; 2]> {
        let [mut inputs, mut targets] = [Vec::new(), Vec::new()];
        load(device)?.visit_mlp(&Tensor::from_slice(&ids, (contexts, context), device)?, &mut |_, site| {
            inputs.push(site.resid_mid.to_device(&Device::Cpu)?);
            targets.push(site.mlp_out.to_device(&Device::Cpu)?);
            Ok(())
        })?;
        Ok([numbers(&inputs)?, numbers(&targets)?])
    };
    let expected = visited(&Device::Cpu)?;
    let mut check = |name: &str, got: [Vec<f64>; 2]| {
        let [inputs, targets] = [0, 1].map(|side| deviation(got[side].iter().copied(), expected[side].iter().copied()));
        done(Check { name: format!("a model's MLPs, {name}"), deviation: worse(inputs, targets), bound: 1e-5 });
    };
    check("visited", visited(device)?);
    let (model, rows) = (load(device)?, contexts * context);
    let room = |_| Ok(Tensor::zeros((rows, shape.width), DType::F32, device)?);
    let [inputs, targets]: [Vec<Tensor>; 2] = [(0..shape.layers).map(room).collect::<Result<_>>()?, (0..shape.layers).map(room).collect::<Result<_>>()?];
    let filled = match DevicePass::new(&model, InputSite::ResidMid, rows, context, rows)? {
        Some(mut pass) => {
            // Every row goes to the one behind it.
            let places: Vec<Option<u32>> = (0..rows).map(|row| Some(((row + 1) % rows) as u32)).collect();
            pass.run(&Tensor::from_slice(&ids, (contexts, context), device)?, &Sites { inputs: &inputs, targets: &targets, places: &places, max_norm: None })?;
            let back = |side: &[Tensor]| -> Result<Vec<f64>> {
                let mut values = numbers(side)?;
                values.chunks_exact_mut(rows * shape.width).for_each(|layer| layer.rotate_left(shape.width));
                Ok(values)
            };
            [back(&inputs)?, back(&targets)?]
        }
        None => Default::default(),
    };
    check("straight into a buffer", filled);
    Ok(())
}

fn graph(shape: &RandomModel, clt: &Clt, device: &Device) -> Result<Graph> {
    let model = shape.load(&LoadConfig { dtype: Some(DType::F32), ..LoadConfig::on(device) })?;
    let tokens: Vec<u32> = (0..11).map(|i| (i * 17 + 3) % shape.vocab as u32).collect();
    let config = AttributeConfig { max_features: None, max_logits: 4, ..AttributeConfig::default() };
    Replacement::new(&model, &clt.to_device(device)?)?.attribute(&tokens, &config)
}
