//! How often a request is tried, and how long the pauses are.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::{Timestamp, fmt::rfc2822};
use ureq::http::HeaderMap;

use super::http::header;

/// Tries of a request that fails for a reason that may pass.
pub(super) const ATTEMPTS: u32 = 5;
/// The longest wait that a server may ask for; a person can wait longer better than a program.
const LONGEST_WAIT: Duration = Duration::from_secs(120);

/// The pause after `tries` tries: doubled each time, not the same for everyone, and never shorter than the server asks.
/// `None` where it asks for more than is waited for.
pub(super) fn pause_before(tries: u32, asked: Option<Duration>, first: Duration) -> Option<Duration> {
    let backoff = first * 2_u32.saturating_pow(tries - 1);
    // Programs that were turned away together should not come back together.
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
    let spread = backoff / 4 * (nanos / 1000 % 100) / 100;
    match asked {
        Some(asked) if asked > LONGEST_WAIT => None,
        asked => Some((backoff + spread).max(asked.unwrap_or_default())),
    }
}

/// How long a server asks to wait: `Retry-After` in seconds or as a date, or the time of reset of a `RateLimit`.
pub(super) fn wait_asked_for(headers: &HeaderMap) -> Option<Duration> {
    if let Some(text) = header(headers, "retry-after") {
        return match text.trim().parse() {
            Ok(secs) => Some(Duration::from_secs(secs)),
            Err(_) => until(text.trim()),
        };
    }
    let limit = header(headers, "ratelimit")?;
    let remaining = |name: &str| limit.split(';').find_map(|part| part.trim().strip_prefix(name)?.parse::<u64>().ok());
    remaining("t=").filter(|_| remaining("r=") == Some(0)).map(Duration::from_secs)
}

/// The time from now to an HTTP date; a date that has passed is no wait.
fn until(date: &str) -> Option<Duration> {
    let then = rfc2822::DateTimeParser::new().parse_timestamp(date).ok()?;
    Some(Duration::try_from(then.duration_since(Timestamp::now())).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_heed_the_server() {
        let first = Duration::from_millis(400);
        for tries in 1..=4 {
            let pause = pause_before(tries, None, first).unwrap();
            let plain = first * 2_u32.pow(tries - 1);
            assert!(pause >= plain && pause <= plain * 5 / 4, "{tries}: {pause:?}");
        }
        assert_eq!(pause_before(1, Some(Duration::from_secs(7)), first), Some(Duration::from_secs(7)));
        assert_eq!(pause_before(1, Some(Duration::from_secs(3600)), first), None);
    }

    #[test]
    fn a_wait_is_read_in_each_of_its_forms() {
        let read = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            wait_asked_for(&headers)
        };
        assert_eq!(read("retry-after", "30"), Some(Duration::from_secs(30)));
        assert_eq!(read("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        let later = Timestamp::now() + jiff::SignedDuration::from_secs(90);
        let date = rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&later).unwrap();
        let wait = read("retry-after", &date).unwrap();
        assert!((88..=90).contains(&wait.as_secs()), "{wait:?}");
        assert_eq!(read("retry-after", "soon"), None);
        assert_eq!(read("ratelimit", "\"api\";r=0;t=55"), Some(Duration::from_secs(55)));
        assert_eq!(read("ratelimit", "\"api\";r=12;t=55"), None);
    }
}
