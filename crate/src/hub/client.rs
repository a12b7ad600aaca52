//! Questions to the hub. Redirects are answered here, one by one: the token, and a password of the
//! hub's address, go to the hub's own host and port and nowhere else.

use super::answer::{without_passwords, About, Fault};
use super::{environment, HubConfig};
use std::io::{Read, Write};
use std::time::Duration;
use ureq::{Agent, Response};

/// Redirects of one question, at most.
const HOPS: usize = 10;
/// Bytes of a list of files, at most.
const LISTING: u64 = 256 << 20;

pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

impl Client {
    pub fn new(config: &HubConfig) -> Self {
        let agent = ureq::AgentBuilder::new()
            .try_proxy_from_env(true)
            .redirects(0)
            .timeout_connect(Duration::from_secs(15))
            .timeout_read(environment::patience())
            .user_agent(concat!("cltlab/", env!("CARGO_PKG_VERSION")))
            .build();
        Client { agent, endpoint: config.endpoint.clone(), token: config.token.clone() }
    }

    /// Commit, etag and size of the file at `url`.
    pub fn about(&self, url: &str) -> Result<About, Fault> {
        self.ask(url, Some("bytes=0-0"), true).map(|(about, _)| about)
    }

    /// Writes the bytes from `start` on to `out`, which is cut first when the whole comes instead;
    /// `seen` gets the number of bytes there.
    pub fn download(&self, url: &str, start: u64, out: &mut std::fs::File, seen: &mut dyn FnMut(u64)) -> Result<(), Fault> {
        let (_, response) = self.ask(url, Some(&format!("bytes={start}-")), false)?;
        let disk = |error: std::io::Error| Fault::Disk(std::path::PathBuf::new(), error);
        let mut done = start;
        let begins = response.header("Content-Range").and_then(|range| range.trim().strip_prefix("bytes ")?.split('-').next()?.parse::<u64>().ok());
        if response.status() != 206 || begins != Some(start) {
            if begins.unwrap_or(0) != 0 {
                return Err(Fault::Answer(format!("the hub sent bytes from {} on, not from {start}", begins.unwrap_or(0))));
            }
            out.set_len(0).map_err(disk)?;
            done = 0;
        }
        let mut reader = response.into_reader();
        let mut buffer = vec![0; 64 << 10];
        loop {
            seen(done);
            match reader.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => {
                    out.write_all(&buffer[..count]).map_err(disk)?;
                    done += count as u64;
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Fault::BrokeOff(self.hide(&error.to_string()))),
            }
        }
    }

    /// The JSON at `url`.
    pub fn json(&self, url: &str) -> Result<serde_json::Value, Fault> {
        let (_, response) = self.ask(url, None, false)?;
        let mut bytes = Vec::new();
        let read = response.into_reader().take(LISTING).read_to_end(&mut bytes);
        read.map_err(|error| Fault::BrokeOff(self.hide(&error.to_string())))?;
        serde_json::from_slice(&bytes).map_err(|error| Fault::Answer(format!("the hub's answer is no JSON: {error}")))
    }

    /// Follows redirects. `about` ends at the first that leaves the hub when all is known by then.
    fn ask(&self, url: &str, range: Option<&str>, about: bool) -> Result<(About, Response), Fault> {
        let address = |text: &str| {
            let url = self.agent.get(text).request_url().map(|url| url.as_url().clone());
            url.map_err(|error| Fault::Answer(format!("HF_ENDPOINT: not an address: {}", self.words(&error))))
        };
        let (hub, mut at) = (address(&self.endpoint)?, address(url)?);
        let mut known = About::default();
        for _ in 0..=HOPS {
            let upgraded = hub.scheme() == "http" && at.scheme() == "https" && hub.port().is_none() && at.port().is_none();
            let same = hub.scheme() == at.scheme() && hub.port_or_known_default() == at.port_or_known_default();
            let own = hub.host_str() == at.host_str() && (same || upgraded);
            let mut request = self.agent.request_url("GET", &at).set("Accept-Encoding", "identity");
            if let Some(range) = range {
                request = request.set("Range", range);
            }
            if let Some(token) = self.token.as_ref().filter(|_| own) {
                request = request.set("Authorization", &format!("Bearer {token}"));
            }
            let response = match request.call() {
                // A range in an empty file.
                Err(ureq::Error::Status(416, response)) if about => response,
                Err(ureq::Error::Status(status, response)) => return Err(Fault::Status(status, response.header("x-error-code").unwrap_or("").to_string())),
                Err(error) => return Err(Fault::Answer(self.words(&error))),
                Ok(response) => response,
            };
            known.take(&response, own);
            let status = response.status();
            if !(300..400).contains(&status) {
                return Ok((known, response));
            }
            let Some(next) = response.header("Location").filter(|_| matches!(status, 301 | 302 | 303 | 307 | 308)) else {
                return Err(Fault::Answer(format!("the hub answered {status} without an address")));
            };
            let next = at.join(next).map_err(|error| Fault::Answer(format!("the hub answered {status} with an address that cannot be read: {error}")))?;
            if at.scheme() == "https" && next.scheme() != "https" {
                return Err(Fault::Answer(format!("the hub answered {status} with an address that is not https")));
            }
            let leaves = next.host_str() != hub.host_str() || next.port_or_known_default() != at.port_or_known_default();
            if about && leaves && known.commit.is_some() && known.etag.is_some() && known.size.is_some() {
                return Ok((known, response));
            }
            at = next;
        }
        Err(Fault::Answer(format!("the hub answered with more than {HOPS} redirects")))
    }

    /// What went wrong, without the address, which may hold a password.
    fn words(&self, error: &ureq::Error) -> String {
        let ureq::Error::Transport(transport) = error else { return "the hub refused".to_string() };
        let cause = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
        let message = transport.message().map(|message| format!(": {message}")).unwrap_or_default();
        self.hide(&format!("{}{message}{cause}", transport.kind()))
    }

    /// `text` without the token and without the user part of addresses.
    pub fn hide(&self, text: &str) -> String {
        let text = without_passwords(text);
        match self.token.as_ref().filter(|token| !token.is_empty()) {
            Some(token) => text.replace(token.as_str(), "***"),
            None => text,
        }
    }
}

impl About {
    /// The hub's own word counts; another host's only where the hub said nothing.
    fn take(&mut self, response: &Response, own: bool) {
        let header = |name: &str| response.header(name).map(str::to_string);
        let total = header("Content-Range").and_then(|range| range.rsplit('/').next()?.trim().parse().ok());
        let whole = header("Content-Length").filter(|_| response.status() == 200).and_then(|length| length.trim().parse().ok());
        let size = header("x-linked-size").and_then(|size| size.trim().parse().ok()).or(total).or(whole);
        let etag = header("x-linked-etag").or_else(|| header("etag"));
        let put = |place: &mut Option<String>, value: Option<String>| if own || place.is_none() { *place = value.or_else(|| place.take()) };
        put(&mut self.commit, header("x-repo-commit"));
        put(&mut self.etag, etag);
        self.size = if own { size.or(self.size) } else { self.size.or(size) };
    }
}
