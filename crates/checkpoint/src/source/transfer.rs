//! Requests to the hub: TLS, redirects with the token kept to its own host, patience with busy servers, and files
//! that go on where an interrupted download stopped.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::thread;
use std::time::{Duration, Instant};

use ureq::http::{HeaderMap, Uri};
use ureq::{Agent, Body};

use super::FetchOptions;
use super::digest::Hasher;
use crate::error::shorten;

/// Most redirects of one request.
const REDIRECTS: usize = 10;
/// Attempts before giving up on a server that answers with an error or stops answering.
const ATTEMPTS: u32 = 5;

/// How long a busy server is waited for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Patience {
    /// There is something else to go on with.
    Little,
    /// There is not.
    Much,
}

/// A reply whose body has not been read.
pub(super) struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    /// Where it came from in the end.
    pub url: String,
    pub body: Body,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Whether the server may answer otherwise some other time.
    pub fn is_busy(&self) -> bool {
        matches!(self.status, 429 | 500..=599)
    }
}

/// A client for one hub endpoint.
pub(super) struct Client {
    agent: Agent,
    endpoint: Uri,
    token: Option<String>,
}

/// Why a request had no usable reply; in words, to be put after the model's name.
pub(super) struct Unreachable(pub String);

impl Client {
    pub fn new(endpoint: &str, token: Option<String>) -> Result<Client, Unreachable> {
        let uri: Uri = endpoint
            .parse()
            .ok()
            .filter(|uri: &Uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some())
            .ok_or_else(|| Unreachable(format!("HF_ENDPOINT: expected a URL, found {}", shorten(endpoint))))?;
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("finegates/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)));
        if matches!(uri.host(), Some("localhost" | "127.0.0.1" | "[::1]")) {
            config = config.proxy(None);
        }
        if uri.scheme_str() == Some("https") {
            config = config.tls_config(tls()?);
        }
        Ok(Client { agent: config.build().new_agent(), endpoint: uri, token })
    }

    /// Whether requests carry a token.
    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// A GET of a small document, following every redirect and retrying while the server is busy.
    pub fn get(&self, url: &str, patience: Patience) -> Result<Reply, Unreachable> {
        self.patiently(patience, || self.follow("GET", url, None, |_| true))
    }

    /// A HEAD that follows redirects within the hub (renamed models) but not those to where the data lies.
    pub fn head(&self, url: &str, patience: Patience) -> Result<Reply, Unreachable> {
        self.patiently(patience, || {
            self.follow("HEAD", url, None, |location| location.starts_with('/') && !location.starts_with("//"))
        })
    }

    fn patiently(
        &self,
        patience: Patience,
        request: impl Fn() -> Result<Reply, Unreachable>,
    ) -> Result<Reply, Unreachable> {
        let (attempts, longest_seconds) = match patience {
            Patience::Little => (2, 2),
            Patience::Much => (ATTEMPTS, 60),
        };
        let mut attempt = 1;
        loop {
            match request() {
                Ok(reply) if attempt < attempts && matches!(reply.status, 429 | 500 | 502 | 503 | 504) => {
                    let asked = reply.header("retry-after").and_then(|seconds| seconds.parse().ok()).unwrap_or(0);
                    thread::sleep(Duration::from_secs(u64::min(longest_seconds, asked)).max(backoff(attempt)));
                    attempt += 1;
                }
                other => return other,
            }
        }
    }

    fn follow(
        &self,
        method: &str,
        url: &str,
        from: Option<u64>,
        follows: impl Fn(&str) -> bool,
    ) -> Result<Reply, Unreachable> {
        let mut url = url.to_owned();
        for _ in 0..=REDIRECTS {
            let reply = self.once(method, &url, from)?;
            let location = if (300..400).contains(&reply.status) { reply.header("location") } else { None };
            match location {
                Some(location) if follows(location) => url = join(&url, location)?,
                _ => return Ok(reply),
            }
        }
        Err(Unreachable(format!("{}: more than {REDIRECTS} redirects", shorten(&url))))
    }

    fn once(&self, method: &str, url: &str, from: Option<u64>) -> Result<Reply, Unreachable> {
        let failed = |error: &dyn std::fmt::Display| Unreachable(format!("{}: {error}", shorten(url)));
        let uri: Uri = url.parse().map_err(|error| failed(&error))?;
        let mut request = ureq::http::Request::builder().method(method).uri(&uri);
        // The data lies with others, who have no business knowing the token.
        if let Some(token) = self
            .token
            .as_ref()
            .filter(|_| uri.scheme() == self.endpoint.scheme() && uri.authority() == self.endpoint.authority())
        {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(from) = from {
            request = request.header("range", format!("bytes={from}-"));
        }
        let request = request.body(()).map_err(|error| failed(&error))?;
        let (parts, body) = self.agent.run(request).map_err(|error| failed(&explain(&error)))?.into_parts();
        Ok(Reply { status: parts.status.as_u16(), headers: parts.headers, url: url.to_owned(), body })
    }

    /// Downloads `url` into `file`, which may hold the beginning already, and checks that `size` bytes with the hash
    /// `etag` have come. On success `file` is complete and synced.
    pub fn download(
        &self,
        url: &str,
        file: &mut File,
        size: Option<u64>,
        etag: &str,
        options: &FetchOptions,
    ) -> Result<(), Unreachable> {
        let io_failed = |error: io::Error| Unreachable(format!("cannot write the download: {error}"));
        let name = shorten(url.rsplit('/').next().unwrap_or(url)).split('?').next().unwrap_or_default().to_owned();
        let mut told = Instant::now();
        let mut failures = 0;
        loop {
            let start = file.seek(SeekFrom::End(0)).map_err(io_failed)?;
            if size.is_some_and(|size| start >= size) {
                break;
            }
            let mut position = start;
            let outcome = self.attempt(url, file, &mut position, size, |position| {
                if told.elapsed() > Duration::from_millis(500) {
                    told = Instant::now();
                    let total = size.map_or(String::new(), |size| format!(" of {}", megabytes(size)));
                    options.tell(&format!("{name}: {}{total}", megabytes(position)));
                }
            });
            match outcome {
                Ok(()) => break,
                Err(Interrupted::Final(reason)) => return Err(Unreachable(reason)),
                Err(Interrupted::Again(reason)) => {
                    failures = if position > start { 1 } else { failures + 1 };
                    if failures >= ATTEMPTS {
                        return Err(Unreachable(format!("{reason}; run it again to go on where it stopped")));
                    }
                    thread::sleep(backoff(failures));
                }
            }
        }
        check(file, size, etag).map_err(|reason| {
            // What is wrong now would be wrong next time too.
            let _ = file.set_len(0);
            Unreachable(format!("{}: {reason}", shorten(url)))
        })?;
        file.sync_all().map_err(io_failed)
    }

    fn attempt(
        &self,
        url: &str,
        file: &mut File,
        position: &mut u64,
        size: Option<u64>,
        mut tell: impl FnMut(u64),
    ) -> Result<(), Interrupted> {
        let from = Some(*position).filter(|&position| position > 0);
        let mut reply =
            self.follow("GET", url, from, |_| true).map_err(|Unreachable(reason)| Interrupted::Again(reason))?;
        match (reply.status, from) {
            (206, Some(_)) => {}
            (200, _) => {
                // A server that knows no ranges begins again.
                file.set_len(0).and_then(|()| file.rewind()).map_err(|error| Interrupted::Final(error.to_string()))?;
                *position = 0;
            }
            (429 | 500..=599, _) => return Err(Interrupted::Again(format!("the server answered {}", reply.status))),
            (status, _) => {
                return Err(Interrupted::Final(format!("{}: the server answered {status}", shorten(&reply.url))));
            }
        }
        let mut body = reply.body.as_reader();
        let mut piece = vec![0u8; 1 << 16];
        loop {
            let count = match body.read(&mut piece) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Interrupted::Again(format!("the connection broke: {error}"))),
            };
            if size.is_some_and(|size| *position + count as u64 > size) {
                return Err(Interrupted::Final(format!(
                    "{}: more came than the announced {} bytes",
                    shorten(url),
                    size.unwrap_or(0)
                )));
            }
            file.write_all(&piece[..count]).map_err(|error| Interrupted::Final(error.to_string()))?;
            *position += count as u64;
            tell(*position);
        }
        match size {
            Some(size) if *position < size => {
                Err(Interrupted::Again(format!("the connection ended after {position} of {size} bytes")))
            }
            _ => Ok(()),
        }
    }
}

