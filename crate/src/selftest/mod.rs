//! Self-test: does this machine compute what it should?
//!
//! In: a device. Out: a [`SelfTest`], one line a check with the deviation found and the one allowed. On the CPU the step
//! of a training is compared with the formulas in f64, written without any kernel; on a GPU with the CPU's step, weight for
//! weight, over all activations, ways to store weights and moments, and a training of 50 steps, and codes, reconstructions
//! and attribution graphs with the CPU's. It runs in
//! seconds and needs no file: for a new driver, a new card, a cluster's node before a long job.

mod ceilings;
mod graphs;
mod margins;
mod naive;
mod random;
mod show;
mod training;

#[doc(hidden)]
pub use ceilings::Ceilings;
pub use random::{random_clt, RandomModel};

use crate::device::require_own;
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
    pub(crate) fn passed(&self) -> bool {
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
    #[doc(hidden)]
    pub fn observed(device: &Device, observe: &mut dyn FnMut(&Check)) -> Result<Self> {
        require_own(device)?;
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
    #[doc(hidden)]
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

/// The larger of two deviations; infinite where either is NaN, which `f64::max` would drop.
fn worse(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::INFINITY } else { a.max(b) }
}

/// The largest difference of two lists, relative to the largest value of the second; infinite where their lengths differ or any
/// number of either is not finite.
fn deviation(got: impl IntoIterator<Item = f64>, expected: impl IntoIterator<Item = f64>) -> f64 {
    let (got, expected): (Vec<f64>, Vec<f64>) = (got.into_iter().collect(), expected.into_iter().collect());
    if got.len() != expected.len() || !got.iter().chain(&expected).all(|value| value.is_finite()) {
        return f64::INFINITY;
    }
    let difference = got.iter().zip(&expected).map(|(got, expected)| (got - expected).abs()).fold(0.0, worse);
    let largest = expected.iter().map(|value| value.abs()).fold(0.0, worse);
    if difference == 0.0 { 0.0 } else { difference / largest }
}

#[cfg(test)]
mod tests {
    use super::{deviation, worse};

    #[test]
    fn nothing_that_is_not_finite_or_missing_passes() {
        for place in 0..3 {
            for bad in [f64::NAN, f64::INFINITY] {
                let mut values = [1.0, 2.0, 3.0];
                values[place] = bad;
                assert_eq!(deviation(values, [1.0, 2.0, 3.0]), f64::INFINITY, "{bad} at {place}");
                assert_eq!(deviation([1.0, 2.0, 3.0], values), f64::INFINITY, "{bad} at {place}, expected");
            }
        }
        assert_eq!(deviation([1.0], [1.0, 1.0]), f64::INFINITY);
        assert_eq!(deviation([1.0, 2.5], [1.0, 2.0]), 0.25);
        assert_eq!([worse(f64::NAN, 1.0), worse(1.0, f64::NAN), worse(1.0, 2.0)], [f64::INFINITY, f64::INFINITY, 2.0]);
    }
}
