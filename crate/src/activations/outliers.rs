//! Tokens that are far longer than the others: attention sinks where a context begins without a
//! special token. One of them can outweigh the loss of a whole batch.

use crate::error::{Error, ErrorKind, Result};

/// Which tokens of some contexts are left out for their length.
pub(crate) struct Outliers {
    /// Multiple of its context's median that is too long.
    multiple: Option<f32>,
    /// Tokens of each context.
    counts: Vec<usize>,
    /// Room for one context's norms.
    sorted: Vec<f32>,
    out: Vec<bool>,
}

impl Outliers {
    /// Of contexts with so many tokens each. What is left out of one does not depend on the others.
    pub fn new(multiple: Option<f64>, counts: Vec<usize>) -> Self {
        Outliers { multiple: multiple.map(|multiple| multiple as f32), counts, sorted: Vec::new(), out: Vec::new() }
    }

    /// Looks at one site of one layer, `[tokens, d]`: the same tokens each time.
    pub fn see(&mut self, values: &[f32], d: usize) {
        if self.multiple.is_some() {
            let norms: Vec<f32> = values.chunks_exact(d).map(|row| row.iter().map(|x| x * x).sum::<f32>().sqrt()).collect();
            self.see_norms(&norms);
        }
    }

    /// The same by the tokens' norms.
    pub fn see_norms(&mut self, norms: &[f32]) {
        let Some(multiple) = self.multiple else { return };
        self.out.resize(norms.len(), false);
        let (mut norms, mut out) = (norms, self.out.as_mut_slice());
        for &count in self.counts.iter().filter(|&&count| count > 0) {
            let (of_context, others) = norms.split_at(count);
            self.sorted.clear();
            self.sorted.extend_from_slice(of_context);
            let most = *self.sorted.select_nth_unstable_by(count / 2, f32::total_cmp).1 * multiple;
            let (here, rest) = std::mem::take(&mut out).split_at_mut(count);
            here.iter_mut().zip(of_context).for_each(|(out, &norm)| *out |= norm > most && most > 0.0);
            (norms, out) = (others, rest);
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

    /// Leaves those that are out out of `kept`, of which those that were seen are true.
    pub fn narrow(&self, kept: &mut [bool]) {
        kept.iter_mut().filter(|kept| **kept).enumerate().for_each(|(at, kept)| *kept = self.stays(at));
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
