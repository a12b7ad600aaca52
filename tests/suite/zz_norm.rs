use cltlab::candle::Device;
use cltlab::prelude::*;
use rand::{seq::SliceRandom, SeedableRng};
#[test]
fn norm_stats() {
    let Some(path) = crate::support::smollm2() else { return };
    let model = Model::load(path.to_str().unwrap(), &Device::Cpu).unwrap();
    let corpus = Corpus::load(crate::support::root().join(".cltlab/texts/gutenberg")).unwrap();
    let blocks = corpus.blocks(model.tokenizer().unwrap(), model.special_token(), 128, Some(400_000)).unwrap();
    let mut order: Vec<usize> = (0..blocks.len()).collect();
    order.shuffle(&mut rand::rngs::StdRng::seed_from_u64(1));
    let (l, d) = (model.layers(), model.width());
    let windows = 7;
    let per = 64; // blocks: 8,128 tokens
    let mut mean = vec![vec![vec![0f64; d]; 2 * l]; windows];
    let mut square = vec![vec![0f64; 2 * l]; windows];
    let start = std::time::Instant::now();
    for w in 0..windows {
        for group in order[w * per..(w + 1) * per].chunks(8) {
            let ids: Vec<u32> = group.iter().flat_map(|&b| blocks.block(b).unwrap().to_vec()).collect();
            let t = Tensor::from_vec(ids, (group.len(), 128), &Device::Cpu).unwrap();
            model.visit_mlp(&t, &mut |layer, site| {
                for (side, tensor) in [(0, site.resid_mid), (1, site.mlp_out)] {
                    let v = tensor.flatten_all()?.to_vec1::<f32>()?;
                    for (at, row) in v.chunks_exact(d).enumerate() {
                        if at % 128 == 0 { continue; }
                        for (m, &x) in mean[w][2 * layer + side].iter_mut().zip(row) { *m += x as f64; }
                        square[w][2 * layer + side] += row.iter().map(|&x| (x as f64).powi(2)).sum::<f64>();
                    }
                }
                Ok(())
            }).unwrap();
        }
    }
    let n = (per * 127) as f64;
    println!("{:.0} tokens/s", windows as f64 * n / start.elapsed().as_secs_f64());
    let factor = |m: &[f64], sq: f64, n: f64| (d as f64 * n / (sq - m.iter().map(|m| m * m).sum::<f64>() / n)).sqrt();
    let (mut worst_f, mut worst_m, mut sum_f, mut sum_m) = ([0f64; 2], [0f64; 2], [0f64; 2], [0f64; 2]);
    for s in 0..2 * l {
        let all_m: Vec<f64> = (0..d).map(|c| (0..windows).map(|w| mean[w][s][c]).sum()).collect();
        let all_sq: f64 = (0..windows).map(|w| square[w][s]).sum();
        let big = n * windows as f64;
        let f_all = factor(&all_m, all_sq, big);
        let mut line = String::new();
        for w in 0..windows {
            let f = factor(&mean[w][s], square[w][s], n);
            let e = (f / f_all - 1.0).abs();
            // squared distance of the means in units of the normalised norm d
            let m: f64 = (0..d).map(|c| (mean[w][s][c] / n - all_m[c] / big).powi(2)).sum::<f64>() * f_all * f_all / d as f64;
            worst_f[s % 2] = worst_f[s % 2].max(e); worst_m[s % 2] = worst_m[s % 2].max(m);
            sum_f[s % 2] += e; sum_m[s % 2] += m;
            line += &format!(" {:+.3}", f / f_all - 1.0);
        }
        if s % 10 < 2 { println!("layer {} {}: factor {f_all:.4}{line}", s / 2, ["in", "out"][s % 2]); }
    }
    let k = (l * windows) as f64;
    println!("factor off: mean in {:.4} out {:.4}, worst in {:.4} out {:.4}; mean off (share of variance): mean in {:.5} out {:.5}, worst in {:.5} out {:.5}", sum_f[0]/k, sum_f[1]/k, worst_f[0], worst_f[1], sum_m[0]/k, sum_m[1]/k, worst_m[0], worst_m[1]);
}
