//! Pieces with scores: SentencePiece BPE, as in GGUF files of Llama's kind and llama2.c checkpoints.
//!
//! Text is cut at special tokens, then into characters; the adjacent pair whose joined piece has
//! the best score is merged, the leftmost of equals, until no pair joins to a known piece.
//! Characters without a piece become their bytes. Cost: n log n in the length of the text.
//!
//! llama2.c's file: i32 longest piece, then per piece f32 score, i32 length, bytes; little endian.

use crate::error::{Error, ErrorKind, Result};
use std::collections::{BinaryHeap, HashMap};

/// First id of the 256 byte pieces in llama2.c's files: after `<unk>`, `<s>`, `</s>`.
const FIRST_BYTE: usize = 3;

/// The sign that stands for a space inside SentencePiece's pieces.
const SPACE: char = '\u{2581}';

/// What a piece is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Part of text.
    Normal,
    /// Stands for text that has no piece.
    Unknown,
    /// A mark such as the beginning of text; found in text before merging.
    Control,
    /// Text that is always one token; found in text before merging.
    UserDefined,
    /// In the vocabulary, never in text.
    Unused,
    /// One byte, `<0xNN>`.
    Byte,
}

/// One entry of the vocabulary.
pub(super) struct Piece {
    /// As the file names it.
    name: String,
    /// What it writes.
    text: Vec<u8>,
    score: f32,
    role: Role,
}

impl Piece {
    /// A piece as GGUF files name it: `▁` for a space, `<0xNN>` for a byte.
    pub(super) fn new(name: &str, score: f32, role: Role) -> Self {
        let byte = Self::byte(name);
        let text = match (role, byte) {
            (Role::Byte, Some(byte)) => vec![byte],
            (Role::Normal, _) => name.replace(SPACE, " ").into_bytes(),
            _ => name.as_bytes().to_vec(),
        };
        Piece { name: name.to_string(), text, score, role }
    }

    /// The byte that a name like `<0x0A>` stands for.
    pub(super) fn byte(name: &str) -> Option<u8> {
        let digits = name.strip_prefix("<0x")?.strip_suffix('>')?;
        digits.bytes().all(|digit| digit.is_ascii_hexdigit()).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
    }
}

pub(super) struct ScoredPieces {
    pieces: Vec<Piece>,
    /// Pieces that merging may form.
    ids: HashMap<Vec<u8>, u32>,
    names: HashMap<String, u32>,
    /// Control and user-defined pieces by their first byte, longest first.
    special: HashMap<u8, Vec<u32>>,
    bytes: Vec<Option<u32>>,
    /// A space is put before text, and taken away again.
    prefix: bool,
    unknown: u32,
}

impl ScoredPieces {
    pub(super) fn new(pieces: Vec<Piece>, prefix: bool, unknown: u32) -> Result<Self> {
        if unknown as usize >= pieces.len() {
            return Err(Error::expected(ErrorKind::BadFile, "tokenizer: unknown token", unknown, format_args!("an id below {}", pieces.len())));
        }
        let (mut ids, mut names, mut bytes) = (HashMap::new(), HashMap::new(), vec![None; 256]);
        let mut special: HashMap<u8, Vec<u32>> = HashMap::new();
        for (id, piece) in pieces.iter().enumerate() {
            let id = id as u32;
            names.insert(piece.name.clone(), id);
            match piece.role {
                Role::Normal => drop(ids.insert(piece.text.clone(), id)),
                Role::Byte => match piece.text[..] {
                    [byte] => bytes[usize::from(byte)] = Some(id),
                    _ => return Err(Error::expected(ErrorKind::BadFile, format_args!("tokenizer: byte token {id}"), format_args!("{} bytes", piece.text.len()), "one byte")),
                },
                // A mark within a character would cut the text inside it.
                Role::Control | Role::UserDefined if std::str::from_utf8(&piece.text).is_err() => {
                    return Err(Error::expected(ErrorKind::BadFile, format_args!("tokenizer: special token {id}"), "bytes that are no UTF-8", "a text"));
                }
                Role::Control | Role::UserDefined => {
                    if let Some(first) = piece.text.first() {
                        special.entry(*first).or_default().push(id);
                    }
                }
                Role::Unknown | Role::Unused => {}
            }
        }
        for list in special.values_mut() {
            list.sort_by_key(|id| std::cmp::Reverse(pieces[*id as usize].text.len()));
        }
        Ok(ScoredPieces { pieces, ids, names, special, bytes, prefix, unknown })
    }

