//! What the hub answers, whether there is a network or not.

/// Why there is no answer.
#[cfg_attr(not(feature = "hub"), allow(dead_code))]
pub(super) enum Fault {
    /// This build has no client.
    #[cfg(not(feature = "hub"))]
    Absent,
    /// The status, and the hub's own word for what is wrong.
    Status(u16, String),
    /// The hub was not reached, or its answer cannot be used.
    Answer(String),
    /// The connection ended while a file came: what came is kept, the rest can be asked for.
    BrokeOff(String),
    /// The cache could not be read or written there.
    Disk(std::path::PathBuf, std::io::Error),
}

/// What the hub says about a file.
#[derive(Default)]
pub(super) struct About {
    pub commit: Option<String>,
    pub etag: Option<String>,
    pub size: Option<u64>,
}

/// `text` without what stands between `://` and `@` in its addresses.
pub(super) fn without_passwords(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (head, tail) = rest.split_at(at + 3);
        out.push_str(head);
        // Up to the last @: a password may hold what ends a host.
        let end = tail.find(char::is_whitespace).unwrap_or(tail.len());
        rest = tail[..end].rfind('@').map_or(tail, |sign| &tail[sign + 1..]);
    }
    out + rest
}
