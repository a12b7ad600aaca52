//! Pieces with scores: the tokenizer of llama2.c checkpoints.
//!
//! Text is cut into characters (unknown ones into bytes), then the adjacent pair whose joined
//! piece has the best score is merged, until no pair joins to a known piece. File layout:
//! i32 longest piece, then per piece f32 score, i32 length, bytes; little endian.

use crate::error::{Error, ErrorKind, Result};
use std::collections::HashMap;

/// First id of the 256 byte pieces: after `<unk>`, `<s>`, `</s>`.
const FIRST_BYTE: u32 = 3;

pub(super) struct ScoredPieces {
    pieces: Vec<(Vec<u8>, f32)>,
    ids: HashMap<Vec<u8>, u32>,
}

impl ScoredPieces {
    pub(super) fn parse(bytes: &[u8], vocab: usize) -> Result<Self> {
        let mut rest = bytes;
        let mut take = |count: usize, field: &str, entry: usize| -> Result<&[u8]> {
            if rest.len() < count {
                return Err(Error::expected(
                    ErrorKind::BadFile,
                    format_args!("llama2.c tokenizer: {field} of entry {entry}"),
                    format_args!("{} bytes to the end of the file", rest.len()),
                    format_args!("{count}"),
                )
                .help("the file is truncated or belongs to another vocabulary size"));
            }
            let (head, tail) = rest.split_at(count);
            rest = tail;
            Ok(head)
        };
        let word = |raw: &[u8]| [raw[0], raw[1], raw[2], raw[3]];
        take(4, "longest piece", 0)?;
        let mut pieces = Vec::with_capacity(vocab);
        for entry in 0..vocab {
            let score = f32::from_le_bytes(word(take(4, "score", entry)?));
            let length = u32::from_le_bytes(word(take(4, "length", entry)?)) as usize;
            pieces.push((take(length, "piece", entry)?.to_vec(), score));
        }
        // A character may stand twice, as a byte piece and as itself: the later one is the character.
        let ids = pieces.iter().enumerate().map(|(id, (piece, _))| (piece.clone(), id as u32)).collect();
        Ok(ScoredPieces { pieces, ids })
    }

    pub(super) fn encode(&self, text: &str) -> Vec<u32> {
        if text.is_empty() {
            return Vec::new();
        }
        let spaced = format!(" {text}");
        let mut ids = Vec::with_capacity(spaced.len());
        for character in spaced.chars() {
            let mut buffer = [0; 4];
            let bytes = character.encode_utf8(&mut buffer).as_bytes();
            match self.ids.get(bytes) {
                Some(id) => ids.push(*id),
                None => ids.extend(bytes.iter().map(|byte| u32::from(*byte) + FIRST_BYTE)),
            }
        }
        while let Some((at, id)) = self.best_pair(&ids) {
            ids[at] = id;
            ids.remove(at + 1);
        }
        ids
    }

    fn best_pair(&self, ids: &[u32]) -> Option<(usize, u32)> {
        let mut best: Option<(usize, u32, f32)> = None;
        for (at, pair) in ids.windows(2).enumerate() {
            let joined = [&self.pieces[pair[0] as usize].0[..], &self.pieces[pair[1] as usize].0[..]].concat();
            if let Some(id) = self.ids.get(&joined) {
                let score = self.pieces[*id as usize].1;
                if best.is_none_or(|(_, _, top)| score > top) {
                    best = Some((at, *id, score));
                }
            }
        }
        best.map(|(at, id, _)| (at, id))
    }

    pub(super) fn decode(&self, ids: &[u32]) -> Result<String> {
        let mut bytes = Vec::new();
        for (position, id) in ids.iter().enumerate() {
            let piece = self.piece(*id).ok_or_else(|| {
                Error::expected(ErrorKind::BadInput, "token id", id, format_args!("an id below {}", self.len()))
            })?;
            // The piece after the start token carries a space that was never in the text.
            let after_start = position > 0 && ids[position - 1] == 1;
            bytes.extend_from_slice(if after_start { piece.strip_prefix(b" ").unwrap_or(piece) } else { piece });
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The bytes of a piece; byte pieces are stored as `<0xNN>` and stand for that byte.
    pub(super) fn piece(&self, id: u32) -> Option<&[u8]> {
        const BYTES: [u8; 256] = {
            let mut all = [0; 256];
            let mut index = 0;
            while index < 256 {
                all[index] = index as u8;
                index += 1;
            }
            all
        };
        let piece = &self.pieces.get(id as usize)?.0;
        if (FIRST_BYTE..FIRST_BYTE + 256).contains(&id) && piece.starts_with(b"<0x") {
            let byte = (id - FIRST_BYTE) as usize;
            return Some(&BYTES[byte..=byte]);
        }
        Some(piece)
    }

    pub(super) fn id(&self, piece: &[u8]) -> Option<u32> {
        self.ids.get(piece).copied()
    }

    pub(super) fn len(&self) -> usize {
        self.pieces.len()
    }
}
