//! Self-test: does this machine compute what it should?
//!
//! In: a device. Out: a [`SelfTest`], one line a check with the deviation found and the one allowed. On the CPU the step
//! of a training is compared with the formulas in f64, written without any kernel; on a GPU with the CPU's step, weight for
//! weight, over all activations, ways to store weights and moments, and a training of 50 steps, and codes, reconstructions
//! and attribution graphs with the CPU's. It runs in
//! seconds and needs no file: for a new driver, a new card, a cluster's node before a long job.

mod ceilings;
mod graphs;
mod naive;
mod random;
mod training;

pub use ceilings::Ceilings;
pub use random::{random_clt, RandomModel};

use crate::error::Result;
use candle_core::Device;

/// One comparison.
#[derive(Clone, Debug)]
pub struct Check {
    /// What was compared with what.
    pub name: String,
    /// The largest deviation, relative to the largest value.
    pub deviation: f64,
    /// What is allowed.
    pub bound: f64,
}

impl Check {
    /// Whether the deviation is allowed (NaN is not).
    pub fn passed(&self) -> bool {
        self.deviation <= self.bound
    }
}

/// What a self-test found.
#[derive(Clone, Debug)]
pub struct SelfTest {
    /// The device's name.
    pub device: String,
    /// All comparisons, in order.
    pub checks: Vec<Check>,
}

impl SelfTest {
    /// Runs all checks of `device`.
    ///
    /// ```
    /// use cltlab::selftest::SelfTest;
    /// let test = SelfTest::run(&cltlab::auto_device()?)?;
    /// assert!(test.passed(), "{test}");
    /// # Ok::<(), cltlab::Error>(())
    /// ```
    ///
    /// # Errors
    /// `OutOfMemory`, and faults of the device.
    pub fn run(device: &Device) -> Result<Self> {
        Self::observed(device, &mut |_| {})
    }

    /// As [`SelfTest::run`], with `observe` called at each check when it is done: what was found before a fault of the
    /// device is not lost with it.
    ///
    /// ```
    /// use cltlab::selftest::SelfTest;
    /// SelfTest::observed(&cltlab::auto_device()?, &mut |check| println!("{check}"))?;
    /// # Ok::<(), cltlab::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`SelfTest::run`].
    pub fn observed(device: &Device, observe: &mut dyn FnMut(&Check)) -> Result<Self> {
        let mut checks = Vec::new();
        let mut done = |check: Check| {
            observe(&check);
            checks.push(check);
        };
        let name = training::checks(device, &mut done)?;
        if !device.is_cpu() {
            graphs::checks(device, &mut done)?;
        }
        Ok(SelfTest { device: name, checks })
    }

    /// How many checks there are, and how many failed.
    pub fn summary(&self) -> String {
        format!("{} checks, {} failed", self.checks.len(), self.checks.iter().filter(|check| !check.passed()).count())
    }

    /// Whether every check passed.
    pub fn passed(&self) -> bool {
        self.checks.iter().all(Check::passed)
    }
}

impl std::fmt::Display for SelfTest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "self-test of {}: deviation, relative (allowed)", self.device)?;
        for check in &self.checks {
            writeln!(f, "{check}")?;
        }
        f.write_str(&self.summary())
    }
}

impl std::fmt::Display for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let verdict = if self.passed() { "ok    " } else { "FAILED" };
        write!(f, "{verdict}  {:<66} {:>9.1e}  ({:.0e})", self.name, self.deviation, self.bound)
    }
}

/// The largest difference of two lists, relative to the largest value of the second.
fn deviation(got: impl IntoIterator<Item = f64>, expected: impl IntoIterator<Item = f64>) -> f64 {
    let (mut difference, mut largest) = (0f64, 0f64);
    for (got, expected) in got.into_iter().zip(expected) {
        // A NaN stays.
        difference = if (got - expected).abs() <= difference { difference } else { (got - expected).abs() };
        largest = largest.max(expected.abs());
    }
    if difference == 0.0 { 0.0 } else { difference / largest }
}
