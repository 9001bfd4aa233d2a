//! How something is tried again: with growing, jittered pauses, each attempt bounded, until the caller's deadline.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use crate::{Deadline, Failure};

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(2);

/// The pauses between attempts.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
    deadline: Deadline,
}

impl Backoff {
    /// Begins.
    pub fn until(deadline: Deadline) -> Self {
        Self { next: FIRST, deadline }
    }

    /// Waits; false when there is no time for another attempt.
    pub async fn pause(&mut self) -> bool {
        // Half of it is chance, so that many who failed together do not come back together.
        let pause = self.next.mul_f64(fastrand::f64().mul_add(0.5, 0.5));
        self.next = (self.next * 2).min(LONGEST);
        if Instant::now() + pause >= self.deadline {
            return false;
        }
        sleep(pause).await;
        true
    }
}

/// One attempt: at most `longest`, and not beyond the deadline.
pub async fn attempt<T>(deadline: Deadline, longest: Duration, call: impl Future<Output = T>) -> Result<T, Failure> {
    let left = deadline.saturating_duration_since(Instant::now());
    timeout(left.min(longest), call).await.map_err(|_| Failure::timed_out())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_and_end_at_the_deadline() {
        let begin = Instant::now();
        let mut backoff = Backoff::until(begin + Duration::from_secs(10));
        let mut pauses = Vec::new();
        let mut last = begin;
        while backoff.pause().await {
            pauses.push(last.elapsed());
            last = Instant::now();
        }
        assert!(begin.elapsed() < Duration::from_secs(10));
        assert!((9..20).contains(&pauses.len()), "{pauses:?}");
        assert!(
            pauses[0] <= FIRST + Duration::from_millis(2)
                && pauses.iter().all(|pause| *pause <= LONGEST + Duration::from_millis(2)),
            "{pauses:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_ends_with_the_deadline() {
        let begin = Instant::now();
        let never = std::future::pending::<()>();
        let error = attempt(begin + Duration::from_secs(3), Duration::from_secs(30), never).await.unwrap_err();
        assert_eq!((error, begin.elapsed().as_secs()), (Failure::timed_out(), 3));
    }
}
