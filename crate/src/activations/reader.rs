//! Reading: shuffled batches out of the buffer, each token exactly once a pass.

use super::ahead::Ahead;
use super::held::Filling;
use super::{Activations, Batch, Scale, Source};
use crate::error::{Error, ErrorKind, Result};
use rand::seq::SliceRandom;
use rand::{rngs::StdRng, SeedableRng};
use rayon::prelude::*;
use std::sync::Arc;

/// How far a reader is. Together with the seed it fixes everything that will still be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Position {
    /// Fillings of the buffer before this one.
    pub filling: u64,
    /// Passes over this filling before this one.
    pub pass: u64,
    /// Tokens of this pass that were served.
    pub offset: usize,
}

/// Some tokens of a filling.
#[derive(Clone, Copy)]
pub(crate) struct Taken<'a> {
    pub buffer: &'a Filling,
    /// The filling's number; read where a copy of it is held elsewhere.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    pub filling: u64,
    /// Which of the buffer's rows, in the order in which they are served.
    pub rows: &'a [u32],
}

/// Serves batches of one source from one position on.
pub(crate) struct Reader {
    activations: Activations,
    position: Position,
    buffer: Arc<Filling>,
    /// Whether fillings stay where the model runs.
    held: bool,
    /// Rows of the buffer in the order of this pass.
    order: Vec<u32>,
    /// Whether the buffer holds the filling that the position names.
    filled: bool,
    /// The filling after this one, under way.
    ahead: Option<Ahead>,
}

impl Reader {
    /// Begins at `position`; fills the buffer when one has to be.
    pub fn new(activations: &Activations, position: Position) -> Result<Self> {
        Reader::begin(activations, position, false)
    }

    /// The same for a user on the device where the model runs, where fillings then stay; those in memory or on disk do not.
    pub fn in_place(activations: &Activations, position: Position) -> Result<Self> {
        Reader::begin(activations, position, matches!(activations.0.source, Source::Stream(_)))
    }

    fn begin(activations: &Activations, position: Position, held: bool) -> Result<Self> {
        let wrong = |field: &str, got: u64, expected: String| Err(Error::expected(ErrorKind::BadFile, format_args!("place in the data: {field}"), got, expected).help("the checkpoint is damaged, or was made from other activations"));
        if let Some(rounds) = activations.rounds() {
            if !rounds.has(position.filling) {
                return wrong("filling", position.filling, "a number that training can reach".into());
            }
            if position.pass >= rounds.passes.max(1) as u64 {
                return wrong("pass", position.pass, format!("less than the passes, {}", rounds.passes));
            }
        }
        let mut reader = Reader { activations: activations.clone(), position, buffer: Arc::new(Filling::new(held)), held, order: Vec::new(), filled: false, ahead: None };
        reader.fill()?;
        if position.offset > reader.order.len() {
            return wrong("offset", position.offset as u64, format!("at most the {} tokens of the filling", reader.order.len()));
        }
        Ok(reader)
    }

    pub fn position(&self) -> Position {
        self.position
    }

    /// Means and scales over the buffer.
    pub fn scale(&self) -> Result<Scale> {
        Scale::measure(&self.buffer, self.activations.width())
    }

    fn fill(&mut self) -> Result<()> {
        self.filled = false;
        let index = self.position.filling;
        if let Source::Memory(batch) = &self.activations.0.source {
            self.buffer = batch.clone();
        } else {
            let ready = self.ahead.take().map_or(Ok(None), |ahead| ahead.take(index))?;
            // The reader is the only owner of its buffer, so the room of the last filling is used again.
            let spare = match ready {
                Some(filling) => Arc::try_unwrap(std::mem::replace(&mut self.buffer, Arc::new(filling))).unwrap_or_else(|_| Filling::new(self.held)),
                None => {
                    self.activations.fill(index, Arc::make_mut(&mut self.buffer), None)?;
                    Filling::new(self.held)
                }
            };
            if self.activations.ahead() {
                self.ahead = Ahead::begin(&self.activations, index + 1, spare);
            }
        }
        self.shuffle();
        self.filled = true;
        Ok(())
    }

