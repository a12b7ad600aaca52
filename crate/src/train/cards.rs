//! Cards: what NVIDIA publishes of them, and which share of it each part of a training step reaches.
//!
//! [`CARDS`] and [`SHARES`] are the two tables that [`Plan`](super::Plan) multiplies; a measured share replaces an expected one here
//! and nowhere else.

/// A GPU by its datasheet. Rates are those of dense products, without structured sparsity.
///
/// ```
/// use cltlab::train::CARDS;
/// let h100 = CARDS.iter().find(|card| card.name == "H100").expect("is in the table");
/// assert!(h100.bandwidth > 3e12 && h100.bf16);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Card {
    /// Its name in the table.
    pub name: &'static str,
    /// Names by which the driver knows it.
    pub(super) drivers: &'static [&'static str],
    /// Memory, in bytes.
    pub memory: u64,
    /// Bandwidth of its memory, in bytes a second.
    pub bandwidth: f64,
    /// Flops a second of products in f32.
    pub f32: f64,
    /// The same with factors in TF32, where there is such a thing.
    pub tf32: Option<f64>,
    /// Flops a second of its tensor cores on numbers of 16 bits, with sums in f32.
    pub tensor: f64,
    /// Whether the tensor cores know bf16; older ones know f16 alone.
    pub bf16: bool,
    /// Why this program does not run on it.
    pub unsupported: Option<&'static str>,
}

const GIB: u64 = 1 << 30;

/// What a card's driver, its context and cuBLAS keep of the memory. On an H200 the card had given away 0.66 to 0.75 GiB more than
/// allocations held at most in six trainings on activations in memory, 0.90 to 0.96 in two with a model, whose pool holds some more.
pub const RESERVE: u64 = 3 * GIB / 4;

/// The cards of the table, slowest first. Sources: NVIDIA's datasheets *T4 Tensor Core GPU* (its memory with error correction on, as
/// deviceQuery prints it; 256 bits at 10 Gbit/s), *V100 Tensor Core GPU* (SXM2), *Ada GPU Architecture* whitepaper (RTX 4090, boost
/// clock 2.52 GHz, sums in f32), *A100 Tensor Core GPU* (SXM4), *H100 Tensor Core GPU* (SXM5) and *H200 Tensor Core GPU* (SXM; both print twice the rates, with
/// sparsity; the H200's memory as its driver says it, 143,771 MiB). V100: *CUDA Toolkit 13.0 Release Notes*, where compilation and libraries for Volta end.
pub const CARDS: [Card; 7] = [
    Card { name: "T4", drivers: &["Tesla T4", "NVIDIA T4"], memory: 15_110 << 20, bandwidth: 320e9, f32: 8.1e12, tf32: None, tensor: 65e12, bf16: false, unsupported: None },
    Card {
        name: "V100 32 GB",
        drivers: &["Tesla V100-SXM2-32GB"],
        memory: 32 * GIB,
        bandwidth: 900e9,
        f32: 15.7e12,
        tf32: None,
        tensor: 125e12,
        bf16: false,
        unsupported: Some("not supported by CUDA 13, which this program is built with; the time it would take"),
    },
    Card { name: "RTX 4090", drivers: &["NVIDIA GeForce RTX 4090"], memory: 24 * GIB, bandwidth: 1_008e9, f32: 82.6e12, tf32: Some(82.6e12), tensor: 165.2e12, bf16: true, unsupported: None },
    Card { name: "A100 40 GB", drivers: &["NVIDIA A100-SXM4-40GB", "A100-SXM4-40GB"], memory: 40 * GIB, bandwidth: 1_555e9, f32: 19.5e12, tf32: Some(156e12), tensor: 312e12, bf16: true, unsupported: None },
    Card { name: "A100 80 GB", drivers: &["NVIDIA A100-SXM4-80GB"], memory: 80 * GIB, bandwidth: 2_039e9, f32: 19.5e12, tf32: Some(156e12), tensor: 312e12, bf16: true, unsupported: None },
    Card { name: "H100", drivers: &["NVIDIA H100 80GB HBM3"], memory: 80 * GIB, bandwidth: 3_350e9, f32: 66.9e12, tf32: Some(494.7e12), tensor: 989.4e12, bf16: true, unsupported: None },
    Card { name: "H200", drivers: &["NVIDIA H200"], memory: 140 * GIB, bandwidth: 4_800e9, f32: 66.9e12, tf32: Some(494.7e12), tensor: 989.4e12, bf16: true, unsupported: None },
];

