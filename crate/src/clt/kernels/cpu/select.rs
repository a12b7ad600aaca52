//! Selection: which entries of a row of pre-activations are kept.

use super::lanes::Lanes;
use super::simd;

/// Lanes looked at together; a group without a hit costs one comparison.
const LANES: usize = 16;

#[inline(always)]
fn scan<V: Lanes>(row: &[f32], hit: impl Fn(usize, f32) -> bool, features: &mut Vec<u32>, values: &mut Vec<f32>) {
    let whole = row.len() / LANES * LANES;
    for (group, lanes) in row[..whole].chunks_exact(LANES).enumerate() {
        let mut any = false;
        for (lane, &value) in lanes.iter().enumerate() {
            any |= hit(group * LANES + lane, value);
        }
        if any {
            for (lane, &value) in lanes.iter().enumerate() {
                let f = group * LANES + lane;
                if hit(f, value) {
                    features.push(f as u32);
                    values.push(value);
                }
            }
        }
    }
    for (f, &value) in row.iter().enumerate().skip(whole) {
        if hit(f, value) {
            features.push(f as u32);
            values.push(value);
        }
    }
}

#[inline(always)]
fn above_body<V: Lanes>(row: &[f32], floor: f32, features: &mut Vec<u32>, values: &mut Vec<f32>) {
    scan::<V>(row, |_, value| value > floor, features, values);
}
simd! {
    /// Appends the entries of `row` above `floor`, features ascending.
    pub(crate) fn keep_above(row: &[f32], floor: f32, features: &mut Vec<u32>, values: &mut Vec<f32>) = above_body
}

#[inline(always)]
fn above_each_body<V: Lanes>(row: &[f32], thresholds: &[f32], features: &mut Vec<u32>, values: &mut Vec<f32>) {
    let thresholds = &thresholds[..row.len()];
    scan::<V>(row, |f, value| value > thresholds[f], features, values);
}
simd! {
    /// Appends the entries of `row` above their own thresholds, features ascending.
    pub(crate) fn keep_above_each(row: &[f32], thresholds: &[f32], features: &mut Vec<u32>, values: &mut Vec<f32>) = above_each_body
}

/// Appends the `k` largest positive entries of `row` (fewer when there are fewer), features
/// ascending; of equal values the lower feature is kept.
///
/// Rows of a batch resemble each other, so the search begins at four fifths of the value at which
/// the row before was cut (left in `scratch[0]`) and falls back to all positive entries.
pub(crate) fn keep_top(row: &[f32], k: usize, features: &mut Vec<u32>, values: &mut Vec<f32>, scratch: &mut Vec<f32>) {
    let start = features.len();
    let guess = scratch.first().map_or(0.0, |cut| cut * 0.8);
    keep_above(row, guess, features, values);
    if features.len() - start < k && guess > 0.0 {
        features.truncate(start);
        values.truncate(start);
        keep_above(row, 0.0, features, values);
    }
    trim_top(start, k, features, values, scratch);
}

/// Of the entries from `start` on keeps the `k` largest, of equal values the lower features. Leaves
/// the least that stays in `scratch[0]` if any had to go.
pub(crate) fn trim_top(start: usize, k: usize, features: &mut Vec<u32>, values: &mut Vec<f32>, scratch: &mut Vec<f32>) {
    if features.len() - start <= k {
        return;
    }
    scratch.clear();
    scratch.extend_from_slice(&values[start..]);
    let (above, &mut cut, _) = scratch.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    let mut ties = k - above.iter().filter(|&&value| value > cut).count();
    let mut to = start;
    for from in start..features.len() {
        let value = values[from];
        let keep = value > cut || (value == cut && ties > 0);
        if keep {
            ties -= (value == cut) as usize;
            features[to] = features[from];
            values[to] = value;
            to += 1;
        }
    }
    features.truncate(to);
    values.truncate(to);
    scratch[0] = cut;
}
