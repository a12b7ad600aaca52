//! One training writes into a folder of checkpoints at a time, of all processes and of one.

use super::Trainer;
use crate::error::Result;
use crate::files::lock::FolderLock;
use std::path::Path;

impl Trainer {
    /// Gives the trainer the lock of its checkpoints' folder, which it then holds until it is dropped. Without it the folder is
    /// locked while [`run`](Trainer::run) and [`save`](Trainer::save) write there.
    ///
    /// ```no_run
    /// use cltlab::internal::files::lock::FolderLock;
    /// use cltlab::prelude::*;
    /// # let activations = Activations::load("activations.safetensors", &ReadConfig::default())?;
    /// let config = TrainConfig { checkpoint_dir: Some("run".into()), checkpoint_every: 100, ..TrainConfig::default() };
    /// let lock = FolderLock::take("run")?;
    /// let mut trainer = Trainer::new(&activations, &CltConfig::default(), &config)?;
    /// trainer.set_lock(lock);
    /// trainer.run()?;
    /// # Ok::<(), cltlab::Error>(())
    /// ```
    #[doc(hidden)]
    pub fn set_lock(&mut self, lock: FolderLock) {
        self.lock = Some(lock);
    }

    /// The lock of `folder`, unless the trainer holds it.
    pub(super) fn lock(&self, folder: &Path) -> Result<Option<FolderLock>> {
        if self.lock.as_ref().is_some_and(|lock| lock.is_of(folder)) { Ok(None) } else { FolderLock::take(folder).map(Some) }
    }
}
