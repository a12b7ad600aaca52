use cltlab::activations::Activations;
use cltlab::clt::{Activation, CltConfig};
use cltlab::train::{TrainConfig, Trainer};
use rand::{Rng, SeedableRng};
fn main() -> Result<(), cltlab::Error> {
    let a: Vec<String> = std::env::args().collect();
    let n = |i: usize| a[i].parse::<usize>().unwrap();
    let (l, d, f, k, t, steps) = (n(1), n(2), n(3), n(4), n(5), n(6));
    let clip = a.iter().any(|x| x == "clip");
    let mut rng = rand::rngs::StdRng::seed_from_u64(0);
    let mut make = || -> Vec<Vec<f32>> { (0..l).map(|_| (0..4 * t * d).map(|_| rng.random_range(-1.7f32..1.7)).collect()).collect() };
    let acts = Activations::from_memory(make(), make(), d)?;
    let act = if a.iter().any(|x| x == "relu") { Activation::Relu } else { Activation::TopK { k } };
    let shape = CltConfig { layers: l, width: d, features: f, activation: act, ..CltConfig::default() };
    let config = TrainConfig { steps, batch_tokens: t, lr: 4e-4, warmup: 0.0, decay: 0.0, clip: clip.then_some(1.0), moments: if a.iter().any(|x| x == "eight") { cltlab::train::Moments::EightBit } else { Default::default() }, ..TrainConfig::default() };
    let mut trainer = Trainer::new(&acts, &shape, &config)?;
    let mut last = [0.0; 4];
    for _ in 0..if a.iter().any(|x| x == "long") { 6 } else { 2 } {
        let start = std::time::Instant::now();
        let h = trainer.run()?;
        let s = start.elapsed().as_secs_f64();
        let p = trainer.phases();
        println!("{:.1} tok/s ({:.4} s/step) loss {:.5} fvu {:.4}; encode {:.4} decode {:.4} backward {:.4} update {:.4}", (t * steps) as f64 / s, s / steps as f64, h.last().unwrap().reconstruction, h.last().unwrap().fvu,
            (p[0]-last[0])/steps as f64, (p[1]-last[1])/steps as f64, (p[2]-last[2])/steps as f64, (p[3]-last[3])/steps as f64);
        last = p;
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    println!("{}", status.lines().find(|x| x.starts_with("VmHWM")).unwrap());
    Ok(())
}
