//! Tokens that are far longer than the others: attention sinks where a context begins without a
//! special token. One of them can outweigh the loss of a whole batch.

use crate::error::{Error, ErrorKind, Result};

/// Which tokens of some contexts are left out for their length.
pub(crate) struct Outliers {
    /// Multiple of its context's median that is too long.
    multiple: Option<f32>,
    /// Tokens of each context.
    counts: Vec<usize>,
    norms: Vec<f32>,
    out: Vec<bool>,
}

impl Outliers {
    /// Of contexts with so many tokens each. What is left out of one does not depend on the others.
    pub fn new(multiple: Option<f64>, counts: Vec<usize>) -> Self {
        Outliers { multiple: multiple.map(|multiple| multiple as f32), counts, norms: Vec::new(), out: Vec::new() }
    }

    /// Looks at one site of one layer, `[tokens, d]`: the same tokens each time.
    pub fn see(&mut self, values: &[f32], d: usize) {
        let Some(multiple) = self.multiple else { return };
        self.out.resize(values.len() / d, false);
        let (mut rows, mut out) = (values.chunks_exact(d), self.out.as_mut_slice());
        for &count in self.counts.iter().filter(|&&count| count > 0) {
            let norms: Vec<f32> = rows.by_ref().take(count).map(|row| row.iter().map(|x| x * x).sum::<f32>().sqrt()).collect();
            self.norms.clone_from(&norms);
            let most = *self.norms.select_nth_unstable_by(count / 2, f32::total_cmp).1 * multiple;
            let (here, rest) = std::mem::take(&mut out).split_at_mut(count);
            here.iter_mut().zip(norms).for_each(|(out, norm)| *out |= norm > most && most > 0.0);
            out = rest;
        }
    }

    /// Whether token `at` stays.
    pub fn stays(&self, at: usize) -> bool {
        !self.out.get(at).copied().unwrap_or(false)
    }

    /// Whether all stay.
    pub fn none(&self) -> bool {
        !self.out.contains(&true)
    }

    /// Takes the rows of those that are out off the end of `values`, whose last `tokens` rows are what was seen.
    pub fn drop_rows(&self, values: &mut Vec<f32>, d: usize, tokens: usize) {
        let start = values.len() - tokens * d;
        let mut to = start;
        for at in (0..tokens).filter(|&at| self.stays(at)) {
            values.copy_within(start + at * d..start + (at + 1) * d, to);
            to += d;
        }
        values.truncate(to);
    }

    /// Checks the setting.
    ///
    /// # Errors
    /// `BadConfig` naming `field`.
    pub fn validate(multiple: Option<f64>, field: &str) -> Result<()> {
        match multiple {
            Some(multiple) if !(multiple > 1.0 && multiple.is_finite()) => Err(Error::expected(ErrorKind::BadConfig, field, multiple, "a number above 1, or none")),
            _ => Ok(()),
        }
    }
}
