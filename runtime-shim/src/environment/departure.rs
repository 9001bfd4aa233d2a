//! The end of an environment that goes on elsewhere: its node was closed, and its pod deleted. It is not told to stop before
//! the next incarnation is prepared on another node, so that nobody waits for a sandbox or a copy while it is down. The node
//! driver knows when that is, and says so by taking a file away ([`names::HELD_BACK`]).

use std::path::{Path, PathBuf};
use std::time::Duration;

use vivarium_api::names;

/// How long at most. What is left of the pod's grace period, a minute, is for the guest to shut down.
const LIMIT: Duration = Duration::from_secs(30);
/// Between two looks. The guest runs meanwhile.
const LOOK: Duration = Duration::from_millis(20);

/// The file that holds the stop of a pod's guest back.
#[must_use]
pub fn file(pod_uid: &str) -> PathBuf {
    Path::new(names::HELD_BACK).join(pod_uid)
}

/// Waits until the file is gone, or for too long.
pub async fn over(file: &Path) {
    let gone = async {
        while file.exists() {
            tokio::time::sleep(LOOK).await;
        }
    };
    if tokio::time::timeout(LIMIT, gone).await.is_err() {
        log::warn!("the stop of the guest is held back by {} for too long", file.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stop_is_held_back_while_the_file_is_there_and_not_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("p");
        let begin = tokio::time::Instant::now();
        over(&file).await;
        assert_eq!(begin.elapsed(), Duration::ZERO, "nobody holds it back");

        std::fs::write(&file, "").unwrap();
        let path = file.clone();
        let waiting = tokio::spawn(async move { over(&path).await });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!waiting.is_finished());
        std::fs::remove_file(&file).unwrap();
        waiting.await.unwrap();
        assert!(begin.elapsed() < Duration::from_secs(2));

        std::fs::write(&file, "").unwrap();
        let begin = tokio::time::Instant::now();
        over(&file).await;
        assert_eq!(begin.elapsed(), LIMIT);
    }
}
