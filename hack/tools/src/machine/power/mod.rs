//! `hack/test-power`: volumes on a machine whose power is cut, with a disk that loses what it had not flushed.
//!
//! In each [`case`] a volume lives some lives on the machine; each is ended by a power cut at an instant that follows from
//! the seed: the nth write or flush that reaches the disk, or a fail point of the driver. At some of these the kernel
//! panics instead. Then the machine comes back with what its disk has kept ([`boot`]), or a node outside of it takes the
//! volume over. At the end the one outside does. Store and what the nodes say of themselves lie outside of the machine,
//! and the oracle judges (`vivarium_oracle::transcript`).

mod boot;
mod case;

use std::{
    collections::BTreeMap,
    error::Error as StdError,
    fmt::Write as _,
    fs::{self, File},
    ops::Range,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::mpsc::RecvTimeoutError,
    time::{Duration, Instant},
};

use boot::{End, Fate, PANIC, fate, point_file, said_file};
use case::{Case, Node, Random};

use super::{
    Error, base,
    console::Event,
    disk,
    emulator::{Disk, Machine, Start},
    file,
    nbd::Served,
    outside::Outside,
    work_directory,
};
use crate::{build, command, oracle};

/// Cases of the long form.
const CASES: Range<u64> = 0..20;
/// Cases of the short one, which have of everything something.
const SHORT: Range<u64> = 1..3;
/// What must have happened in a form: a case may be quiet, but where nothing was lost or nothing came back there would be
/// nothing to judge.
const HAPPENED: [&str; 7] = ["cuts", "at-points", "panics", "acked", "synced", "went-on", "lost-blocks"];
/// A life whose power has not been cut after so long hangs.
const LONGEST: Duration = Duration::from_secs(400);
/// Cases that a form may take in addition until everything has happened: what a disk has in its cache at an instant is not
/// the same in each run.
const SPARE: u64 = 3;
/// Size of the disk; images are sparse.
const SIZE: u64 = 3 << 30;
/// Where the machine has the directory outside.
const OUTSIDE: &str = "/outside";
/// What the Debian package ca-certificates makes.
pub const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Handle of every volume.
const VOLUME: &str = "volume";

/// Arguments of `power`.
#[derive(clap::Args)]
pub struct Args {
    /// A few cases only.
    #[arg(long)]
    short: bool,
    /// These cases: a number, or FIRST..END.
    #[arg(long, value_parser = cases, value_name = "CASES")]
    cases: Option<Range<u64>>,
    /// The disk says that it has flushed, and has not: the run must fail.
    #[arg(long, hide = true)]
    prove_it_fails: bool,
}

fn cases(text: &str) -> Result<Range<u64>, String> {
    let number = |text: &str| text.parse::<u64>().map_err(|_| format!("'{text}' is no number"));
    match text.split_once("..") {
        Some((first, end)) => Ok(number(first)?..number(end)?),
        None => number(text).map(|number| number..number + 1),
    }
}

