//! The hub's environment, read as Python's `huggingface_hub` reads it.

use super::HubConfig;
use crate::environment::{home as own_home, is_true, text as set};
use std::path::PathBuf;

/// A variable that is set and not blank, with `~`, `$NAME` and `${NAME}` replaced.
fn path(name: &str) -> Option<PathBuf> {
    set(name).map(|value| PathBuf::from(variables(&home(&value))))
}

/// `~` and `~/x`, `~user` and `~user/x`; the name of an unknown user stays as it is.
fn home(value: &str) -> String {
    let Some(rest) = value.strip_prefix('~') else { return value.to_string() };
    let (user, below) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    let found = if user.is_empty() { own_home().map(|home| home.to_string_lossy().into_owned()) } else { home_of(user) };
    found.map_or_else(|| value.to_string(), |home| format!("{}{below}", home.trim_end_matches('/')))
}

fn home_of(user: &str) -> Option<String> {
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    users.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| fields[0] == user)?.get(5).map(ToString::to_string)
}

/// `$NAME` and `${NAME}`; a variable that is not set stays as it is.
fn variables(value: &str) -> String {
    let mut out = String::new();
    let mut rest = value;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let (name, length) = match rest[1..].strip_prefix('{').and_then(|inner| inner.split_once('}')) {
            Some((name, _)) => (name, name.len() + 3),
            None => {
                let end = rest[1..].find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len() - 1);
                (&rest[1..=end], end + 1)
            }
        };
        match crate::environment::raw(name) {
            Some(value) => out.push_str(&value),
            None => out.push_str(&rest[..length]),
        }
        rest = &rest[length..];
    }
    out + rest
}

/// A token as it goes into a header: without line ends and blanks around it.
fn clean(token: &str) -> Option<String> {
    let token = token.replace(['\r', '\n'], "").trim().to_string();
    Some(token).filter(|token| !token.is_empty())
}

pub(super) fn read() -> HubConfig {
    let caches = || path("XDG_CACHE_HOME").unwrap_or_else(|| own_home().unwrap_or_default().join(".cache"));
    let hf_home = path("HF_HOME").unwrap_or_else(|| caches().join("huggingface"));
    let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| hf_home.join("token"));
    let given = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"].into_iter().find_map(|name| set(name).and_then(|token| clean(&token)));
    let saved = || crate::files::read_text(token_file).ok().and_then(|token| clean(&token));
    HubConfig {
        endpoint: set("HF_ENDPOINT").map_or_else(|| "https://huggingface.co".to_string(), |url| url.trim().trim_end_matches('/').to_string()),
        cache: path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(|| hf_home.join("hub")),
        token: if is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN") { None } else { given.or_else(saved) },
        // As Python has it, the second is only looked at where the first is not set.
        offline: is_true(if set("HF_HUB_OFFLINE").is_some() { "HF_HUB_OFFLINE" } else { "TRANSFORMERS_OFFLINE" }),
    }
}

/// Seconds that a read from the network may take: `HF_HUB_DOWNLOAD_TIMEOUT`.
#[cfg(feature = "hub")]
pub(super) fn patience() -> std::time::Duration {
    let given = set("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|value| value.trim().parse().ok()).filter(|&seconds| seconds > 0);
    std::time::Duration::from_secs(given.unwrap_or(30))
}
