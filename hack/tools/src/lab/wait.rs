//! Waiting for what gives no event: another program's readiness.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::error::Error;

/// Asks `ready` until it gives a value. An error of `ready` ends the wait at once.
pub fn until<T>(
    limit: Duration,
    pause: Duration,
    what: &str,
    hint: &str,
    mut ready: impl FnMut() -> Result<Option<T>, Error>,
) -> Result<T, Error> {
    let begun = Instant::now();
    loop {
        if let Some(value) = ready()? {
            return Ok(value);
        }
        if begun.elapsed() > limit {
            return Err(Error::Late { what: what.to_owned(), limit, hint: hint.to_owned() });
        }
        thread::sleep(pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Duration = Duration::ZERO;

    #[test]
    fn a_value_ends_the_wait() {
        let mut asked = 0;
        let value = until(Duration::from_secs(5), NONE, "it", "", || {
            asked += 1;
            Ok((asked == 3).then_some(asked))
        });
        assert_eq!(value.unwrap(), 3);
    }

    #[test]
    fn the_limit_ends_the_wait_and_is_named() {
        let error = until::<()>(NONE, Duration::from_millis(1), "the sun", "look out", || Ok(None)).unwrap_err();
        assert_eq!(error.to_string(), "the sun did not happen within 0 s; look out");
    }
}