/// Why an attempt ended early.
enum Interrupted {
    /// Trying again may help.
    Again(String),
    /// It will not.
    Final(String),
}

/// An error of the client, with what helps against it where that is known.
fn explain(error: &ureq::Error) -> String {
    let text = error.to_string();
    if text.contains("No CA certificates") {
        return format!("{text}; install the system's ca-certificates, or set SSL_CERT_FILE to a file of trusted ones");
    }
    if text.contains("invalid peer certificate") {
        return format!(
            "{text}; does a proxy intercept the connection? Set SSL_CERT_FILE to a file with its certificate too"
        );
    }
    text
}

fn backoff(attempt: u32) -> Duration {
    Duration::from_millis(500 << attempt.min(5))
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// Whether the file is the announced one.
fn check(file: &mut File, size: Option<u64>, etag: &str) -> Result<(), String> {
    let found = file.seek(SeekFrom::End(0)).map_err(|error| error.to_string())?;
    if let Some(size) = size.filter(|&size| size != found) {
        return Err(format!("expected {size} bytes, found {found}"));
    }
    let Some(mut hasher) = Hasher::of_etag(etag, found) else { return Ok(()) };
    file.rewind().map_err(|error| error.to_string())?;
    io::copy(file, &mut hasher).map_err(|error| error.to_string())?;
    let found = hasher.finish();
    if found != etag {
        return Err(format!("expected content with hash {etag}, found {found}; is a proxy or mirror changing it?"));
    }
    Ok(())
}

/// Where a redirect leads.
fn join(url: &str, location: &str) -> Result<String, Unreachable> {
    let broken = || Unreachable(format!("{}: broken redirect to {}", shorten(url), shorten(location)));
    let base: Uri = url.parse().map_err(|_| broken())?;
    let (Some(scheme), Some(authority)) = (base.scheme_str(), base.authority()) else { return Err(broken()) };
    let joined = if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.contains("://") {
        location.to_owned()
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    match (scheme, joined.split_once("://").map(|(scheme, _)| scheme)) {
        ("https", Some("http")) => Err(Unreachable(format!("{}: redirected from https to http", shorten(url)))),
        (_, Some("http" | "https")) => Ok(joined),
        _ => Err(broken()),
    }
}

/// TLS in pure Rust, with the certificates the system trusts.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn tls() -> Result<ureq::tls::TlsConfig, Unreachable> {
    // The library panics on older processors.
    #[cfg(target_arch = "x86_64")]
    let able = std::is_x86_feature_detected!("aes")
        && std::is_x86_feature_detected!("pclmulqdq")
        && std::is_x86_feature_detected!("bmi1")
        && std::is_x86_feature_detected!("adx")
        && std::is_x86_feature_detected!("avx")
        && std::is_x86_feature_detected!("avx2");
    #[cfg(target_arch = "aarch64")]
    let able = std::arch::is_aarch64_feature_detected!("neon")
        && std::arch::is_aarch64_feature_detected!("aes")
        && std::arch::is_aarch64_feature_detected!("pmull")
        && std::arch::is_aarch64_feature_detected!("sha2");
    if !able {
        return Err(unable());
    }
    Ok(ureq::tls::TlsConfig::builder()
        .root_certs(ureq::tls::RootCerts::PlatformVerifier)
        .unversioned_rustls_crypto_provider(std::sync::Arc::new(rustls_graviola::default_provider()))
        .build())
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn tls() -> Result<ureq::tls::TlsConfig, Unreachable> {
    Err(unable())
}

fn unable() -> Unreachable {
    Unreachable(
        "this processor lacks the instructions our https needs; download the model with `hf download` and give its folder"
            .to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::join;

    #[test]
    fn redirects_lead_where_they_say_but_never_from_https_to_http() {
        let joined = |location| join("https://hub/a/resolve/main/f", location).ok();
        assert_eq!(joined("/b/f").as_deref(), Some("https://hub/b/f"));
        assert_eq!(joined("g").as_deref(), Some("https://hub/a/resolve/main/g"));
        assert_eq!(joined("//data/f").as_deref(), Some("https://data/f"));
        assert_eq!(joined("https://data/f?x=1").as_deref(), Some("https://data/f?x=1"));
        assert_eq!(joined("http://data/f"), None);
        assert_eq!(joined("file:///etc/passwd"), None);
    }
}
