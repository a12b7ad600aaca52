//! Sparse codes: which features are active on which token, and how strongly.
//!
//! A [`LayerCode`] is one layer's activations `[tokens, features]` in compressed rows; a
//! [`SparseCode`] has one for each layer. Between encoder and decoder of a CLT; attribution takes
//! its nodes from it. Cost: 8 bytes an active entry, 4 a token.
//!
//! A [`LayerCode`] is valid from its construction on: its fields are private, because kernels on a GPU read memory by its
//! offsets. That its features exist depends on the CLT, so decoding checks it.

use crate::clt::activation::CutOff;
use crate::clt::FeatureId;
use crate::device::require_memory;
use crate::error::{Error, ErrorKind, Result};
use candle_core::{Device, Tensor};
use std::fmt::Display;

/// Active features of one layer, row by row: token `p` has
/// `features[offsets[p]..offsets[p + 1]]` (ascending) with `values` beside them.
///
/// ```
/// use cltlab::clt::LayerCode;
/// // Features 3 and 7 on the first token, none on the second.
/// let code = LayerCode::new(vec![0, 2, 2], vec![3, 7], vec![0.5, 1.5])?;
/// assert_eq!((code.tokens(), code.value(0, 7), code.value(1, 7)), (2, 1.5, 0.0));
/// # Ok::<(), cltlab::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct LayerCode {
    pub(crate) tokens: usize,
    pub(crate) offsets: Vec<u32>,
    pub(crate) features: Vec<u32>,
    pub(crate) values: Vec<f32>,
}

impl Default for LayerCode {
    fn default() -> Self {
        LayerCode::empty(0)
    }
}

impl LayerCode {
    /// A code from its compressed rows: token `p`, of `offsets.len() - 1`, has the entries `offsets[p]..offsets[p + 1]` of
    /// `features` and `values`.
    ///
    /// # Errors
    /// `BadInput` when `offsets` do not begin with 0, descend, or do not end with the number of entries; when there are more
    /// or fewer values than features; when the features of a token do not ascend. `NotFinite` for a value that is NaN or
    /// infinite. Which features there are is known to a CLT: [`Clt::decode`](crate::clt::Clt::decode) checks it.
    pub fn new(offsets: Vec<u32>, features: Vec<u32>, values: Vec<f32>) -> Result<Self> {
        let bad = |what: String, got: &dyn Display, expected: &dyn Display| Err(Error::expected(ErrorKind::BadInput, format_args!("LayerCode::new: {what}"), got, expected));
        if values.len() != features.len() {
            return bad("values".into(), &values.len(), &format_args!("{}, one for each feature", features.len()));
        }
        match offsets.first() {
            None => return bad("offsets".into(), &"none", &"one more than there are tokens"),
            Some(first) if *first != 0 => return bad("offsets[0]".into(), first, &0),
            Some(_) => {}
        }
        if let Some(p) = offsets.windows(2).position(|pair| pair[1] < pair[0]) {
            return bad(format!("offsets[{}]", p + 1), &offsets[p + 1], &format_args!("at least offsets[{p}], {}", offsets[p]));
        }
        let last = offsets[offsets.len() - 1];
        if last as usize != features.len() {
            return bad(format!("offsets[{}], the last", offsets.len() - 1), &last, &format_args!("{}, the number of entries", features.len()));
        }
        let code = LayerCode { tokens: offsets.len() - 1, offsets, features, values };
        for p in 0..code.tokens {
            let (features, values) = code.token(p);
            if let Some(pair) = features.windows(2).find(|pair| pair[1] <= pair[0]) {
                return bad(format!("features of token {p}"), &format_args!("{} after {}", pair[1], pair[0]), &"ascending, each once");
            }
            if let Some(at) = values.iter().position(|value| !value.is_finite()) {
                return Err(not_finite(format_args!("LayerCode::new: value of feature {} at token {p}", features[at]), values[at]));
            }
        }
        Ok(code)
    }

    /// A code of `tokens` rows in which nothing is active.
    #[doc(hidden)]
    pub fn empty(tokens: usize) -> Self {
        LayerCode { tokens, offsets: vec![0; tokens + 1], features: Vec::new(), values: Vec::new() }
    }

