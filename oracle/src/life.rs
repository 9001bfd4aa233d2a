//! One life of a node with one volume, from the opening of an epoch to the end that somebody makes.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use vivarium_journal::Digest;
use vivarium_node::journal::JournalError;
use vivarium_node::journal::begin;
use vivarium_node::journal::commit::Journal;
use vivarium_node::pool::PoolSource;
use vivarium_node::volume::VolumeError;
use vivarium_store::faults::Faults;

use crate::application::{Application, Home};
use crate::place::{self, Conditions, Error, Mirror, Next, Place};
use crate::records;
use crate::rng::Rng;
use crate::said::{Mouth, Origin, Said};
use crate::template;
use crate::workload::Workload;

/// Changes that no life reaches, so that each has numbers of its own.
pub const CHANGES: u32 = 100_000;
/// How often an epoch is opened over a store that fails, before the store is called broken.
const TRIES: u32 = 50;
/// Longest pauses of a tenant that is in a hurry: between changes, and between records.
const CHANGE_PACE: Duration = Duration::from_millis(4);
const RECORD_PACE: Duration = Duration::from_millis(3);
/// From one commit to the next, where a program is to get something done between them.
const PACE: Duration = Duration::from_millis(100);
/// Where records are, below the live subvolume.
const RECORDS: &str = "data/records";
/// Stream of random numbers of a life; the streams of changes are below.
const STREAM: u64 = 1 << 40;

/// Which life of which volume.
#[derive(Clone, Copy, Debug)]
pub struct Life {
    /// Of the case.
    pub seed: u64,
    /// Number in the case.
    pub number: u32,
    /// Epoch that the volume is held under.
    pub epoch: u64,
}

impl Life {
    /// What the volume of the case is like, and what the store does in this life.
    #[must_use]
    pub fn conditions(self, volume: &str) -> Conditions {
        let mut rng = self.rng(0);
        let faults = match rng.below(6) {
            0 | 1 => Faults::NONE,
            2 => Faults { slow: 0.1, answer_late: 0.1, ..Faults::NONE },
            3 => Faults { full: 0.2, loser_told_500: 0.5, stale_list: 0.5, ..Faults::NONE },
            _ => Faults {
                fails: 0.1,
                answer_lost: 0.2,
                stale_list: 0.3,
                full: 0.05,
                loser_told_500: 0.3,
                ..Faults::NONE
            },
        };
        let mut of_case = Rng::new(self.seed, STREAM - 1);
        let layered = self.is_overlaid() || of_case.once_in(3);
        let part = if of_case.once_in(4) { 16 << 10 } else { vivarium_store::PART_SIZE };
        let mirror = match (of_case.once_in(3), of_case.between(1, 5)) {
            (true, given_up) if u64::from(self.number) >= given_up => Mirror::Alone,
            (true, _) => Mirror::There,
            (false, _) => Mirror::None,
        };
        Conditions {
            volume: volume.into(),
            layered,
            part,
            mirror,
            pool: PoolSource::File { size: place::POOL_SIZE },
            seed: rng.number(),
            faults,
            held_up: if rng.once_in(3) { 6 } else { 0 },
        }
    }

    /// Whether the store does all that it is asked to in this life.
    #[must_use]
    pub fn is_well(self) -> bool {
        let Conditions { faults, held_up, .. } = self.conditions("");
        faults == Faults::NONE && held_up == 0
    }

    /// One case in four is what an environment does: it sees the volume through overlayfs only.
    fn is_overlaid(self) -> bool {
        self.seed % 4 == 3
    }

    fn rng(self, part: u64) -> Rng {
        Rng::new(self.seed, STREAM + (u64::from(self.number) << 8) + part)
    }
}

/// Opens the epoch, if the store lets it be opened.
///
/// # Errors
/// As [`Journal::begin`].
pub async fn begin(place: &Place, epoch: u64) -> Result<(Journal, begin::Origin), JournalError> {
    let mut tries = 0;
    loop {
        match place.begin(epoch).await {
            Err(JournalError::Store { .. }) if tries < TRIES => tries += 1,
            begun => return begun,
        }
    }
}