    fn shuffle(&mut self) {
        let seed = self.activations.rounds().map_or(0, |rounds| rounds.seed);
        let pass = (self.position.filling << 16) ^ self.position.pass;
        self.order.clear();
        self.order.extend(0..self.buffer.tokens() as u32);
        self.order.shuffle(&mut StdRng::seed_from_u64(seed ^ !pass.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
    }

    /// Copies the next `tokens` tokens, normalised, into `batch`. A batch may end one pass or
    /// filling and begin the next. After an error nothing counts as read: the next call reads the same tokens.
    ///
    /// # Errors
    /// Those of the model; `Interrupted`.
    pub fn next(&mut self, tokens: usize, scale: &Scale, batch: &mut Batch) -> Result<()> {
        let d = self.activations.width();
        batch.tokens = tokens;
        for side in [&mut batch.inputs, &mut batch.targets] {
            side.resize_with(self.activations.layers(), Vec::new);
            side.iter_mut().for_each(|values| values.resize(tokens * d, 0.0));
        }
        self.visit(tokens, |done, part| {
            let Filling::Host(buffer) = part.buffer else {
                return Err(Error::new(ErrorKind::Tensor, "activations that stay on a GPU were asked for on the host"));
            };
            let copy = |(into, (from, scale)): (&mut Vec<f32>, (&Vec<f32>, &super::scale::Affine))| {
                for (row, out) in part.rows.iter().zip(into[done * d..].chunks_exact_mut(d)) {
                    scale.apply(&from[*row as usize * d..(*row as usize + 1) * d], out);
                }
            };
            batch.inputs.par_iter_mut().zip(buffer.inputs.par_iter().zip(scale.layers.par_iter().map(|l| &l.input))).for_each(copy);
            batch.targets.par_iter_mut().zip(buffer.targets.par_iter().zip(scale.layers.par_iter().map(|l| &l.target))).for_each(copy);
            Ok(())
        })
    }

    /// Calls `take` with the parts of the next `tokens` tokens, each from one filling, and with how many came before.
    ///
    /// # Errors
    /// As [`Reader::next`]; those of `take`.
    pub fn visit(&mut self, tokens: usize, take: impl FnMut(usize, Taken<'_>) -> Result<()>) -> Result<()> {
        let start = self.position;
        self.serve(tokens, take).inspect_err(|_| {
            // A batch that could not be completed was not trained on, so its first part is read again; it may lie in the filling
            // or the pass before the one that failed.
            self.filled &= (self.position.filling, self.position.pass) == (start.filling, start.pass);
            self.position = start;
        })
    }

    fn serve(&mut self, tokens: usize, mut take: impl FnMut(usize, Taken<'_>) -> Result<()>) -> Result<()> {
        let mut done = 0;
        while done < tokens {
            if !self.filled {
                self.fill()?;
            } else if self.position.offset == self.order.len() {
                self.advance()?;
            }
            let count = (tokens - done).min(self.order.len() - self.position.offset);
            let rows = &self.order[self.position.offset..self.position.offset + count];
            take(done, Taken { buffer: &self.buffer, filling: self.position.filling, rows })?;
            self.position.offset += count;
            done += count;
        }
        Ok(())
    }

    /// On to the next pass, or to the next filling.
    fn advance(&mut self) -> Result<()> {
        let passes = self.activations.rounds().map_or(u64::MAX, |rounds| rounds.passes as u64);
        self.position.offset = 0;
        self.position.pass = self.position.pass.saturating_add(1);
        if self.position.pass < passes {
            self.shuffle();
            return Ok(());
        }
        self.position = Position { filling: self.position.filling + 1, ..Position::default() };
        self.fill()
    }
}
