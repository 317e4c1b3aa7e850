//! An endpoint that speaks OpenAI's chat protocol.

use std::fmt;
use std::time::{Duration, SystemTime};

use backon::{BackoffBuilder, ExponentialBuilder};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A reply is a letter or a short reason; what is longer than this isn't one.
const LARGEST_REPLY: u64 = 16 << 20;
/// How much of an endpoint's message is repeated.
const LONGEST_MESSAGE: usize = 300;
/// Asked to wait longer than this, it stops instead.
const LONGEST_WAIT: Duration = Duration::from_secs(15 * 60);

/// The secret that an endpoint wants. It is never shown.
#[derive(Clone)]
pub struct Key(String);

impl Key {
    /// A key as it stands in the environment; `None` if it is empty.
    ///
    /// # Errors
    /// Characters that can't stand in a header.
    pub fn new(text: &str) -> Result<Option<Self>, EndpointError> {
        let text = text.trim();
        match text.bytes().all(|byte| byte.is_ascii_graphic()) {
            true => Ok((!text.is_empty()).then(|| Self(text.to_owned()))),
            false => Err(EndpointError::Key),
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

/// How long and how often it is tried.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Requests for one reply, at most.
    pub attempts: usize,
    /// The wait after the first failure; it doubles each time.
    pub first_wait: Duration,
    /// The longest of these waits.
    pub longest_wait: Duration,
    /// How long one request may take.
    pub timeout: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            attempts: 8,
            first_wait: seconds(1),
            longest_wait: seconds(60),
            timeout: seconds(120),
        }
    }
}

/// Where replies come from.
#[derive(Debug)]
pub struct Endpoint {
    base: String,
    key: Option<Key>,
    patience: Patience,
    agent: ureq::Agent,
}

/// Why there is no reply.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum EndpointError {
    /// Not a URL that can be asked.
    #[error(
        "the endpoint's URL {0:?} has to be http://… or https://… without a user or a password, such as https://api.openai.com/v1"
    )]
    Url(String),
    /// A key with characters that can't be sent.
    #[error("the key in OPENAI_API_KEY has characters that can't stand in a header")]
    Key,
    /// It refuses this request, and would again; others may go through.
    #[error("the endpoint refuses the request (status {status}): {message}")]
    Rejected {
        /// The HTTP status.
        status: u16,
        /// What it says.
        message: String,
    },
    /// It refuses all requests.
    #[error("the endpoint refuses to answer (status {status}): {message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// What it says.
        message: String,
    },
    /// It failed again and again.
    #[error(
        "the endpoint failed {attempts} times, at last: {message}; the same command continues from here"
    )]
    Failed {
        /// How often it was asked.
        attempts: usize,
        /// What happened.
        message: String,
    },
    /// It asks for more patience than there is.
    #[error("the endpoint asks to wait for {} minutes; the same command continues from here", .0.as_secs().div_ceil(60))]
    Wait(Duration),
    /// It was stopped while it waited.
    #[error("interrupted")]
    Interrupted,
}

/// Tokens as the endpoint counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens sent.
    pub prompt_tokens: u64,
    /// Tokens received.
    pub completion_tokens: u64,
}

/// A generated token with what else could have stood there.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Its text.
    pub text: String,
    /// The most likely tokens with their log-probabilities.
    pub top: Vec<(String, f64)>,
}

/// What the endpoint answers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reply {
    /// The text.
    pub text: String,
    /// Why the model refuses, where it says so in the protocol's own field, or a filter stopped it.
    pub refusal: Option<String>,
    /// Whether the text was cut off at the limit of tokens.
    pub is_cut_off: bool,
    /// The tokens, where the endpoint gives probabilities.
    pub tokens: Vec<Token>,
    /// What is counted, where the endpoint counts.
    pub usage: Option<Usage>,
    /// The model that answered, by the endpoint's own name.
    pub model: Option<String>,
}

/// What went wrong with one request.
enum Fault {
    /// Worth another try.
    Passing {
        message: String,
        wait: Option<Duration>,
    },
    Lasting(EndpointError),
}