    /// Number of rows.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Where each row begins among the entries, and the number of entries at the end, `[tokens + 1]`.
    #[doc(hidden)]
    pub fn offsets(&self) -> &[u32] {
        &self.offsets
    }

    /// Feature of each entry, ascending within a token.
    pub fn features(&self) -> &[u32] {
        &self.features
    }

    /// Activation of each entry.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The activations as a matrix `[tokens, features]` in f32 on the CPU, 0 where a feature is not active.
    ///
    /// ```
    /// # use cltlab::clt::LayerCode;
    /// let mut code = LayerCode::empty(2);
    /// code.set(1, 3, 0.5)?;
    /// assert_eq!(code.to_tensor(4)?.to_vec2::<f32>()?, [[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.5]]);
    /// # Ok::<(), cltlab::Error>(())
    /// ```
    ///
    /// # Errors
    /// `BadInput` when a feature is not below `features`; `OutOfMemory` when the matrix does not fit.
    pub fn to_tensor(&self, features: usize) -> Result<Tensor> {
        if let Some(feature) = self.features.iter().find(|feature| **feature as usize >= features) {
            return Err(Error::expected(ErrorKind::BadInput, "LayerCode::to_tensor: feature", feature, format_args!("less than {features}")));
        }
        let count = self.tokens.checked_mul(features).unwrap_or(usize::MAX);
        require_memory("a code as a matrix", 4_u64.saturating_mul(count as u64), "take some of the tokens")?;
        let mut values = vec![0.0_f32; count];
        for p in 0..self.tokens {
            let (active, found) = self.token(p);
            active.iter().zip(found).for_each(|(feature, value)| values[p * features + *feature as usize] = *value);
        }
        Ok(Tensor::from_vec(values, (self.tokens, features), &Device::Cpu)?)
    }

    /// Number of active entries.
    pub fn active(&self) -> usize {
        self.features.len()
    }

    /// The entries of token `p` as `(features, values)`; empty beyond the last token.
    pub fn token(&self, p: usize) -> (&[u32], &[f32]) {
        if p >= self.tokens {
            return (&[], &[]);
        }
        let range = self.offsets[p] as usize..self.offsets[p + 1] as usize;
        (&self.features[range.clone()], &self.values[range])
    }

    /// The features that are active on some token, ascending, each once.
    pub(crate) fn distinct(&self) -> Vec<u32> {
        let mut features = self.features.clone();
        features.sort_unstable();
        features.dedup();
        features
    }

    /// The activation of `feature` at token `p`, 0 when it is not active.
    pub fn value(&self, p: usize, feature: u32) -> f32 {
        let (features, values) = self.token(p);
        features.binary_search(&feature).map_or(0.0, |at| values[at])
    }

    /// Sets one activation; 0 removes the entry.
    ///
    /// # Errors
    /// `BadInput` when there is no token `p`, `NotFinite` for a value that is NaN or infinite.
    #[doc(hidden)]
    pub fn set(&mut self, p: usize, feature: u32, value: f32) -> Result<()> {
        if p >= self.tokens {
            return Err(Error::expected(ErrorKind::BadInput, "LayerCode::set: token", p, format_args!("less than {}", self.tokens)));
        }
        if !value.is_finite() {
            return Err(not_finite(format_args!("LayerCode::set: value of feature {feature} at token {p}"), value));
        }
        let start = self.offsets[p] as usize;
        let shift = match (self.token(p).0.binary_search(&feature), value == 0.0) {
            (Ok(at), false) => {
                self.values[start + at] = value;
                return Ok(());
            }
            (Ok(at), true) => {
                self.features.remove(start + at);
                self.values.remove(start + at);
                u32::MAX // minus one, wrapping
            }
            (Err(_), true) => return Ok(()),
            (Err(at), false) => {
                self.features.insert(start + at, feature);
                self.values.insert(start + at, value);
                1
            }
        };
        for offset in &mut self.offsets[p + 1..] {
            *offset = offset.wrapping_add(shift);
        }
        Ok(())
    }

    /// Ends the row that entries were being appended to.
    pub(crate) fn close_token(&mut self) {
        self.tokens += 1;
        self.offsets.push(self.features.len() as u32);
    }

