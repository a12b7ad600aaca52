//! Small pieces of Jupyter's protocol that need no kernel: contents, cursors, kernel_info.

use jupyter_protocol::{JupyterMessage, JupyterMessageContent};
use serde_json::{Value, json};

/// Content of a message by its type; a type that the protocol crate cannot parse is sent as it is.
pub fn content(kind: &str, value: Value) -> JupyterMessageContent {
    JupyterMessageContent::from_type_and_content(kind, value.clone()).unwrap_or_else(|error| {
        eprintln!("cltlab-kernel: {kind}: {error}");
        JupyterMessageContent::UnknownMessage(jupyter_protocol::UnknownMessage { msg_type: kind.to_string(), content: value })
    })
}

/// A message's content as JSON.
pub fn as_json(message: &JupyterMessage) -> Value {
    serde_json::to_value(&message.content).unwrap_or_default()
}

/// The code and the cursor as a byte offset (Jupyter counts characters).
pub fn code_and_offset(asked: &Value) -> (String, usize) {
    let code = asked["code"].as_str().unwrap_or("").to_string();
    let cursor = asked["cursor_pos"].as_u64().unwrap_or(0) as usize;
    let offset = code.char_indices().nth(cursor).map_or(code.len(), |(offset, _)| offset);
    (code, offset)
}

/// Whether brackets, quotes and comments are closed; consoles ask before they run a line.
pub fn is_complete(code: &str) -> Value {
    let (mut depth, mut quoted, mut characters) = (0_i32, false, code.chars().peekable());
    while let Some(character) = characters.next() {
        match character {
            '\\' if quoted => drop(characters.next()),
            '"' => quoted = !quoted,
            _ if quoted => {}
            '/' if characters.peek() == Some(&'/') => while characters.next().is_some_and(|c| c != '\n') {},
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
    }
    match depth > 0 || quoted {
        true => json!({"status": "incomplete", "indent": "    "}),
        false => json!({"status": "complete", "indent": ""}),
    }
}

/// The answer to kernel_info.
pub fn kernel_info() -> Value {
    json!({
        "status": "ok",
        "protocol_version": "5.3",
        "implementation": "cltlab-kernel",
        "implementation_version": env!("CARGO_PKG_VERSION"),
        "language_info": {
            "name": "Rust", "version": "1.95", "mimetype": "text/rust", "file_extension": ".rs",
            "pygments_lexer": "rust", "codemirror_mode": "rust", "nbconvert_exporter": "script",
        },
        "banner": "cltlab: cross-layer transcoders and attribution graphs, in Rust",
        "help_links": [],
        "debugger": false,
    })
}
