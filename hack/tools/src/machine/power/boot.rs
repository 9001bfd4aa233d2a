//! How the machine begins a life, and what becomes of it when it has ended.
//!
//! Now and then the emulated processor carries out an instruction that another one has just replaced, which kernels do to
//! themselves while they boot: then that kernel panics. Of such a boot the driver knows nothing, and it is begun again. After
//! the driver has started whatever ends a life is the driver's, until somebody has shown that it is not.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use super::{
    OUTSIDE, VOLUME,
    case::{Case, Life, Node},
};
use crate::machine::outside;

/// What a kernel says that panics.
pub const PANIC: &str = "Kernel panic";
/// Boots of one life: a machine that never gets as far as the driver is broken.
const BOOTS: u64 = 3;

/// What ended a boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The write or flush came, or the fail point.
    PowerCut,
    /// The fail point came, and the kernel panicked, as it was to.
    Panicked,
    /// Whatever it was.
    ByItself,
    /// Nothing, for as long as a life may last.
    Hung,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PowerCut => "its power was cut",
            Self::Panicked => "its kernel panicked at the fail point",
            Self::ByItself => "it ended by itself",
            Self::Hung => "nothing reached its disk any more",
        })
    }
}

/// What becomes of a life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It has ended as it should.
    Over,
    /// The machine is to be started again.
    BootAgain,
    /// Something is wrong.
    Failed,
}

/// What becomes of a life whose `boots`th boot (from 1) has ended so.
pub fn fate(end: End, driver_started: bool, boots: u64) -> Fate {
    match end {
        End::PowerCut | End::Panicked => Fate::Over,
        End::ByItself | End::Hung if driver_started || boots >= BOOTS => Fate::Failed,
        End::ByItself | End::Hung => Fate::BootAgain,
    }
}

/// No init: the machine does one thing.
pub fn kernel() -> String {
    let tag = outside::TAG;
    format!(
        "init=/bin/sh -- -ec \"mount -t proc proc /proc; mount -t sysfs sysfs /sys; \
         mount -t devtmpfs devtmpfs /dev; mkdir -p {OUTSIDE}; mount -t virtiofs {tag} {OUTSIDE}; exec {OUTSIDE}/start\""
    )
}

/// What the driver says in a life; it is made when the driver starts.
pub fn said_file(place: &Path, number: usize) -> PathBuf {
    place.join(format!("said-{number}"))
}

/// What says that a life was ended at a fail point.
pub fn point_file(place: &Path, number: usize) -> PathBuf {
    place.join(format!("point-{number}"))
}

/// What the machine does in a life. The driver is killed at its fail point; then the machine starts anew at once, which is a
/// power cut to its disk: nothing is written out (`sysrq.rst`, `b`), and the emulator ends instead. Or its kernel
/// panics (`c`), which with `panic=-1` ends in the same way ([`crate::machine::base::kernel_arguments`]).
pub fn script(case: &Case, number: usize) -> String {
    let Case { seed, in_a_file, lives } = case;
    let Life { node, epoch } = lives[number];
    let armed = match node {
        Node::Machine { point: Some((point, times)), .. } => format!("VIVARIUM_FAIL_POINT={point}={times}"),
        _ => String::new(),
    };
    let request = if matches!(node, Node::Machine { panics: true, .. }) { 'c' } else { 'b' };
    let place = PathBuf::from(format!("{OUTSIDE}/case-{seed}"));
    let (said, point) = (said_file(&place, number), point_file(&place, number));
    let (said, point, place) = (said.display(), point.display(), place.display());
    let (mount, device) =
        if *in_a_file { ("mount -t ext4 /dev/vda /var/lib/vivarium", "") } else { ("true", "/dev/vda") };
    format!(
        "#!/bin/sh -e\n\
         export PATH=/usr/sbin:/usr/bin:/sbin:/bin SSL_CERT_FILE={OUTSIDE}/certificates\n\
         exec 2>/dev/console\n\
         mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /tmp\n\
         for module in virtio_blk btrfs loop overlay; do modprobe $module; done\n\
         mkdir -p /var/lib/vivarium; {mount}\n\
         set +e\n\
         {armed} {OUTSIDE}/bin/vivarium-oracle-node endure /var/lib/vivarium {place}/store {VOLUME} {epoch} {seed} {number} {device} \
         >>{said}\n\
         code=$?\n\
         if [ $code = 137 ]; then >{point}; echo {request} >/proc/sysrq-trigger; fi\n\
         echo it ended with $code >&2\n\
         echo o >/proc/sysrq-trigger; sleep 60\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_boot_that_dies_before_the_driver_starts_is_begun_again_and_not_for_ever() {
        for (end, driver_started, boots, wanted) in [
            (End::PowerCut, false, 1, Fate::Over),
            (End::PowerCut, true, BOOTS, Fate::Over),
            (End::Panicked, true, 1, Fate::Over),
            (End::ByItself, false, 1, Fate::BootAgain),
            (End::Hung, false, BOOTS - 1, Fate::BootAgain),
            (End::ByItself, false, BOOTS, Fate::Failed),
            (End::Hung, false, BOOTS, Fate::Failed),
            (End::ByItself, true, 1, Fate::Failed),
            (End::Hung, true, 1, Fate::Failed),
        ] {
            assert_eq!(fate(end, driver_started, boots), wanted, "{end:?} {driver_started} {boots}");
        }
    }

    #[test]
    fn a_kernel_panics_in_the_lives_that_say_so() {
        let case = Case::of(1);
        for (number, life) in case.lives.iter().enumerate().filter(|(_, life)| life.node != Node::Outside) {
            let panics = matches!(life.node, Node::Machine { panics: true, .. });
            assert_eq!(script(&case, number).contains("echo c >/proc/sysrq-trigger"), panics, "{life:?}");
            assert_eq!(script(&case, number).contains("echo b >/proc/sysrq-trigger"), !panics, "{life:?}");
        }
    }

    #[test]
    fn the_driver_has_started_when_what_it_says_has_a_file() {
        let case = Case::of(1);
        let script = script(&case, 0);
        let made = script.lines().position(|line| line.contains("said-")).unwrap();
        let line = script.lines().nth(made).unwrap();
        assert!(
            line.contains("bin/vivarium-oracle-node endure ") && line.ends_with(">>/outside/case-1/said-0"),
            "{script}"
        );
        // Shells make the file when they start the program: what may go wrong at boot has been done.
        assert_eq!(script.lines().position(|line| line == "set +e"), Some(made - 1), "{script}");
    }
}