    /// Rows of all `parts`, one after the other.
    pub(crate) fn concat(parts: &[LayerCode]) -> Self {
        let entries = parts.iter().map(LayerCode::active).sum();
        let tokens: usize = parts.iter().map(|part| part.tokens).sum();
        let mut all = LayerCode { tokens, offsets: Vec::with_capacity(tokens + 1), features: Vec::with_capacity(entries), values: Vec::with_capacity(entries) };
        all.offsets.push(0);
        for part in parts {
            let base = all.features.len() as u32;
            all.offsets.extend(part.offsets[1..].iter().map(|offset| base + offset));
            all.features.extend_from_slice(&part.features);
            all.values.extend_from_slice(&part.values);
        }
        all
    }

    /// Removes every entry of token `p`, if there is such a token.
    #[doc(hidden)]
    pub fn clear_token(&mut self, p: usize) {
        if p >= self.tokens {
            return;
        }
        let range = self.offsets[p] as usize..self.offsets[p + 1] as usize;
        let gone = range.len() as u32;
        self.features.drain(range.clone());
        self.values.drain(range);
        for offset in &mut self.offsets[p + 1..] {
            *offset -= gone;
        }
    }
}

fn not_finite(what: impl Display, value: f32) -> Error {
    Error::expected(ErrorKind::NotFinite, what, value, "a finite number")
}

/// The entries of a [`LayerCode`] feature by feature: feature `f` is active on
/// `tokens[offsets[f]..offsets[f + 1]]` (ascending).
#[derive(Clone, Debug, Default)]
pub(crate) struct FeatureLists {
    pub offsets: Vec<u32>,
    pub tokens: Vec<u32>,
    pub values: Vec<f32>,
}

impl FeatureLists {
    /// The range of feature `f`'s entries.
    #[inline(always)]
    pub fn range(&self, f: usize) -> std::ops::Range<usize> {
        self.offsets[f] as usize..self.offsets[f + 1] as usize
    }
}

/// The active features of all layers on the same tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SparseCode {
    /// One code per source layer.
    pub layers: Vec<LayerCode>,
}

impl SparseCode {
    /// Active entries over all layers.
    pub fn active(&self) -> usize {
        self.layers.iter().map(LayerCode::active).sum()
    }

    /// Tokens (rows) of each layer.
    pub fn tokens(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.tokens)
    }

    /// Mean number of active features per token and layer.
    pub fn l0(&self) -> f64 {
        self.active() as f64 / (self.tokens() * self.layers.len()).max(1) as f64
    }

    /// Keeps the `n` largest activations of each token over all layers; of equal ones the lower layer's
    /// and feature's. All codes must have as many tokens.
    pub(crate) fn keep_top(&mut self, n: usize) {
        let mut values = Vec::new();
        let cut = |p: usize| {
            values.clear();
            self.layers.iter().for_each(|layer| values.extend_from_slice(layer.token(p).1));
            if values.len() < n { CutOff::NONE } else { CutOff::of(&mut values, n) }
        };
        let mut cuts: Vec<CutOff> = (0..self.tokens()).map(cut).collect();
        for layer in &mut self.layers {
            let mut kept = LayerCode::empty(0);
            for (p, cut) in cuts.iter_mut().enumerate() {
                let (features, values) = layer.token(p);
                for (&feature, &value) in features.iter().zip(values).filter(|(_, &value)| cut.keeps(value)) {
                    kept.features.push(feature);
                    kept.values.push(value);
                }
                kept.close_token();
            }
            *layer = kept;
        }
    }

    /// Sets every activation at position `p` to 0 (the special first token in attribution).
    #[doc(hidden)]
    pub fn zero_position(&mut self, p: usize) {
        self.layers.iter_mut().for_each(|layer| layer.clear_token(p));
    }

    /// The activation of a feature at token `p`, 0 when it is not active there.
    pub fn value(&self, p: usize, id: FeatureId) -> f32 {
        let (Some(layer), Ok(feature)) = (self.layers.get(id.layer), u32::try_from(id.feature)) else { return 0.0 };
        layer.value(p, feature)
    }
}