impl Endpoint {
    /// An endpoint at a base URL such as `https://api.openai.com/v1`.
    ///
    /// # Errors
    /// A text that isn't such a URL, or one with a user or a password in it, which would end up in files.
    pub fn new(base: &str, key: Option<Key>, patience: Patience) -> Result<Self, EndpointError> {
        let base = base.trim().trim_end_matches('/').trim_end_matches("/chat/completions");
        let wrong = || EndpointError::Url(base.rsplit('@').next().unwrap_or_default().to_owned());
        let uri: ureq::http::Uri = base.parse().map_err(|_| wrong())?;
        let host = uri.host().filter(|_| !base.contains('@')).ok_or_else(wrong)?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(wrong());
        }
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(patience.timeout))
            // A redirected request would take its key elsewhere.
            .max_redirects(0)
            .max_redirects_will_error(false);
        // A proxy can't reach what listens on this machine alone.
        let is_local = matches!(host, "localhost" | "127.0.0.1" | "[::1]");
        let config = if is_local { config.proxy(None) } else { config };
        Ok(Self { base: base.to_owned(), key, patience, agent: config.build().into() })
    }

    /// The base URL.
    pub fn url(&self) -> &str {
        &self.base
    }

    /// The reply to a request. What may pass is tried again after a while: connections that fail, statuses 408, 409, 425, 429 and
    /// 5xx, and what isn't a chat completion. `Retry-After` is honoured.
    ///
    /// # Errors
    /// See [`EndpointError`].
    pub fn ask(
        &self,
        body: &Value,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<Reply, EndpointError> {
        let Patience { attempts, first_wait, longest_wait, .. } = self.patience;
        let backoff = ExponentialBuilder::new()
            .with_min_delay(first_wait)
            .with_max_delay(longest_wait)
            .with_max_times(attempts.saturating_sub(1))
            .with_jitter();
        let mut waits = backoff.build();
        loop {
            if stop() {
                return Err(EndpointError::Interrupted);
            }
            let (message, asked) = match self.attempt(body) {
                Ok(reply) => return Ok(reply),
                Err(Fault::Lasting(error)) => return Err(error),
                Err(Fault::Passing { message, wait }) => (message, wait),
            };
            let Some(wait) = waits.next() else {
                return Err(EndpointError::Failed { attempts, message });
            };
            let wait = wait.max(asked.unwrap_or_default());
            if wait > LONGEST_WAIT {
                return Err(EndpointError::Wait(wait));
            }
            sleep(wait, stop);
        }
    }

    fn attempt(&self, body: &Value) -> Result<Reply, Fault> {
        let url = format!("{}/chat/completions", self.base);
        let mut request = self.agent.post(url).header("content-type", "application/json");
        if let Some(Key(key)) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let passing =
            |message: String| Fault::Passing { message: self.without_key(&message), wait: None };
        let mut response = request
            .send(body.to_string().as_bytes())
            .map_err(|error| passing(error.to_string()))?;
        let status = response.status().as_u16();
        let header = response.headers().get("retry-after").and_then(|value| value.to_str().ok());
        let wait = header.and_then(retry_after);
        let bytes = response.body_mut().with_config().limit(LARGEST_REPLY).read_to_vec();
        let bytes = bytes.map_err(|error| passing(format!("its reply broke off: {error}")))?;
        let text = String::from_utf8_lossy(&bytes);
        let message = self.without_key(&error_message(&text));
        match status {
            200..=299 => parse(&text)
                .ok_or_else(|| passing(format!("its reply isn't a chat completion: {message}"))),
            // Without money, waiting doesn't help.
            429 if text.contains("insufficient_quota") => {
                Err(Fault::Lasting(EndpointError::Refused { status, message }))
            }
            408 | 409 | 425 | 429 | 500.. => {
                Err(Fault::Passing { message: format!("status {status}: {message}"), wait })
            }
            401..=404 | ..=399 => Err(Fault::Lasting(EndpointError::Refused { status, message })),
            _ => Err(Fault::Lasting(EndpointError::Rejected { status, message })),
        }
    }

    /// Endpoints repeat keys in their messages.
    fn without_key(&self, text: &str) -> String {
        match &self.key {
            Some(Key(key)) => text.replace(key.as_str(), "(the key)"),
            None => text.to_owned(),
        }
    }
}

