//! Attribution graphs on a GPU, timed end to end against the products that the linear passes cannot do without.

use cltlab::graph::PruneConfig;
use cltlab::prelude::*;
use cltlab::selftest::{random_clt, Ceilings, RandomModel};
use std::time::Instant;

/// Prints one line of JSON, and adds one to `table`, for each prompt length: rows a second of attribution and pruning, the second of two runs.
pub fn time(shape: &RandomModel, [features, k]: [usize; 2], lengths: &[usize], budget: usize, device: &Device, ceilings: &Ceilings, table: &mut Vec<String>) -> Result<()> {
    let model = shape.load(&LoadConfig { dtype: Some(DType::F32), ..LoadConfig::on(device) })?;
    let config = CltConfig { features, activation: Activation::TopK { k }, ..CltConfig::for_model(&model) };
    let replacement = Replacement::new(&model, &random_clt(&config, 1)?.to_device(device)?)?;
    for &tokens in lengths {
        let ids: Vec<u32> = (0..tokens).map(|i| (i * 997 % (shape.vocab - 1) + 1) as u32).collect();
        let config = AttributeConfig { max_features: Some(budget), ..AttributeConfig::default() };
        let graph = || replacement.attribute(&ids, &config);
        // The first run loads kernels.
        graph()?;
        let start = Instant::now();
        let graph = graph()?;
        let attributed = start.elapsed().as_secs_f64();
        graph.prune(&PruneConfig::default())?;
        let seconds = start.elapsed().as_secs_f64();
        let selected: Vec<FeatureNode> = graph.nodes.iter().filter_map(|node| node.feature()).collect();
        let rows = selected.len() + graph.logits().len();
        let least = flops(shape, &graph, &selected, tokens) / ceilings.f32;
        println!(
            "{{\"shape\": \"attribution\", \"tokens\": {tokens}, \"active\": {}, \"rows\": {rows}, \"rows_per_second\": {:.1}, \"attribute_s\": {attributed:.3}, \"floor_s\": {least:.4}, \"share\": {:.3}, \"edges\": {}}}",
            graph.active_features().len(),
            rows as f64 / seconds,
            least / attributed,
            graph.edges().len(),
        );
        table.push(format!("| graph of {tokens} tokens, {rows} rows | f32 | {:.0} rows/s | {:.0} | {:.1} | {:.0} % | |", rows as f64 / seconds, 1e3 * attributed, 1e3 * least, 100.0 * least / attributed));
    }
    Ok(())
}

/// Of the maps and patterns at the positions that each selected feature reaches, and of the products with the decoder rows there.
fn flops(shape: &RandomModel, graph: &Graph, selected: &[FeatureNode], tokens: usize) -> f64 {
    let (layers, d, heads) = (shape.layers, shape.width as f64, shape.heads as f64);
    let group = shape.kv_heads as f64 / heads;
    // Decoder rows that stand below the end of each layer and up to each position.
    let mut here = vec![vec![0f64; tokens]; layers];
    graph.active_features().iter().for_each(|node| here[node.layer][node.position] += 1.0);
    let mut rows = here.clone();
    for layer in 0..layers {
        let mut sum = 0.0;
        for position in 0..tokens {
            // A feature of layer s has a row at each of the layers s to `layer`.
            sum += (0..=layer).map(|s| here[s][position] * (layer + 1 - s) as f64).sum::<f64>();
            rows[layer][position] = sum;
        }
    }
    let feature = |node: &FeatureNode| {
        let (layer, reach) = (node.layer as f64, node.position as f64 + 1.0);
        let maps = layer * 2.0 * (1.0 + group) * reach * d * d + 4.0 * d * d;
        let patterns = layer * reach * (reach + 1.0) * d + 2.0 * reach * heads * d;
        maps + patterns + node.layer.checked_sub(1).map_or(0.0, |below| rows[below][node.position] * 2.0 * d)
    };
    selected.iter().map(feature).sum()
}
