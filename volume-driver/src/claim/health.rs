//! Whether something is wrong with a volume of a pod: a pure judgement of what was found.

use crate::pool::Space;
use crate::volume::Usage;

/// How bad it is, by the CSI specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Degree {
    /// It can be used, but not as it should be.
    Degraded,
    /// It cannot be used.
    Inaccessible,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// How bad it is.
    pub degree: Degree,
    /// One CamelCase word.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
}

/// What was found: the pool's own check, the room in it, and how full the volume is, where the kernel counts.
#[must_use]
pub fn judge(pool: Result<Space, String>, usage: Option<Usage>) -> Vec<Trouble> {
    let mut troubles = Vec::new();
    match pool {
        Err(message) => troubles.push(Trouble { degree: Degree::Inaccessible, reason: "NodeError", message }),
        Ok(space) if space.free == 0 => troubles.push(Trouble {
            degree: Degree::Degraded,
            reason: "PoolFull",
            message: "the pool of the node is full, so nothing can be written: delete volumes, or enlarge the pool"
                .into(),
        }),
        Ok(_) => {}
    }
    if let Some(usage) = usage.filter(|usage| usage.used >= usage.limit) {
        let message =
            format!("the volume holds {} of {} bytes: delete files, or enlarge its claim", usage.used, usage.limit);
        troubles.push(Trouble { degree: Degree::Degraded, reason: "VolumeFull", message });
    }
    troubles
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_trouble_has_its_word() {
        let space = |free| Ok(Space { total: 10, free });
        let usage = |used| Some(Usage { used, limit: 5 });
        for (pool, usage, expected) in [
            (space(3), usage(4), &[][..]),
            (space(3), None, &[]),
            (space(0), usage(4), &[(Degree::Degraded, "PoolFull")]),
            (space(3), usage(5), &[(Degree::Degraded, "VolumeFull")]),
            (Err("gone".into()), None, &[(Degree::Inaccessible, "NodeError")]),
            (space(0), usage(6), &[(Degree::Degraded, "PoolFull"), (Degree::Degraded, "VolumeFull")]),
        ] {
            let found: Vec<_> = judge(pool, usage).iter().map(|trouble| (trouble.degree, trouble.reason)).collect();
            assert_eq!(found, expected);
        }
    }
}