/// Which share of its floor a part of a step reaches. The floor is the longer of two times: its flops at the published rate of
/// products, its bytes at the published bandwidth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    /// Above 0, at most 1.
    pub value: f64,
    /// Where it was measured; `None` for one that is expected only.
    pub measured: Option<&'static str>,
}

impl Share {
    const fn expected(value: f64) -> Self {
        Share { value, measured: None }
    }

    /// A share with the card and date that gave it.
    const fn measured(value: f64, place: &'static str) -> Self {
        Share { value, measured: Some(place) }
    }
}

/// The shares of all parts of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shares {
    /// cuBLAS' product of inputs and encoders, written as f32.
    pub encoder: Share,
    /// The kernels that read pre-activations and keep the largest.
    pub selection: Share,
    /// Gathers of active features' decoder rows.
    pub decoding: Share,
    /// cuBLAS' products of codes as dense matrices, forward and backward.
    pub dense: Share,
    /// The passes over decoder rows: gradients and Adam.
    pub decoder_pass: Share,
    /// The same over encoder rows.
    pub encoder_pass: Share,
    /// Lists by feature, terms, sums and figures: short kernels.
    pub lists: Share,
    /// The model's forward pass.
    pub model: Share,
}

/// Where the measured shares come from.
const H200: &str = "H200, 2026-11-27";

/// The shares for all cards, measured on an H200 kernel by kernel at L 12, d 768, F 24,576, k 16 and 4,096 tokens a step, weights in bf16
/// and moments in eight bits (`LOG.md`): its published floor over the time, in that order 1.88 ms of 3.18; 1.01 of 1.77; 1.67 of 1.63,
/// since some rows come from the second-level cache; 2.46 of 6.73; 0.38 of 0.89; 0.09 of 0.72; and of a model of SmolLM2-135M's shape
/// 0.9 of some 5.6. The passes over rows are bound by instructions there, not by bandwidth, so that a card with less bandwidth for
/// as many multiprocessors reaches more. Products of dense codes were not timed by themselves.
pub const SHARES: Shares = Shares {
    encoder: Share::measured(0.59, H200),
    selection: Share::measured(0.57, H200),
    decoding: Share::measured(1.0, H200),
    dense: Share::expected(0.60),
    decoder_pass: Share::measured(0.37, H200),
    encoder_pass: Share::measured(0.42, H200),
    lists: Share::measured(0.13, H200),
    model: Share::measured(0.16, H200),
};

/// Seconds of the host for each kernel that it launches: a step of few tokens takes no less than its launches. Expected: 80 launches
/// in 0.3 ms; not measured.
pub const LAUNCH: f64 = 4e-6;

/// Share of the CPU's floor (flops at the rate of a product, plus bytes at that of a copy) that a step reaches: the least, the middle
/// and the most of what was measured on two cores of a Zen 4 server (`LOG.md`, `./x bench train`): 38 to 60 % at GPT-2's shape,
/// 61 to 66 % at L 6, d 256, F 2,048, k 32.
pub const CPU_SHARES: [f64; 3] = [0.38, 0.50, 0.66];

/// Share of a product's rate that the model's forward pass reaches on the CPU, measured there with SmolLM2-135M and 512 tokens
/// (`LOG.md`, `./x bench forward`).
pub const CPU_MODEL_SHARE: f64 = 0.84;

impl Card {
    /// The card that the driver calls `name`.
    pub(super) fn of_driver(name: &str) -> Option<Card> {
        CARDS.into_iter().find(|card| card.drivers.contains(&name))
    }

    /// Flops a second of products whose factors are bf16 where `half`, else f32. Tensor cores without bf16 leave such products to an
    /// emulation that is not faster than f32 (on a V100 9.6 TFLOP/s against 14.0: lablup/mlxcel issue 1654; on a T4 less than half:
    /// openxla/xla issue 12429).
    pub(crate) fn products(&self, half: bool) -> f64 {
        match (half, self.tf32) {
            (true, _) if self.bf16 => self.tensor,
            (false, Some(tf32)) if crate::device::tf32() => tf32.max(self.f32),
            _ => self.f32,
        }
    }
}
