//! Writing a CLT: in our own format, or in another program's.

use super::{circuit_tracer, clt_forge, crosslayer_coding, crosslayer_transcoder, gemma_scope, gemma_scope_2, sae_lens, sparsify, staged, Format};
use crate::clt::Clt;
use crate::error::{Error, ErrorKind, Result};
use candle_core::DType;
use std::path::Path;

/// How a CLT is written.
///
/// ```
/// use cltlab::{candle::DType, clt::CltSaveConfig};
/// let half = CltSaveConfig { dtype: DType::BF16, ..CltSaveConfig::default() };
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CltSaveConfig {
    /// Another program's format. Default `None`: our own, which is circuit-tracer's and keeps all that a CLT has.
    pub format: Option<Format>,
    /// The type of encoders, decoders and skip connections in our own format: f32, or bf16 or f16, which halve the files.
    /// Biases and thresholds stay f32. Read back they are f32 again, rounded. Default f32.
    pub dtype: DType,
}

impl Default for CltSaveConfig {
    fn default() -> Self {
        CltSaveConfig { format: None, dtype: DType::F32 }
    }
}

impl Clt {
    /// Writes the CLT into `folder`: by default in our own format, circuit-tracer's with `cltlab.json` beside it.
    ///
    /// All files are written beside `folder` first and moved in when they are complete: a full disk
    /// leaves an earlier CLT there untouched. Other files in the folder stay.
    ///
    /// ```no_run
    /// # use cltlab::{candle::DType, clt::{Clt, Format, CltSaveConfig}};
    /// # fn f(clt: Clt) -> cltlab::Result<()> {
    /// clt.save("runs/clt", &CltSaveConfig::default())?;
    /// clt.save("runs/clt-bf16", &CltSaveConfig { dtype: DType::BF16, ..CltSaveConfig::default() })?;
    /// clt.save("runs/clt-forge", &CltSaveConfig { format: Some(Format::CltForge), ..CltSaveConfig::default() })?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// `Unsupported` naming the first field that another program's format has no place for, or another type than f32, bf16
    /// and f16 (than f32 in another program's format); nothing is written then. `DiskFull`, `MissingFile` or `Io`, with
    /// the path.
    pub fn save(&self, folder: impl AsRef<Path>, config: &CltSaveConfig) -> Result<()> {
        let (folder, CltSaveConfig { format, dtype }) = (folder.as_ref(), *config);
        let bad = |expected: &str| Err(Error::expected(ErrorKind::Unsupported, "CltSaveConfig::dtype", dtype.as_str(), expected));
        let write = match format {
            None if matches!(dtype, DType::F32 | DType::BF16 | DType::F16) => return staged::write(folder, |folder| self.write_files(folder, dtype)),
            None => return bad("f32, bf16 or f16"),
            Some(format) if dtype != DType::F32 => return bad(&format!("f32, as {format} has it")),
            Some(Format::CircuitTracer) => circuit_tracer::write,
            Some(Format::CrosslayerTranscoder) => crosslayer_transcoder::write,
            Some(Format::CltForge) => clt_forge::write,
            Some(Format::CrosslayerCoding) => crosslayer_coding::write,
            Some(Format::Sparsify) => sparsify::write,
            Some(Format::SaeLens) => sae_lens::write,
            Some(Format::GemmaScope) => gemma_scope::write,
            Some(Format::GemmaScope2) => gemma_scope_2::write,
        };
        staged::write(folder, |folder| write(self, folder))
    }
}
