//! What comes in on the sockets: messages with the right signature that were not seen before.
//!
//! Anybody on the machine can reach the ports. Whatever is malformed, badly signed or sent again is
//! dropped, for ever; only errors of the socket itself count towards its end.

use jupyter_protocol::{ConnectionInfo, JupyterMessage};
use jupyter_zmq_client as zmq;
use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex};

/// Errors of a socket in a row before it is given up.
const FAULTS: usize = 100;
/// Messages that are remembered.
const REMEMBERED: usize = 1 << 16;
/// Characters of an error that are shown.
const SHOWN: usize = 200;

/// Refuses a connection file whose messages this kernel cannot check.
pub fn check(connection: &ConnectionInfo) -> anyhow::Result<()> {
    let scheme = &connection.signature_scheme;
    if scheme != "hmac-sha256" && !(scheme.is_empty() && connection.key.is_empty()) {
        anyhow::bail!("signature_scheme: got {scheme:?}, expected \"hmac-sha256\"; let the client sign with HMAC and SHA-256 (jupyter_client: Session.signature_scheme)");
    }
    Ok(())
}

/// Messages seen so far, on all sockets.
pub struct Seen {
    hash: RandomState,
    prints: HashSet<u64>,
    order: VecDeque<u64>,
}

impl Seen {
    pub fn new() -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Seen { hash: RandomState::new(), prints: HashSet::new(), order: VecDeque::new() }))
    }

    /// True for a message that is seen the first time.
    fn is_new(&mut self, message: &JupyterMessage) -> bool {
        let parts = (&message.header, &message.parent_header, &message.metadata, &message.content);
        let print = self.hash.hash_one(serde_json::to_string(&parts).unwrap_or_default());
        if !self.prints.insert(print) {
            return false;
        }
        self.order.push_back(print);
        if self.order.len() > REMEMBERED {
            self.order.pop_front().map(|oldest| self.prints.remove(&oldest));
        }
        true
    }
}

/// What one reading of a socket gave.
#[derive(Debug)]
pub enum Read {
    Message(Box<JupyterMessage>),
    /// Nothing for the kernel; read again.
    Dropped,
    /// The socket is at its end.
    Lost,
}

/// The guard of one socket.
pub struct Guard {
    socket: &'static str,
    /// Shared by all sockets; absent where messages are not signed.
    seen: Option<Arc<Mutex<Seen>>>,
    dropped: usize,
    faults: usize,
}

impl Guard {
    pub fn new(socket: &'static str, connection: &ConnectionInfo, seen: &Arc<Mutex<Seen>>) -> Self {
        Guard { socket, seen: (!connection.key.is_empty()).then(|| seen.clone()), dropped: 0, faults: 0 }
    }

    /// Sorts what was read.
    pub fn sort(&mut self, read: zmq::Result<JupyterMessage>) -> Read {
        match read {
            Ok(message) => {
                self.faults = 0;
                let is_new = |seen: &Arc<Mutex<Seen>>| seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).is_new(&message);
                if self.seen.as_ref().is_none_or(is_new) {
                    return Read::Message(Box::new(message));
                }
                self.say("the same signed message was sent again")
            }
            Err(zmq::RuntimeError::ZmqError(error)) => self.fault(&error.to_string()),
            Err(zmq::RuntimeError::IoError(error)) => self.fault(&error.to_string()),
            Err(zmq::RuntimeError::VerifyError(_)) => {
                self.faults = 0;
                self.say("its signature is not by this kernel's key")
            }
            Err(error) => {
                self.faults = 0;
                self.say(&error.to_string())
            }
        }
    }

    fn fault(&mut self, error: &str) -> Read {
        self.faults += 1;
        if self.faults > FAULTS {
            eprintln!("cltlab-kernel: {}: given up after {FAULTS} errors of the socket: {}", self.socket, shown(error));
            return Read::Lost;
        }
        self.say(error)
    }

    /// A line on stderr for the 1st, 10th, 100th ... message that is dropped.
    fn say(&mut self, why: &str) -> Read {
        self.dropped += 1;
        if is_power_of_ten(self.dropped) {
            eprintln!("cltlab-kernel: {}: message dropped ({} so far): {}", self.socket, self.dropped, shown(why));
        }
        Read::Dropped
    }
}

fn is_power_of_ten(mut count: usize) -> bool {
    while count > 1 && count % 10 == 0 {
        count /= 10;
    }
    count == 1
}

/// A short text without control characters.
fn shown(text: &str) -> String {
    text.chars().take(SHOWN).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(scheme: &str, key: &str) -> ConnectionInfo {
        serde_json::from_value(serde_json::json!({
            "ip": "127.0.0.1", "transport": "tcp", "shell_port": 1, "iopub_port": 2, "stdin_port": 3, "control_port": 4, "hb_port": 5,
            "key": key, "signature_scheme": scheme,
        }))
        .unwrap()
    }

    fn message() -> JupyterMessage {
        JupyterMessage::new(jupyter_protocol::KernelInfoRequest {}, None)
    }

    #[test]
    fn other_signature_schemes_are_refused() {
        assert!(check(&connection("hmac-sha256", "k")).is_ok() && check(&connection("", "")).is_ok());
        for scheme in ["hmac-md5", "hmac-sha512", "none", "", "HMAC-SHA256"] {
            let error = check(&connection(scheme, "k")).unwrap_err().to_string();
            assert!(error.contains("signature_scheme") && error.contains("hmac-sha256"), "{error}");
        }
    }

    #[test]
    fn badly_signed_messages_are_dropped_for_ever() {
        let mut guard = Guard::new("shell", &connection("hmac-sha256", "k"), &Seen::new());
        for _ in 0..10_000 {
            assert!(matches!(guard.sort(Err(zmq::RuntimeError::MissingHmac)), Read::Dropped));
        }
        assert!(matches!(guard.sort(Ok(message())), Read::Message(_)));
    }

    #[test]
    fn only_errors_of_the_socket_end_it() {
        let mut guard = Guard::new("shell", &connection("hmac-sha256", "k"), &Seen::new());
        let fault = || Err(zmq::RuntimeError::IoError(std::io::Error::other("gone")));
        for _ in 0..FAULTS {
            assert!(matches!(guard.sort(fault()), Read::Dropped));
        }
        assert!(matches!(guard.sort(fault()), Read::Lost));
    }

    #[test]
    fn a_message_is_taken_once_whatever_the_socket() {
        let (connection, seen) = (connection("hmac-sha256", "k"), Seen::new());
        let (mut shell, mut control) = (Guard::new("shell", &connection, &seen), Guard::new("control", &connection, &seen));
        let first = message();
        assert!(matches!(shell.sort(Ok(first.clone())), Read::Message(_)));
        assert!(matches!(shell.sort(Ok(first.clone())), Read::Dropped));
        assert!(matches!(control.sort(Ok(first)), Read::Dropped));
        assert!(matches!(control.sort(Ok(message())), Read::Message(_)));
    }
}
