//! How long requests took, by route, since this process began.
//!
//! Refuses: labels that a client chooses. What is no route counts as `other`.

use std::sync::LazyLock;

use hyper::Method;

use crate::api::routes::{Found, ROUTES, find};
use crate::base::histogram::{Counted, Histogram, QUICK};
use crate::base::time::Monotonic;
use crate::sys::clock;

/// The label of what is no route.
const OTHER: &str = "other";

/// One a route, and one for the rest.
static REQUESTS: LazyLock<Vec<Histogram>> =
    LazyLock::new(|| (0..=ROUTES.len()).map(|_| Histogram::new(QUICK)).collect());

/// A request whose answer is being made; counted when it is dropped.
#[derive(Debug)]
pub struct Timed {
    route: usize,
    began: Monotonic,
}

impl Timed {
    pub fn begin(method: &Method, path: &str) -> Timed {
        let route = match find(method, path) {
            Found::Row(route, _) => {
                ROUTES.iter().position(|row| row.method == route.method && row.pattern == route.pattern)
            }
            Found::OtherMethods(_) | Found::Nothing => None,
        };
        Timed { route: route.unwrap_or(ROUTES.len()), began: clock::monotonic() }
    }
}

impl Drop for Timed {
    fn drop(&mut self) {
        if let Some(histogram) = REQUESTS.get(self.route) {
            histogram.observe(clock::monotonic().since(self.began));
        }
    }
}

/// (method, pattern, durations) of each route that somebody has asked.
pub fn read() -> Vec<(String, String, Counted)> {
    let named = |(place, histogram): (usize, &Histogram)| {
        let (method, pattern) =
            ROUTES.get(place).map_or((OTHER, OTHER), |route| (route.method.as_str(), route.pattern));
        (method.to_string(), pattern.to_string(), histogram.read())
    };
    REQUESTS.iter().enumerate().map(named).filter(|(_, _, counted)| counted.count > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_counts_for_its_pattern() {
        let count = |pattern: &str| {
            read()
                .iter()
                .filter(|(_, route, _)| route == pattern)
                .map(|(.., counted)| counted.count)
                .sum::<u64>()
        };
        let (before, others) = (count("/v1/units/{name}"), count(OTHER));
        drop(Timed::begin(&Method::GET, "/v1/units/web"));
        drop(Timed::begin(&Method::GET, "/v1/units/db"));
        drop(Timed::begin(&Method::GET, "/etc/passwd"));
        assert!(count("/v1/units/{name}") >= before + 2);
        assert!(count(OTHER) > others);
    }
}
