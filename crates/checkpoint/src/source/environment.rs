//! The environment variables and folders that say where to look and where to keep things, as `huggingface_hub` reads
//! them; the only place that reads the environment.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::Variables;
use crate::Error;

/// The process's environment, or a substitute for it.
#[derive(Clone, Copy)]
pub(super) struct Environment<'a> {
    pub substitute: Option<&'a Variables<'a>>,
}

impl Environment<'_> {
    /// A variable that is set and not empty.
    pub fn get(&self, name: &str) -> Option<OsString> {
        let value = match self.substitute {
            Some(substitute) => substitute(name),
            None => std::env::var_os(name),
        };
        value.filter(|value| !value.is_empty())
    }

    fn text(&self, name: &str) -> Option<String> {
        self.get(name)?.into_string().ok()
    }

    fn flag(&self, name: &str) -> bool {
        self.text(name).is_some_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str()))
    }

    /// A variable that names a folder or file; a leading `~` is the user's home.
    fn path(&self, name: &str) -> Option<PathBuf> {
        let path = PathBuf::from(self.get(name)?);
        match path.strip_prefix("~") {
            Ok(rest) => Some(self.home()?.join(rest)),
            Err(_) => Some(path),
        }
    }

    fn home(&self) -> Option<PathBuf> {
        let name = if cfg!(windows) { "USERPROFILE" } else { "HOME" };
        match self.get(name) {
            Some(home) => Some(PathBuf::from(home)),
            None if self.substitute.is_none() => std::env::home_dir(),
            None => None,
        }
    }

    /// `HF_ENDPOINT`, without a slash at its end.
    pub fn hub_endpoint(&self) -> String {
        let endpoint = self.text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        endpoint.trim_end_matches('/').to_owned()
    }

    /// `HF_HUB_OFFLINE` or `TRANSFORMERS_OFFLINE`.
    pub fn hub_offline(&self) -> bool {
        self.flag("HF_HUB_OFFLINE") || self.flag("TRANSFORMERS_OFFLINE")
    }

    /// The folder of the hub's cache.
    pub fn hub_cache(&self) -> Result<PathBuf, Error> {
        if let Some(cache) = self.path("HF_HUB_CACHE").or_else(|| self.path("HUGGINGFACE_HUB_CACHE")) {
            return Ok(cache);
        }
        Ok(self.hub_home()?.join("hub"))
    }

    fn hub_home(&self) -> Result<PathBuf, Error> {
        let default =
            || Some(self.path("XDG_CACHE_HOME").or_else(|| Some(self.home()?.join(".cache")))?.join("huggingface"));
        self.path("HF_HOME").or_else(default).ok_or_else(|| no_cache("HF_HOME"))
    }

    /// The token for the hub: `HF_TOKEN`, or the one `hf auth login` left.
    pub fn hub_token(&self) -> Option<String> {
        let given = self.text("HF_TOKEN").or_else(|| self.text("HUGGING_FACE_HUB_TOKEN"));
        let token = given.or_else(|| {
            if self.flag("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
                return None;
            }
            let path = self.path("HF_TOKEN_PATH").or_else(|| Some(self.hub_home().ok()?.join("token")))?;
            let mut text = String::new();
            File::open(path).ok()?.take(1 << 16).read_to_string(&mut text).ok()?;
            Some(text)
        })?;
        let token = token.trim();
        (!token.is_empty()).then(|| token.to_owned())
    }

    /// A folder of this program's own in which something is kept for later.
    pub fn own_cache(&self, name: &str) -> Result<PathBuf, Error> {
        if let Some(cache) = self.path("FINEGATES_CACHE") {
            return Ok(cache.join(name));
        }
        let default = || {
            if cfg!(windows) {
                return self.path("LOCALAPPDATA");
            }
            let folder = if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" };
            Some(self.home()?.join(folder))
        };
        let caches = self.path("XDG_CACHE_HOME").or_else(default).ok_or_else(|| no_cache("FINEGATES_CACHE"))?;
        Ok(caches.join("finegates").join(name))
    }
}

fn no_cache(variable: &str) -> Error {
    Error::Io {
        path: Path::new("~").to_path_buf(),
        action: "find the user's home folder",
        source: std::io::Error::other(format!("set {variable} to a folder for downloads")),
    }
}