/// Every other life begins on a node that keeps a copy.
async fn come_back(place: &Place, life: Life) -> Result<(), JournalError> {
    if life.rng(3).once_in(2) { place.come_back().await } else { Ok(()) }
}

/// As the judge hears it.
#[must_use]
pub fn origin(origin: begin::Origin) -> Origin {
    match origin {
        begin::Origin::Here => Origin::Here,
        begin::Origin::New => Origin::New,
        begin::Origin::Restored(_) | begin::Origin::TakenOver(_) | begin::Origin::Branched(_) => Origin::Restored,
    }
}

/// Step by step: some changes, then a commit, again and again; all of it follows from the seed.
///
/// # Errors
/// What should not be.
pub async fn step_by_step(place: &Place, life: Life, mouth: Mouth) -> Result<(), Error> {
    come_back(place, life).await?;
    let (journal, from) = begin(place, life.epoch).await?;
    mouth.say(Said::Begun(origin(from), tree(place)?))?;
    mouth.say(Said::Found(records::read(&place.live().join(RECORDS))?))?;
    let tenant = Tenant::of(place, life)?;
    let mut steps = Steps::new(place, life, mouth, journal, &tenant);
    for _ in 0..steps.rng.between(2, 5) {
        steps.round().await?;
    }
    // What nobody commits any more.
    if steps.rng.once_in(2) {
        steps.change()?;
    }
    Ok(mouth.say(Said::Wrote(tree(place)?))?)
}

/// Step by step until its power is cut; with records, of which it says which were synced, and at the beginning what it has
/// found on its disk.
///
/// # Errors
/// What should not be.
pub async fn endure(place: &Place, life: Life, mouth: Mouth) -> Result<(), Error> {
    let (journal, from) = begin(place, life.epoch).await?;
    let found = tree(place)?;
    let mut records = records::Writer::open(&place.live().join(RECORDS))?;
    mouth.say(Said::Begun(origin(from), found))?;
    mouth.say(Said::Found(records.last()))?;
    if let Some(base) = place.committed()? {
        mouth.say(Said::Base(digest(&base)))?;
    }
    let tenant = Tenant::of(place, life)?;
    let mut steps = Steps::new(place, life, mouth, journal, &tenant);
    let mut rng = life.rng(2);
    loop {
        for _ in 0..rng.below(4) {
            records.append(&mut rng, mouth)?;
        }
        steps.round().await?;
    }
}

/// A tenant, and a node that commits what it does.
struct Steps<'a> {
    place: &'a Place,
    mouth: Mouth,
    /// None while it is taken to another log.
    journal: Option<Journal>,
    /// The log that it is being taken to.
    next: Option<Next>,
    workload: Workload<'a>,
    /// Of the next change.
    number: u32,
    rng: Rng,
}

impl<'a> Steps<'a> {
    fn new(place: &'a Place, life: Life, mouth: Mouth, journal: Journal, tenant: &'a Tenant) -> Self {
        let (workload, rng) = (tenant.workload(place, life), life.rng(1));
        Self { place, mouth, journal: Some(journal), next: None, workload, number: life.number * CHANGES, rng }
    }

    fn change(&mut self) -> io::Result<()> {
        self.number += 1;
        self.workload.change(self.number - 1)
    }