/// Sleeps, and wakes when it should stop.
fn sleep(wait: Duration, stop: &(dyn Fn() -> bool + Sync)) {
    const SLICE: Duration = Duration::from_millis(100);
    let end = std::time::Instant::now() + wait;
    while !stop() {
        let left = end.saturating_duration_since(std::time::Instant::now());
        if left.is_zero() {
            break;
        }
        std::thread::sleep(left.min(SLICE));
    }
}

/// `Retry-After` in seconds or as a date.
fn retry_after(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let date = httpdate::parse_http_date(text.trim()).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

/// What an endpoint says about an error: its message, or the beginning of whatever it sent.
fn error_message(text: &str) -> String {
    let value: Option<Value> = serde_json::from_str(text).ok();
    let error = value.as_ref().and_then(|value| value.get("error"));
    let message =
        error.and_then(|error| error.get("message").or(Some(error))).and_then(Value::as_str);
    let message = message.unwrap_or(text).split_whitespace().collect::<Vec<&str>>().join(" ");
    match message.is_empty() {
        true => "(nothing)".to_owned(),
        false => message.chars().take(LONGEST_MESSAGE).collect(),
    }
}

/// Reads a chat completion; `None` if it isn't one.
fn parse(text: &str) -> Option<Reply> {
    let value: Value = serde_json::from_str(text).ok()?;
    let choice = value.get("choices")?.get(0)?;
    let message = choice.get("message")?.as_object()?;
    let text = match message.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => parts
            .iter()
            .filter_map(|part| part.get("text")?.as_str())
            .collect::<Vec<&str>>()
            .concat(),
        None | Some(Value::Null) => String::new(),
        Some(_) => return None,
    };
    let finish = choice.get("finish_reason").and_then(Value::as_str);
    let refusal = message.get("refusal").and_then(Value::as_str).map(str::to_owned);
    let filtered =
        (finish == Some("content_filter")).then(|| "stopped by the endpoint's filter".to_owned());
    let tokens = choice.get("logprobs").and_then(|l| l.get("content")).and_then(Value::as_array);
    let count = |name: &str| value.get("usage")?.get(name)?.as_u64();
    let usage = count("prompt_tokens").map(|prompt_tokens| Usage {
        prompt_tokens,
        completion_tokens: count("completion_tokens").unwrap_or_default(),
    });
    Some(Reply {
        text,
        refusal: refusal.or(filtered),
        is_cut_off: finish == Some("length"),
        tokens: tokens.into_iter().flatten().filter_map(token).collect(),
        usage,
        model: value.get("model").and_then(Value::as_str).map(str::to_owned),
    })
}

fn token(value: &Value) -> Option<Token> {
    let text = |value: &Value| Some(value.get("token")?.as_str()?.to_owned());
    let top = value.get("top_logprobs").and_then(Value::as_array).into_iter().flatten();
    let top = top.filter_map(|value| Some((text(value)?, value.get("logprob")?.as_f64()?)));
    Some(Token { text: text(value)?, top: top.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_read_as_seconds_or_dates() {
        assert_eq!(retry_after("7"), Some(Duration::from_secs(7)));
        assert_eq!(retry_after(" 0.5 "), Some(Duration::from_millis(500)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        for text in ["soon", "-1", "nan", "1e300", ""] {
            assert_eq!(retry_after(text), None, "{text}");
        }
        let later = SystemTime::now() + Duration::from_secs(100);
        let wait = retry_after(&httpdate::fmt_http_date(later)).unwrap();
        assert!((98..=100).contains(&wait.as_secs()), "{wait:?}");
    }

    #[test]
    fn urls_and_keys_that_cant_be_used_are_refused() {
        for url in ["", "api.openai.com/v1", "ftp://x/v1", "https://me:secret@host/v1", "http://"] {
            let error = Endpoint::new(url, None, Patience::default()).unwrap_err().to_string();
            assert!(error.contains("has to be http") && !error.contains("secret"), "{error}");
        }
        let endpoint =
            Endpoint::new(" http://[::1]:8000/v1/chat/completions/ ", None, Patience::default())
                .unwrap();
        assert_eq!(endpoint.url(), "http://[::1]:8000/v1");
        assert!(Key::new("a\nb").is_err());
        assert!(Key::new(" ").unwrap().is_none());
        assert_eq!(format!("{:?}", Key::new("sk-1").unwrap().unwrap()), "Key(…)");
    }
}
