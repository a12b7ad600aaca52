//! One request and its answer.

use super::folder::{Found, Folder};
use super::page;
use cltlab::prelude::*;
use std::io::{Read, Seek, SeekFrom};
use tiny_http::{Header, Method, Request, Response, StatusCode};

/// Bytes of an address, at most.
const LONGEST: usize = 4096;

/// What is answered.
struct Answer {
    status: u16,
    kind: &'static str,
    body: Body,
    /// Bytes `first` to `last` of `all`.
    part: Option<(u64, u64, u64)>,
}

enum Body {
    Bytes(Vec<u8>),
    File(std::fs::File, u64),
}

impl Answer {
    fn text(status: u16, text: &str) -> Self {
        Answer { status, kind: "text/plain; charset=utf-8", body: Body::Bytes(format!("{text}\n").into_bytes()), part: None }
    }

    fn page(html: String) -> Self {
        Answer { status: 200, kind: "text/html; charset=utf-8", body: Body::Bytes(html.into_bytes()), part: None }
    }
}

/// Answers a request; a client that went away is no error.
pub fn answer(folder: &Folder, request: Request) {
    let answer = decide(folder, &request);
    let mut headers = vec![
        ("Content-Type", answer.kind.to_string()),
        ("X-Content-Type-Options", "nosniff".into()),
        ("Cross-Origin-Resource-Policy", "same-origin".into()),
        ("Content-Security-Policy", "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'".into()),
        ("Referrer-Policy", "no-referrer".into()),
        ("Cache-Control", "no-cache".into()),
    ];
    if let Body::File(..) = answer.body {
        headers.push(("Accept-Ranges", "bytes".into()));
    }
    if let Some((first, last, all)) = answer.part {
        headers.push(("Content-Range", format!("bytes {first}-{last}/{all}")));
    }
    if answer.status == 405 {
        headers.push(("Allow", "GET, HEAD".into()));
    }
    let headers: Vec<Header> = headers.into_iter().filter_map(|(name, value)| Header::from_bytes(name, value).ok()).collect();
    let (body, length): (Box<dyn Read>, u64) = match answer.body {
        Body::Bytes(bytes) => {
            let length = bytes.len() as u64;
            (Box::new(std::io::Cursor::new(bytes)), length)
        }
        Body::File(file, length) => (Box::new(file.take(length)), length),
    };
    let _ = request.respond(Response::new(StatusCode(answer.status), headers, body, usize::try_from(length).ok(), None).with_chunked_threshold(usize::MAX));
}

fn decide(folder: &Folder, request: &Request) -> Answer {
    if !is_own_host(request) {
        return Answer::text(421, "this server answers requests for 127.0.0.1 and localhost only");
    }
    if !matches!(request.method(), Method::Get | Method::Head) {
        return Answer::text(405, "only GET and HEAD are answered");
    }
    let Some(path) = path_of(request.url()) else { return Answer::text(400, "this address cannot be read") };
    match found(folder, &path, request) {
        Ok(Some(answer)) => answer,
        Ok(None) => Answer::text(404, "nothing is here"),
        Err(error) => Answer::text(500, &crate::out::printable(&error.to_string())),
    }
}

/// Whether the one `Host` header names this machine's own address.
fn is_own_host(request: &Request) -> bool {
    let mut hosts = request.headers().iter().filter(|header| header.field.equiv("Host"));
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    let host = host.value.as_str().trim();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    name == "127.0.0.1" || name.eq_ignore_ascii_case("localhost") || name == "[::1]"
}

/// The path of an address, its escapes resolved; `None` for what is no path.
fn path_of(url: &str) -> Option<String> {
    if url.len() > LONGEST || !url.starts_with('/') {
        return None;
    }
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        bytes.push((16 * digit(rest.next())? + digit(rest.next())?) as u8);
    }
    String::from_utf8(bytes).ok().filter(|path| !path.chars().any(char::is_control))
}

fn found(folder: &Folder, path: &str, request: &Request) -> Result<Option<Answer>> {
    let below = |prefix: &str| path.strip_prefix(prefix);
    match path {
        "/" | "/index.html" => return Ok(Some(Answer::page(page::list(folder, &folder.graphs()?)))),
        "/graph-metadata.json" | "/data/graph-metadata.json" => {
            let list = serde_json::to_vec(&folder.list()?).map_err(|error| Error::wrap(ErrorKind::BadFile, "graph-metadata.json", error))?;
            return Ok(Some(Answer { status: 200, kind: "application/json", body: Body::Bytes(list), part: None }));
        }
        _ => {}
    }
    if let Some(name) = below("/graph/") {
        return Ok(folder.graph(name)?.map(|graph| Answer::page(page::one(&graph))));
    }
    if let Some(name) = below("/picture/").and_then(|name| name.strip_suffix(".svg")) {
        let svg = folder.picture(name)?;
        return Ok(svg.map(|svg| Answer { status: 200, kind: "image/svg+xml", body: Body::Bytes(svg.into_bytes()), part: None }));
    }
    let file = if let Some(name) = below("/graph_data/").or_else(|| below("/data/")) {
        folder.file(name, &["json"])?
    } else if let Some(name) = below("/features/") {
        folder.file(&format!("features/{name}"), &["json", "gz", "bin"])?
    } else {
        None
    };
    file.map(|file| send(file, request)).transpose()
}

/// A file, or the part of it that `Range` asks for.
fn send(Found { mut file, length, name }: Found, request: &Request) -> Result<Answer> {
    let kind = match name.rsplit('.').next() {
        Some("json") => "application/json",
        Some("gz") => "application/gzip",
        _ => "application/octet-stream",
    };
    let range = request.headers().iter().find(|header| header.field.equiv("Range")).and_then(|header| part(header.value.as_str(), length));
    match range {
        None => Ok(Answer { status: 200, kind, body: Body::File(file, length), part: None }),
        Some(None) => Ok(Answer::text(416, "the file ends before this part")),
        Some(Some((first, last))) => {
            file.seek(SeekFrom::Start(first)).map_err(|error| Error::io(&name, error))?;
            Ok(Answer { status: 206, kind, body: Body::File(file, last - first + 1), part: Some((first, last, length)) })
        }
    }
}

/// `bytes=first-last`, `bytes=first-` or `bytes=-count`: `None` for what is no such thing, which is passed over;
/// `Some(None)` for what lies beyond the end.
fn part(range: &str, length: u64) -> Option<Option<(u64, u64)>> {
    let (first, last) = range.trim().strip_prefix("bytes=")?.split_once('-')?;
    let end = length.checked_sub(1);
    Some(match (first.is_empty(), last.is_empty()) {
        (true, true) => return None,
        (true, false) => {
            let count: u64 = last.parse().ok()?;
            end.filter(|_| count > 0).map(|end| (length.saturating_sub(count), end))
        }
        (false, _) => {
            let first: u64 = first.parse().ok()?;
            let last: u64 = if last.is_empty() { u64::MAX } else { last.parse().ok()? };
            if last < first {
                return None;
            }
            end.filter(|end| first <= *end).map(|end| (first, last.min(end)))
        }
    })
}