/// The subcommand.
pub fn run(arguments: &Args) -> Result<ExitCode, Box<dyn StdError>> {
    let cases = arguments.cases.clone().unwrap_or(if arguments.short { SHORT } else { CASES });
    let begun = Instant::now();
    build::ensure(base::PACKAGES)?;
    let rig = Rig { machine: Machine::build()?, work: work_directory()?, lies: arguments.prove_it_fails };
    rig.equip()?;
    println!("prepared in {} s", begun.elapsed().as_secs());
    let (mut sum, mut failed) = (BTreeMap::<String, u64>::new(), 0_u64);
    let spare = if arguments.cases.is_none() { SPARE } else { 0 };
    let mut count = 0;
    for seed in cases.start..cases.end + spare {
        if seed >= cases.end && (failed > 0 || missing(&sum).is_empty()) {
            break;
        }
        count += 1;
        let at = Instant::now();
        match rig.judge(&Case::of(seed))? {
            Ok(figures) => {
                println!("case {seed} holds, {} s: {}", at.elapsed().as_secs(), shown(&figures));
                for (name, number) in figures {
                    *sum.entry(name).or_default() += number;
                }
            }
            Err(story) => {
                failed += 1;
                println!("case {seed} FAILED, {} s:\n{story}", at.elapsed().as_secs());
                println!("repeat it with: hack/test-power --cases {seed}");
            }
        }
    }
    println!("in all: {}", shown(&sum));
    println!("{failed} of {count} cases failed; {} s", begun.elapsed().as_secs());
    let missing = if arguments.cases.is_none() && failed == 0 { missing(&sum) } else { Vec::new() };
    if !missing.is_empty() {
        println!("too little happened to say anything: there is nothing of {}", missing.join(", "));
    }
    Ok(if failed == 0 && missing.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What has not happened although it must have.
fn missing(sum: &BTreeMap<String, u64>) -> Vec<&'static str> {
    HAPPENED.into_iter().filter(|name| sum.get(*name).is_none_or(|number| *number == 0)).collect()
}

fn shown(figures: &BTreeMap<String, u64>) -> String {
    figures.iter().map(|(name, number)| format!("{name} {number}")).collect::<Vec<_>>().join(", ")
}

/// What all cases share.
struct Rig {
    machine: Machine,
    work: tempfile::TempDir,
    lies: bool,
}

/// How a life of the machine went that has ended as it should.
struct Lived {
    /// Boots that died before the driver had started.
    boots_again: u64,
    panicked: bool,
}

/// What a case has figured out, or the story of its failure.
type Judged = Result<BTreeMap<String, u64>, String>;

impl Rig {
    fn outside(&self) -> PathBuf {
        self.work.path().join("outside")
    }

    /// Puts the programs of the oracle where both nodes have them.
    fn equip(&self) -> Result<(), Error> {
        let folder = oracle::programs()?;
        let bin = self.outside().join("bin");
        fs::create_dir_all(&bin).map_err(file("create", &bin))?;
        for name in ["vivarium-oracle-node", "vivarium-oracle-judge"] {
            fs::copy(folder.join(name), bin.join(name)).map_err(file("copy", folder.join(name)))?;
        }
        // The client of registries wants some, although it asks none here.
        fs::copy(CERTIFICATES, self.outside().join("certificates")).map_err(file("copy", CERTIFICATES))?;
        Ok(())
    }

    fn judge(&self, case: &Case) -> Result<Judged, Error> {
        let place = self.outside().join(format!("case-{}", case.seed));
        fs::create_dir_all(&place).map_err(file("create", &place))?;
        let mut disk = self.disk(case)?;
        let (mut transcript, mut story) = (String::new(), String::new());
        let (mut cached, mut lost, mut points, mut panics, mut boots_again) = (0, 0, 0, 0, 0);
        let mut random = Random(!case.seed);
        for (number, life) in case.lives.iter().enumerate() {
            let said = said_file(&place, number);
            let _ = writeln!(story, "life {number}: {life:?}");
            let ended = match life.node {
                Node::Machine { strike, survives, .. } => {
                    let lived;
                    (disk, lived) = self.on_the_machine(case, number, strike, disk)?;
                    points += u64::from(point_file(&place, number).exists());
                    let (there, gone) = disk.cut(|| match survives {
                        0 => false,
                        survives => random.below(survives) == 0,
                    });
                    (cached, lost) = (cached + there, lost + gone);
                    let _ = writeln!(story, "  {there} blocks were not flushed, {gone} of them are lost");
                    let _ = writeln!(transcript, "life 0 cut");
                    lived.map(|lived| {
                        panics += u64::from(lived.panicked);
                        boots_again += lived.boots_again;
                    })
                }
                Node::Outside => {
                    let _ = writeln!(transcript, "life 1 ended");
                    self.outside_of_it(case, number, life.epoch, &said)
                }
            };
            let text = fs::read_to_string(&said).unwrap_or_default();
            let _ = writeln!(story, "{}", command::end_of(&text, 12));
            transcript.push_str(&text);
            if let Err(why) = ended {
                return Ok(Err(format!("{story}{why}")));
            }
        }
        let path = place.join("transcript");
        fs::write(&path, &transcript).map_err(file("write", &path))?;
        let mut judge = Command::new(self.outside().join("bin/vivarium-oracle-judge"));
        let judged = match command::run(judge.arg(&path)) {
            Ok(figures) => figures,
            Err(error) => return Ok(Err(format!("{story}{error}"))),
        };
        let words: Vec<&str> = judged.split_whitespace().collect();
        let mut figures: BTreeMap<String, u64> =
            words.chunks(2).filter_map(|pair| Some((pair.first()?.to_string(), pair.get(1)?.parse().ok()?))).collect();
        figures.insert("at-points".into(), points);
        figures.insert("panics".into(), panics);
        figures.insert("boots-again".into(), boots_again);
        figures.insert("cached-blocks".into(), cached as u64);
        figures.insert("lost-blocks".into(), lost as u64);
        // Of no use any more, and there are many.
        fs::remove_dir_all(&place).map_err(file("remove", &place))?;
        Ok(Ok(figures))
    }

    /// The disk of a case, new.
    fn disk(&self, case: &Case) -> Result<disk::Disk, Error> {
        let path = self.work.path().join("disk");
        let image = File::options().create(true).truncate(true).read(true).write(true).open(&path);
        let image = image.map_err(file("create", &path))?;
        image.set_len(SIZE).map_err(file("enlarge", &path))?;
        if case.in_a_file {
            command::run(command::command("mkfs.ext4", ["-q", "-F"]).arg(&path)).map_err(Error::Disk)?;
        }
        // It stays what it is while it is open.
        fs::remove_file(&path).map_err(file("remove", &path))?;
        let disk = disk::Disk::new(image).map_err(file("inspect", &path))?;
        Ok(if self.lies { disk.lying() } else { disk })
    }

    /// A life of the machine until its power is cut or its kernel panics; it must not end by itself. Gives how it ended,
    /// or why the life has failed.
    fn on_the_machine(
        &self,
        case: &Case,
        number: usize,
        strike: u64,
        mut disk: disk::Disk,
    ) -> Result<(disk::Disk, Result<Lived, String>), Error> {
        let start = self.outside().join("start");
        fs::write(&start, boot::script(case, number)).map_err(file("write", &start))?;
        fs::set_permissions(&start, fs::Permissions::from_mode(0o755)).map_err(file("change the mode of", &start))?;
        let place = self.outside().join(format!("case-{}", case.seed));
        let panics = matches!(case.lives[number].node, Node::Machine { panics: true, .. });
        let mut boots = 1;
        loop {
            let (end, console);
            // To the disk a boot that dies is a reset: it keeps its cache.
            (disk, end, console) = self.boot(&point_file(&place, number), panics, strike, disk)?;
            match fate(end, said_file(&place, number).exists(), boots) {
                Fate::Over => {
                    let lived = Lived { boots_again: boots - 1, panicked: end == End::Panicked };
                    return Ok((disk, Ok(lived)));
                }
                Fate::BootAgain => {
                    let panic = console.lines().rfind(|line| line.contains(PANIC)).unwrap_or_default();
                    println!("case {}, life {number}: {end} before the driver had started; {panic}", case.seed);
                    boots += 1;
                }
                Fate::Failed => return Ok((disk, Err(format!("at boot {boots} {end}:\n{console}")))),
            }
        }
    }

    /// A boot of the machine, whose kernel `panics` once the file `at_point` is made, or else starts anew; what came over
    /// its serial line in the end is of interest when its power was not cut.
    fn boot(
        &self,
        at_point: &Path,
        panics: bool,
        strike: u64,
        disk: disk::Disk,
    ) -> Result<(disk::Disk, End, String), Error> {
        let [nbd, fs_socket] = ["nbd", "fs"].map(|name| self.work.path().join(name));
        for socket in [&nbd, &fs_socket] {
            let _ = fs::remove_file(socket);
        }
        let served = Served::start(disk, &nbd, strike).map_err(file("listen at", &nbd))?;
        let outside = Outside::share(&self.outside(), fs_socket, &self.work.path().join("virtiofsd.log"))?;
        let (disks, kernel) = ([Disk::Served(nbd)], boot::kernel());
        let mut running = self.machine.boot(&Start { disks: &disks, outside: Some(&outside), kernel: &kernel })?;
        let struck = served.struck().recv_timeout(LONGEST);
        let mut lines = Vec::new();
        // One that does not get its disk any more has nothing to say.
        while struck.is_err()
            && let Event::Line(line) = running.console().next(Duration::from_secs(2))
        {
            lines.push(line);
        }
        let panicked = lines.iter().any(|line| line.contains(PANIC));
        let end = match struck {
            Ok(()) => End::PowerCut,
            Err(RecvTimeoutError::Disconnected) if at_point.exists() && !panics => End::PowerCut,
            Err(RecvTimeoutError::Disconnected) if at_point.exists() && panicked => End::Panicked,
            Err(RecvTimeoutError::Disconnected) => End::ByItself,
            Err(RecvTimeoutError::Timeout) => End::Hung,
        };
        running.power_cut()?;
        outside.end()?;
        let disk = served.take().ok_or(Error::DiskLost)?;
        Ok((disk, end, command::end_of(&lines.join("\n"), 40)))
    }

    /// A life on this machine, in a mount namespace of its own, so that its pool goes with it.
    fn outside_of_it(&self, case: &Case, number: usize, epoch: u64, said: &Path) -> Result<(), String> {
        let place = self.outside().join(format!("case-{}", case.seed));
        let mut node = command::command("unshare", ["--mount", "--propagation", "private", "--"]);
        node.arg(self.outside().join("bin/vivarium-oracle-node")).arg("step");
        node.arg(place.join("node")).arg(place.join("store")).arg(VOLUME);
        node.args([epoch, case.seed, number as u64].map(|number| number.to_string()));
        let out = File::create(said).map_err(|error| format!("cannot create {}: {error}", said.display()))?;
        let ended = node.stdin(Stdio::null()).stdout(out).stderr(Stdio::piped()).output();
        let ended = ended.map_err(|error| format!("cannot run the oracle's node: {error}"))?;
        if ended.status.success() {
            return Ok(());
        }
        Err(format!("the node outside ended with {}: {}", ended.status, String::from_utf8_lossy(&ended.stderr)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_in_which_something_never_happened_is_told() {
        let figures = |number| HAPPENED.into_iter().map(move |name| (name.to_owned(), number));
        let mut sum: BTreeMap<_, _> = figures(1).collect();
        assert!(missing(&sum).is_empty());
        sum.insert("lost-blocks".into(), 0);
        sum.remove("went-on");
        assert_eq!(missing(&sum), ["went-on", "lost-blocks"]);
    }

    #[test]
    fn the_short_form_has_of_everything_something() {
        let all: Vec<Case> = SHORT.map(Case::of).collect();
        let nodes: Vec<Node> = all.iter().flat_map(|case| &case.lives).map(|life| life.node).collect();
        assert!(all.iter().any(|case| case.in_a_file) && all.iter().any(|case| !case.in_a_file));
        assert!(nodes.iter().any(|node| matches!(node, Node::Machine { point: Some(_), .. })));
        assert!(nodes.iter().any(|node| matches!(node, Node::Machine { point: None, .. })));
        assert!(nodes.iter().any(|node| matches!(node, Node::Machine { panics: true, .. })));
        assert!(nodes.iter().any(|node| matches!(node, Node::Machine { survives: 0 | 2, .. })), "all blocks survive");
        assert!(nodes.iter().filter(|node| **node == Node::Outside).count() > all.len(), "nobody takes over");
    }

    #[test]
    fn cases_are_named_as_elsewhere() {
        assert_eq!(cases("7"), Ok(7..8));
        assert_eq!(cases("3..5"), Ok(3..5));
        assert!(cases("x").is_err() && cases("3..").is_err());
    }
}
