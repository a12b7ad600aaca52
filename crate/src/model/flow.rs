//! Flow: directions of several targets on their way down the residual stream.
//!
//! A direction put in at position p reaches positions up to p only, so each target has rows for its
//! own positions and none for others: no padding is carried, whatever the targets' positions. A
//! direction that has not passed an attention yet has a single row.

use crate::error::{Error, ErrorKind, Result};
use candle_core::{DType, Tensor};
use std::ops::Range;
use std::sync::Arc;

/// Target b has one row for each position of `spans[b]`; the rows of the targets follow one another.
/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Flow {
    /// `[Σ lengths, d]`, contiguous.
    pub rows: Tensor,
    pub spans: Arc<[Range<usize>]>,
}

impl Flow {
    /// `g [B, T', d]`: every target at the first T' positions.
    pub fn rectangular(g: &Tensor) -> Result<Self> {
        let (count, length, width) = g.dims3()?;
        Ok(Flow { rows: g.contiguous()?.reshape((count * length, width))?, spans: vec![0..length; count].into() })
    }

    /// `directions [B, d]`, each at its position.
    pub fn points(directions: &Tensor, positions: &[usize]) -> Result<Self> {
        let (count, _) = directions.dims2()?;
        if count != positions.len() {
            return Err(Error::expected(ErrorKind::BadInput, "directions: positions", positions.len(), count));
        }
        Ok(Flow { rows: directions.contiguous()?, spans: positions.iter().map(|position| *position..position + 1).collect() })
    }

    /// The same spans with other rows, of any width.
    pub fn with(&self, rows: Tensor) -> Self {
        Flow { rows, spans: self.spans.clone() }
    }

    /// Targets of all parts, one part after the other.
    pub fn cat(mut parts: Vec<Flow>) -> Result<Self> {
        if parts.len() == 1 {
            return Ok(parts.swap_remove(0));
        }
        let rows: Vec<&Tensor> = parts.iter().map(|part| &part.rows).collect();
        Ok(Flow { rows: Tensor::cat(&rows, 0)?, spans: parts.iter().flat_map(|part| part.spans.iter().cloned()).collect() })
    }

    /// Position of each row.
    pub fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        self.spans.iter().flat_map(|span| span.clone())
    }

    /// True when no target has passed an attention.
    pub fn is_points(&self) -> bool {
        self.spans.iter().all(|span| span.len() == 1)
    }

    /// Every span from 0 on.
    pub fn full(&self) -> Result<Self> {
        if self.spans.iter().all(|span| span.start == 0) {
            return Ok(self.clone());
        }
        self.stretched(self.spans.iter().map(|span| 0..span.end).collect())
    }

    /// `[B, length, d]`, zero where a target has no row. No span may end beyond `length`.
    pub fn rectangle(&self, length: usize) -> Result<Tensor> {
        let count = self.spans.len();
        let flow = if self.spans.iter().all(|span| *span == (0..length)) { self.clone() } else { self.stretched(vec![0..length; count].into())? };
        let width = flow.rows.dim(1)?;
        Ok(flow.rows.reshape((count, length, width))?)
    }

    /// The rows of `spans`, which start at 0, of a rectangle `[B, length, d]`.
    pub fn of_rectangle(rectangle: &Tensor, spans: Arc<[Range<usize>]>) -> Result<Self> {
        let (count, length, width) = rectangle.dims3()?;
        let rows = rectangle.contiguous()?.reshape((count * length, width))?;
        if spans.iter().all(|span| span.len() == length) {
            return Ok(Flow { rows, spans });
        }
        let index: Vec<u32> = spans.iter().enumerate().flat_map(|(b, span)| span.clone().map(move |p| (b * length + p) as u32)).collect();
        Ok(Flow { rows: rows.index_select(&Tensor::new(index, rows.device())?, 0)?, spans })
    }

    /// The same cut into parts of targets that reach about as far, see [`alike`]; spans must start at 0.
    pub fn alike(&self) -> Result<Vec<Flow>> {
        let mut first = 0;
        let part = |targets: Range<usize>| {
            let spans: Arc<[Range<usize>]> = self.spans[targets].into();
            let count = spans.iter().map(Range::len).sum();
            first += count;
            Ok(Flow { rows: self.rows.narrow(0, first - count, count)?, spans })
        };
        alike(&self.spans).into_iter().map(part).collect()
    }

    /// Spans that hold the present ones, with rows of zeros where there were none.
    fn stretched(&self, spans: Arc<[Range<usize>]>) -> Result<Self> {
        let mut index = Vec::new();
        let mut next = 1_u32; // 0 is the row of zeros.
        for (old, new) in self.spans.iter().zip(spans.iter()) {
            for position in new.clone() {
                index.push(if old.contains(&position) { next + (position - old.start) as u32 } else { 0 });
            }
            next += old.len() as u32;
        }
        let zero = Tensor::zeros((1, self.rows.dim(1)?), DType::F32, self.rows.device())?;
        let index = Tensor::new(index, self.rows.device())?;
        Ok(Flow { rows: Tensor::cat(&[&zero, &self.rows], 0)?.index_select(&index, 0)?, spans })
    }

    /// The values `[T, 1]` of each row's position, `[rows, 1]`.
    pub fn each_row(&self, values: &Tensor) -> Result<Tensor> {
        let index: Vec<u32> = self.positions().map(|position| position as u32).collect();
        Ok(values.index_select(&Tensor::new(index, self.rows.device())?, 0)?)
    }
}

/// Positions that spans reach.
pub(crate) fn reach(spans: &[Range<usize>]) -> usize {
    spans.iter().map(|span| span.end).max().unwrap_or(0)
}

/// Neighbours whose rectangle has at most a quarter more rows than they have.
pub(crate) fn alike(spans: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut parts: Vec<Range<usize>> = Vec::new();
    let (mut longest, mut rows) = (0, 0);
    for (b, span) in spans.iter().enumerate() {
        (longest, rows) = (longest.max(span.end), rows + span.len());
        match parts.last_mut() {
            Some(part) if 4 * longest * (part.len() + 1) <= 5 * rows => part.end = b + 1,
            _ => {
                parts.push(b..b + 1);
                (longest, rows) = (span.end, span.len());
            }
        }
    }
    parts
}
