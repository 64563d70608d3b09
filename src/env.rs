//! Every environment variable that the project reads, in one place.
//!
//! Settings of a run (`CANDLEWICK_...`) are the business of `config`; here are the variables that other tools share:
//! those of the Hugging Face Hub, and those of terminals. Nothing is written to the environment.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// The variables by name, with what each does; the reference page lists them.
pub const VARIABLES: &[(&str, &str)] = &[
    ("PATH", "where the program of a `command` reward is looked for"),
    ("HF_HUB_CACHE", "folder of the Hub cache"),
    ("HUGGINGFACE_HUB_CACHE", "older name of HF_HUB_CACHE, which wins"),
    ("HF_HOME", "folder of all Hugging Face files; the cache is `hub` in it"),
    ("XDG_CACHE_HOME", "parent of the default HF_HOME (`~/.cache` otherwise)"),
    ("HF_TOKEN", "access token for the Hub"),
    ("HF_TOKEN_PATH", "file with the access token (`$HF_HOME/token` otherwise)"),
    ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "true: the stored token is not sent"),
    ("HF_ENDPOINT", "address of the Hub or of a mirror"),
    ("HF_HUB_OFFLINE", "true: only local files and the cache are used"),
    ("TRANSFORMERS_OFFLINE", "same as HF_HUB_OFFLINE"),
    ("HF_HUB_DISABLE_PROGRESS_BARS", "true: no download messages"),
    ("HF_HUB_DOWNLOAD_TIMEOUT", "seconds without a byte after which a download or a push tries again (default 60)"),
    ("HTTPS_PROXY", "address of a proxy; also HTTP_PROXY, ALL_PROXY and, for what needs none, NO_PROXY"),
    ("SSL_CERT_FILE", "certificates to trust in place of the system's; also SSL_CERT_DIR, a folder of them"),
    ("WANDB_PROJECT", "project in wandb where `project` is not set"),
    ("WANDB_MODE", "read by wandb: `offline` keeps the run on disk, for `wandb sync`"),
    ("TRACKIO_PROJECT", "project in trackio where `project` is not set"),
    ("TRACKIO_SPACE_ID", "read by trackio: the Space that it reports to"),
    ("NO_COLOR", "not empty: no colours"),
    ("CLICOLOR_FORCE", "not empty and not 0: colours also where the output is no terminal"),
    ("TERM", "`dumb`: no progress bars, plain lines instead"),
    ("RUST_LOG", "log filter, as `candlewick=debug`"),
    ("CUDA_VISIBLE_DEVICES", "read by the CUDA driver"),
    ("RAYON_NUM_THREADS", "threads of the CPU kernels, read by rayon"),
];

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
const DEFAULT_DOWNLOAD_TIMEOUT_SECS: u64 = 60;
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// A text that must not be printed. It has no `Display`, and its `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one call that needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// `message` with every occurrence of the secret masked, for texts that come from elsewhere.
    #[must_use]
    pub fn redact(&self, message: &str) -> String {
        if self.0.is_empty() { message.to_owned() } else { message.replace(&self.0, "[token]") }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(..)")
    }
}

/// What the environment says about the Hugging Face Hub.
#[derive(Debug, Clone)]
pub struct HubEnv {
    /// Root of the cache; `models--org--name` folders lie in it.
    pub cache: PathBuf,
    /// Sent to the endpoint only.
    pub token: Option<Secret>,
    /// Without a slash at the end.
    pub endpoint: String,
    /// No connection may be opened.
    pub offline: bool,
    /// Whether download messages are wanted.
    pub progress: bool,
    /// Longest wait for the next byte, in either direction.
    pub download_timeout: Duration,
    /// Pause before a request that failed is tried again; each further pause is twice as long.
    pub first_pause: Duration,
}

impl HubEnv {
    /// Reads the environment of the process (and the token file that it names).
    #[must_use]
    pub fn read() -> Self {
        Self::from_lookup(&|name| std::env::var_os(name))
    }