    /// Reads llama2.c's file of `vocab` pieces.
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
        // An entry has at least 8 bytes.
        let mut pieces = Vec::with_capacity(vocab.min(bytes.len() / 8));
        for entry in 0..vocab {
            let score = f32::from_le_bytes(word(take(4, "score", entry)?));
            let length = u32::from_le_bytes(word(take(4, "length", entry)?)) as usize;
            let text = take(length, "piece", entry)?;
            if !score.is_finite() {
                return Err(Error::expected(ErrorKind::BadFile, format_args!("llama2.c tokenizer: score of entry {entry}"), score, "a finite number"));
            }
            let byte = (FIRST_BYTE..FIRST_BYTE + 256).contains(&entry) && text.starts_with(b"<0x");
            let (text, role) = match entry {
                0 => (text.to_vec(), Role::Unknown),
                1 | 2 => (text.to_vec(), Role::Control),
                _ if byte => (vec![(entry - FIRST_BYTE) as u8], Role::Byte),
                _ => (text.to_vec(), Role::Normal),
            };
            pieces.push(Piece { name: String::from_utf8_lossy(&text).into_owned(), text, score, role });
        }
        let left = rest.len();
        if left > 0 {
            let place = format!("llama2.c tokenizer: bytes after its {vocab} entries");
            return Err(Error::expected(ErrorKind::BadFile, place, left, 0).help("it belongs to a model with a larger vocabulary"));
        }
        Self::new(pieces, true, 0)
    }

    pub(super) fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 2);
        let (mut begin, mut at) = (0, 0);
        while at < text.len() {
            match self.special_at(&text.as_bytes()[at..]) {
                Some(id) => {
                    self.merge(&text[begin..at], &mut ids);
                    ids.push(id);
                    at += self.pieces[id as usize].text.len();
                    begin = at;
                }
                None => at += 1,
            }
        }
        self.merge(&text[begin..], &mut ids);
        ids
    }

    fn special_at(&self, rest: &[u8]) -> Option<u32> {
        self.special.get(&rest[0])?.iter().copied().find(|id| rest.starts_with(&self.pieces[*id as usize].text))
    }

    /// Appends the ids of text without special tokens.
    fn merge(&self, text: &str, ids: &mut Vec<u32>) {
        if text.is_empty() {
            return;
        }
        let spaced = text.replace(SPACE, " ");
        let text = if self.prefix { format!(" {spaced}") } else { spaced };
        let mut symbols: Vec<Symbol> = text.char_indices().map(|(at, c)| Symbol { at, end: at + c.len_utf8(), next: 0, before: 0 }).collect();
        let count = symbols.len();
        for (index, symbol) in symbols.iter_mut().enumerate() {
            (symbol.before, symbol.next) = (index.wrapping_sub(1), index + 1);
        }
        let mut queue = BinaryHeap::new();
        let offer = |queue: &mut BinaryHeap<Pair>, symbols: &[Symbol], left: usize| {
            let Some(right) = symbols.get(left).map(|symbol| symbol.next).filter(|right| *right < count) else { return };
            let joined = &text.as_bytes()[symbols[left].at..symbols[right].end];
            if let Some(id) = self.ids.get(joined) {
                queue.push(Pair { score: self.pieces[*id as usize].score, left, right, length: joined.len() });
            }
        };
        (0..count).for_each(|left| offer(&mut queue, &symbols, left));
        while let Some(pair) = queue.pop() {
            let (left, right) = (symbols[pair.left], symbols[pair.right]);
            // A part that has meanwhile been merged otherwise has another length or none.
            if left.at == left.end || right.at == right.end || right.end - left.at != pair.length || left.next != pair.right {
                continue;
            }
            symbols[pair.left].end = right.end;
            symbols[pair.left].next = right.next;
            symbols[pair.right].end = right.at;
            if right.next < count {
                symbols[right.next].before = pair.left;
            }
            if left.before < count {
                offer(&mut queue, &symbols, left.before);
            }
            offer(&mut queue, &symbols, pair.left);
        }
        for symbol in symbols.iter().filter(|symbol| symbol.at < symbol.end) {
            let part = &text.as_bytes()[symbol.at..symbol.end];
            match self.ids.get(part) {
                Some(id) => ids.push(*id),
                None if part.iter().all(|byte| self.bytes[usize::from(*byte)].is_some()) => {
                    ids.extend(part.iter().filter_map(|byte| self.bytes[usize::from(*byte)]));
                }
                None => ids.push(self.unknown),
            }
        }
    }

    pub(super) fn decode(&self, ids: &[u32]) -> Result<String> {
        let mut bytes = Vec::new();
        for (position, id) in ids.iter().enumerate() {
            let piece = self.piece(*id).ok_or_else(|| {
                Error::expected(ErrorKind::BadInput, "token id", id, format_args!("an id below {}", self.len()))
            })?;
            // The piece after a mark carries a space that was never in the text.
            let after_mark = self.prefix && position > 0 && self.pieces[ids[position - 1] as usize].role == Role::Control;
            bytes.extend_from_slice(if after_mark { piece.strip_prefix(b" ").unwrap_or(piece) } else { piece });
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The bytes that a piece writes.
    pub(super) fn piece(&self, id: u32) -> Option<&[u8]> {
        self.pieces.get(id as usize).map(|piece| &piece.text[..])
    }

    pub(super) fn id(&self, name: &str) -> Option<u32> {
        self.names.get(name).copied()
    }

    /// Ids of the marks such as the beginning of text.
    pub(super) fn marks(&self) -> Vec<u32> {
        self.pieces.iter().zip(0..).filter(|(piece, _)| piece.role == Role::Control).map(|(_, id)| id).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.pieces.len()
    }
}

/// A stretch of text that is one piece so far; empty when it was merged into the one before.
#[derive(Clone, Copy)]
struct Symbol {
    at: usize,
    end: usize,
    before: usize,
    next: usize,
}

/// Two neighbours that join to a piece.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    length: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Pair {}
