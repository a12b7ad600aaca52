//! What the kernel is doing, as it tells the server: busy and idle.
//!
//! Each request gets both about itself. A request that is answered beside a running cell would leave
//! the server with "idle", and idle culling could end the kernel, so "busy" about the cell follows.

use crate::outputs::Outputs;
use jupyter_protocol::JupyterMessage;
use serde_json::json;
use std::sync::{Arc, Mutex, MutexGuard};

/// The request that the engine works on, if any.
#[derive(Clone)]
pub struct Activity {
    current: Arc<Mutex<Option<JupyterMessage>>>,
    outputs: Outputs,
}

impl Activity {
    pub fn new(outputs: Outputs) -> Self {
        Activity { current: Arc::default(), outputs }
    }

    fn current(&self) -> MutexGuard<'_, Option<JupyterMessage>> {
        self.current.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The engine begins with a request.
    pub fn begin(&self, request: &JupyterMessage) {
        let mut current = self.current();
        *current = Some(request.clone());
        self.say(request, "busy");
    }

    /// The engine has done with it.
    pub fn end(&self, request: &JupyterMessage) {
        let mut current = self.current();
        *current = None;
        self.say(request, "idle");
    }

    /// A request that is answered by `answer` beside whatever the engine does.
    pub fn beside(&self, request: &JupyterMessage, answer: impl FnOnce()) {
        let current = self.current();
        self.say(request, "busy");
        answer();
        self.say(request, "idle");
        if let Some(cell) = current.as_ref() {
            self.say(cell, "busy");
        }
    }

    fn say(&self, parent: &JupyterMessage, state: &str) {
        self.outputs.send_about(Some(parent), "status", json!({"execution_state": state}));
    }
}