    /// Reads the environment that `lookup` describes.
    #[must_use]
    pub fn from_lookup(lookup: &dyn Fn(&str) -> Option<OsString>) -> Self {
        let set = |name: &str| lookup(name).filter(|value| !value.is_empty());
        let text = |name: &str| set(name).and_then(|value| value.into_string().ok()).map(|text| text.trim().to_owned());
        let flag = |name: &str| text(name).is_some_and(|value| is_true(&value));
        let folder = |name: &str| set(name).map(PathBuf::from);
        let home = folder("HOME").unwrap_or_else(|| PathBuf::from("/tmp"));
        let hf_home = folder("HF_HOME")
            .unwrap_or_else(|| folder("XDG_CACHE_HOME").unwrap_or_else(|| home.join(".cache")).join("huggingface"));
        let stored_token = || {
            let path = folder("HF_TOKEN_PATH").unwrap_or_else(|| hf_home.join("token"));
            std::fs::read_to_string(path).ok().map(|token| token.trim().to_owned())
        };
        let token = if flag("HF_HUB_DISABLE_IMPLICIT_TOKEN") { None } else { text("HF_TOKEN").or_else(stored_token) };
        let token = token.filter(|token| !token.is_empty()).map(Secret::new);
        let timeout = text("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|secs| secs.parse().ok()).filter(|secs| *secs > 0);
        Self {
            cache: folder("HF_HUB_CACHE")
                .or_else(|| folder("HUGGINGFACE_HUB_CACHE"))
                .unwrap_or_else(|| hf_home.join("hub")),
            token,
            endpoint: text("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.into()).trim_end_matches('/').to_owned(),
            offline: flag("HF_HUB_OFFLINE") || flag("TRANSFORMERS_OFFLINE"),
            progress: !flag("HF_HUB_DISABLE_PROGRESS_BARS"),
            download_timeout: Duration::from_secs(timeout.unwrap_or(DEFAULT_DOWNLOAD_TIMEOUT_SECS)),
            first_pause: FIRST_PAUSE,
        }
    }
}

/// The folders of `PATH`, in order.
#[must_use]
pub fn search_path() -> Vec<PathBuf> {
    std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default()
}

/// A secret in a variable that the user names; None where it is not set or empty.
#[must_use]
pub fn secret(variable: &str) -> Option<Secret> {
    let text = std::env::var(variable).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| Secret::new(text))
}

/// Whether colours are wanted on an output that is (`is_terminal`) or is not a terminal.
#[must_use]
pub fn wants_color(is_terminal: bool) -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if set("NO_COLOR") {
        return false;
    }
    let forced = set("CLICOLOR_FORCE") && std::env::var_os("CLICOLOR_FORCE").is_some_and(|value| value != "0");
    forced || is_terminal
}

/// Whether the terminal, if there is one, can move its cursor.
#[must_use]
pub fn can_redraw() -> bool {
    std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// The log filter of `RUST_LOG`, if it is set.
#[must_use]
pub fn log_filter() -> Option<String> {
    std::env::var("RUST_LOG").ok().filter(|filter| !filter.is_empty())
}

/// The Hub's words for true: 1, ON, YES, TRUE in any case.
fn is_true(value: &str) -> bool {
    ["1", "on", "yes", "true"].iter().any(|word| value.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> HubEnv {
        HubEnv::from_lookup(&|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(*value))
        })
    }

    #[test]
    fn cache_folders_are_found_in_the_order_of_the_python_library() {
        let all =
            [("HF_HUB_CACHE", "/a"), ("HUGGINGFACE_HUB_CACHE", "/b"), ("HF_HOME", "/c"), ("XDG_CACHE_HOME", "/d")];
        let expected = ["/a", "/b", "/c/hub", "/d/huggingface/hub"];
        for (skip, folder) in expected.iter().enumerate() {
            assert_eq!(read(&all[skip..]).cache, PathBuf::from(folder));
        }
        assert_eq!(read(&[("HOME", "/home/x")]).cache, PathBuf::from("/home/x/.cache/huggingface/hub"));
    }

    #[test]
    fn truth_is_spelled_as_on_the_hub() {
        for (value, truth) in
            [("1", true), ("on", true), ("Yes", true), ("TRUE", true), ("0", false), ("", false), ("2", false)]
        {
            assert_eq!(read(&[("HF_HUB_OFFLINE", value)]).offline, truth, "{value:?}");
            assert_eq!(read(&[("TRANSFORMERS_OFFLINE", value)]).offline, truth, "{value:?}");
        }
    }

    #[test]
    fn the_token_does_not_show() {
        let env = read(&[("HF_TOKEN", " hf_canary \n"), ("HF_ENDPOINT", "http://localhost:1/")]);
        let token = env.token.clone().unwrap();
        assert_eq!(token.expose(), "hf_canary");
        assert!(!format!("{env:?}").contains("canary"));
        assert_eq!(token.redact("bad token hf_canary!"), "bad token [token]!");
        assert_eq!(env.endpoint, "http://localhost:1");
        assert!(read(&[("HF_TOKEN", "x"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]).token.is_none());
    }

    #[test]
    fn the_token_file_is_the_fallback() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), "hf_file\n").unwrap();
        let home = folder.path().to_str().unwrap();
        assert_eq!(read(&[("HF_HOME", home)]).token.unwrap().expose(), "hf_file");
        assert_eq!(read(&[("HF_HOME", home), ("HF_TOKEN", "hf_env")]).token.unwrap().expose(), "hf_env");
    }
}