    /// Some changes, and a commit; now and then the journal is taken to another log, or shortened.
    async fn round(&mut self) -> Result<(), Error> {
        let (least, most) = *self.rng.pick(&[(0, 1), (1, 4), (4, 15)]).unwrap_or(&(1, 2));
        for _ in 0..self.rng.between(least, most) {
            self.change()?;
        }
        self.mouth.say(Said::Wrote(tree(self.place)?))?;
        self.mouth.say(Said::Tick)?;
        self.place.pool.sync()?;
        let mut journal = self.journal.take().ok_or("the journal is closed")?;
        match journal.commit().await {
            Ok(committed) => self.mouth.say(Said::Acked(committed.head.sequence))?,
            Err(JournalError::Store { .. }) => self.mouth.say(Said::Failed)?,
            Err(error) => return Err(error.into()),
        }
        // In between there are changes and commits.
        match self.next.take() {
            Some(next) => journal = self.place.end_change(journal, next).await?,
            None if self.rng.once_in(4) => self.next = self.place.begin_change(&mut journal).await?,
            None => {}
        }
        self.journal = Some(journal);
        if self.rng.once_in(2) {
            match self.place.keep().await {
                Ok(_) | Err(JournalError::Store { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// A node that has lost the volume to another and does not know it: it changes something and commits that.
///
/// # Errors
/// What should not be. [`JournalError::Superseded`] is what should.
pub async fn undead(place: &Place, life: Life, mouth: Mouth) -> Result<(), Error> {
    let mut journal = match place.resume(life.epoch) {
        // It came back meanwhile, and was cut off before it had the volume again.
        Err(JournalError::Volume(VolumeError::NotFound(_))) => return Ok(()),
        resumed => resumed?,
    };
    std::fs::write(place.live().join("data/undead"), "it is not mine any more")?;
    place.pool.sync()?;
    for _ in 0..TRIES {
        match journal.commit().await {
            Ok(committed) => return Ok(mouth.say(Said::Acked(committed.head.sequence))?),
            Err(JournalError::Store { .. }) => {}
            // It does not even know where its journal would be.
            Err(JournalError::Doubtful { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Committing while the tenant writes, until the process is killed.
///
/// # Errors
/// What should not be.
pub async fn race(place: &Place, life: Life, mouth: Mouth) -> Result<(), Error> {
    come_back(place, life).await?;
    let (journal, from) = begin(place, life.epoch).await?;
    mouth.say(Said::Begun(origin(from), "unknown".into()))?;
    records::write(&place.live().join(RECORDS), life.rng(2), mouth, RECORD_PACE)?;
    let tenant = Tenant::of(place, life)?;
    let (mut rng, first) = (life.rng(1), life.number * CHANGES);
    std::thread::spawn(move || {
        let mut workload = Workload::new(tenant.root.as_fd(), "upper/".len(), &[], life.seed);
        eprintln!("{}", workload.go_on(first, &mut rng, CHANGE_PACE));
        std::process::exit(3);
    });
    commit_for_ever(place, journal, mouth, Duration::ZERO).await
}

/// Committing while a real program works, until the process is killed. Its transactions are told as records are.
///
/// # Errors
/// What should not be.
pub async fn work(place: &Place, life: Life, mouth: Mouth, application: Application) -> Result<(), Error> {
    come_back(place, life).await?;
    let (journal, from) = begin(place, life.epoch).await?;
    let mut home = Home::open(application, &place.live().join("data"), &place.aside())?;
    let mut last = home.verify()?;
    mouth.say(Said::Begun(origin(from), "unknown".into()))?;
    std::thread::spawn(move || {
        loop {
            last += 1;
            if let Err(error) = home.step(last).and_then(|()| mouth.say(Said::Synced(last))) {
                eprintln!("transaction {last}: {error}");
                std::process::exit(3);
            }
        }
    });
    commit_for_ever(place, journal, mouth, PACE).await
}

async fn commit_for_ever(place: &Place, mut journal: Journal, mouth: Mouth, every: Duration) -> Result<(), Error> {
    loop {
        mouth.say(Said::Tick)?;
        place.pool.sync()?;
        match journal.commit().await {
            Ok(committed) => mouth.say(Said::Acked(committed.head.sequence))?,
            Err(JournalError::Store { .. }) => mouth.say(Said::Failed)?,
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(every).await;
    }
}

/// What the tenant sees as its root.
struct Tenant {
    root: OwnedFd,
}

impl Tenant {
    fn of(place: &Place, life: Life) -> io::Result<Self> {
        let root = if life.is_overlaid() {
            template::overlay(&place.layers, place.directory("")?.as_fd())?
        } else {
            place.directory("upper")?
        };
        Ok(Self { root })
    }

    fn workload<'a>(&'a self, place: &'a Place, life: Life) -> Workload<'a> {
        Workload::new(self.root.as_fd(), "upper/".len(), &place.layers, life.seed)
    }
}

/// Digest of what the tenant sees.
fn tree(place: &Place) -> Result<String, Error> {
    Ok(digest(&place.tree()?))
}

fn digest(lines: &[String]) -> String {
    Digest(*blake3::hash(lines.join("\n").as_bytes()).as_bytes()).to_string()
}
