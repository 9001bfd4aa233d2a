//! Waits for a volume that another node may still write: the kubelet was told that it is mounted so that the container is
//! made meanwhile. What counts in the end is the volume and its stage record ([`super::identify`]).

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::Interest;
use vivarium_api::node::stage::{PendingRecord, VERSION};

use crate::error::{Attempt, Error, Result};

/// How long at most. The kubelet gives up a container that is not started after two minutes; it shall hear the reason.
pub const LIMIT: Duration = Duration::from_secs(110);
/// How often it is looked whether anybody still waits for the container.
const WANTED: Duration = Duration::from_secs(1);

/// Waits until no record in `directory` says that the volume of the pod is still to come. `wanted` is there for as long as
/// somebody wants the container.
///
/// # Errors
/// The volume never comes, it does not within [`LIMIT`], nobody wants it any more, or the record cannot be read.
pub async fn over(directory: &Path, pod_uid: &str, wanted: &Path) -> Result<()> {
    let path = directory.join(format!("{pod_uid}.json"));
    if look(&path)? {
        return Ok(());
    }
    log::info!("the volume of pod {pod_uid} is still to be handed over");
    // Whoever prepares for it sees that nothing else is to be done.
    let waiting = path.with_extension("waiting");
    fs::write(&waiting, "").attempt(|| format!("write {}", waiting.display()))?;
    let over = tokio::time::timeout(LIMIT, follow(directory, &path, wanted)).await;
    fs::remove_file(&waiting).ok();
    over.unwrap_or_else(|_| {
        Err(Error::Failed(format!(
            "The volume was not handed over within {} s; the condition Published of the EnvironmentVolume and the node \
             driver's log say why.",
            LIMIT.as_secs()
        )))
    })
}

async fn follow(directory: &Path, path: &Path, wanted: &Path) -> Result<()> {
    let what = || format!("watch {}", directory.display());
    let watch: OwnedFd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).attempt(what)?;
    inotify::add_watch(&watch, directory, WatchFlags::MOVED_TO | WatchFlags::DELETE | WatchFlags::ONLYDIR)
        .attempt(what)?;
    let watch = vivarium_sys::watch::watch(watch, Interest::READABLE).attempt(what)?;
    // A change before the watch is caught here.
    while !look(path)? {
        // containerd removes the bundle of a container that it has given up.
        if !wanted.exists() {
            return Err(Error::Failed("The container was given up while its volume was still to come.".into()));
        }
        if let Ok(ready) = tokio::time::timeout(WANTED, watch.readable()).await {
            let mut ready = ready.attempt(what)?;
            let mut buffer = [MaybeUninit::uninit(); 4096];
            while rustix::io::read(watch.get_ref(), &mut buffer).is_ok() {}
            ready.clear_ready();
        }
    }
    Ok(())
}

/// Whether nothing is to be waited for.
fn look(path: &Path) -> Result<bool> {
    let what = || format!("read {}", path.display());
    let record: PendingRecord = match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map_err(io::Error::from).attempt(what)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error).attempt(what),
    };
    if record.version != VERSION {
        return Err(Error::Failed(format!(
            "The pending record {} is of version {}, this runtime reads version {VERSION}; upgrade the older of the two.",
            path.display(),
            record.version
        )));
    }
    match record.refused {
        Some(why) => Err(Error::Refused(format!("the volume is not handed over: {why}"))),
        None => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vivarium_api::node::guest::PodReference;

    fn put(directory: &Path, refused: Option<&str>) {
        let pod = PodReference { namespace: "a".into(), name: "shop-2".into(), uid: "p".into() };
        let record = PendingRecord {
            version: VERSION,
            volume_id: "v".into(),
            namespace: "a".into(),
            name: "shop".into(),
            target: "/t".into(),
            pod,
            refused: refused.map(Into::into),
        };
        fs::write(directory.join("new"), serde_json::to_vec(&record).unwrap()).unwrap();
        fs::rename(directory.join("new"), directory.join("p.json")).unwrap();
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_is_to_come_is_waited_for_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let (directory, bundle) = (directory.path(), directory.path().join("bundle"));
        fs::create_dir(&bundle).unwrap();
        over(&directory.join("missing"), "p", &bundle).await.unwrap();
        put(directory, None);
        over(directory, "q", &bundle).await.unwrap();
        let (at, wanted) = (directory.to_owned(), bundle.clone());
        let waiting = tokio::spawn(async move { over(&at, "p", &wanted).await });
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!waiting.is_finished());
        assert!(directory.join("p.waiting").exists(), "nobody sees that it waits");
        fs::remove_file(directory.join("p.json")).unwrap();
        tokio::time::timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap().unwrap();
        assert!(!directory.join("p.waiting").exists());

        put(directory, None);
        let (at, wanted) = (directory.to_owned(), bundle.clone());
        let waiting = tokio::spawn(async move { over(&at, "p", &wanted).await });
        tokio::time::sleep(Duration::from_millis(20)).await;
        put(directory, Some("superseded"));
        let refused = tokio::time::timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap().unwrap_err();
        assert!(refused.to_string().contains("superseded"), "{refused}");

        put(directory, None);
        fs::remove_dir(&bundle).unwrap();
        let given_up = over(directory, "p", &bundle).await.unwrap_err();
        assert!(given_up.to_string().contains("given up"), "{given_up}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_volume_that_does_not_come_is_told_of_before_the_kubelet_gives_up() {
        let directory = tempfile::tempdir().unwrap();
        put(directory.path(), None);
        let late = over(directory.path(), "p", directory.path()).await.unwrap_err();
        assert!(late.to_string().contains("not handed over within 110 s"), "{late}");
    }
}
