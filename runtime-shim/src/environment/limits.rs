//! Resource limits of `spec.os.limits`, as the runtime specification has them.

use std::fmt::Write;

use oci_spec::runtime::{PosixRlimit, PosixRlimitBuilder, PosixRlimitType};
use vivarium_api::node::boot::{LIMIT_NAMES, ResourceLimit};

use crate::error::{Error, Result};

/// Translates them. One that is not understood is refused with what is allowed.
pub fn posix(limits: &[ResourceLimit]) -> Result<Vec<PosixRlimit>> {
    limits.iter().map(one).collect()
}

fn one(limit: &ResourceLimit) -> Result<PosixRlimit> {
    let unknown = || {
        Error::Refused(format!(
            "the resource limit {:?} of spec.os.limits does not exist; use one of {}",
            limit.name,
            LIMIT_NAMES.join(", ")
        ))
    };
    if !LIMIT_NAMES.contains(&limit.name.as_str()) {
        return Err(unknown());
    }
    let name = format!("RLIMIT_{}", limit.name.to_uppercase());
    let kind: PosixRlimitType = serde_json::from_value(name.into()).map_err(|_| unknown())?;
    let (soft, hard) = (value(limit, &limit.soft)?, value(limit, &limit.hard)?);
    PosixRlimitBuilder::default()
        .typ(kind)
        .soft(soft)
        .hard(hard)
        .build()
        .map_err(|error| Error::Failed(error.to_string()))
}

fn value(limit: &ResourceLimit, text: &str) -> Result<u64> {
    if text == "unlimited" {
        return Ok(u64::MAX);
    }
    text.parse().map_err(|_| {
        Error::Refused(format!(
            "the value {text:?} of resource limit {} is neither a number nor \"unlimited\"",
            limit.name
        ))
    })
}

/// What `limits.conf(5)` has to say so that whoever logs in has them: `pam_limits` gives each session the limits of the
/// init, and 1,024 open files at most unless it is told. `None` if there are none.
pub fn of_logins(limits: &[PosixRlimit]) -> Option<String> {
    let mut text = String::from("# From spec.os.limits of the environment.\n");
    for (limit, (item, unit)) in limits.iter().filter_map(|limit| Some((limit, item(limit.typ())?))) {
        for (kind, value) in [("soft", limit.soft()), ("hard", limit.hard())] {
            let value = match (value, limit.typ()) {
                (u64::MAX, _) => "unlimited".to_owned(),
                // `getrlimit(2)`: the ceiling is 20 less this.
                (value, PosixRlimitType::RlimitNice) => (20 - i128::from(value.min(40))).to_string(),
                (value, _) => value.div_ceil(unit).to_string(),
            };
            for domain in ["*", "root"] {
                writeln!(text, "{domain} {kind} {item} {value}").ok();
            }
        }
    }
    text.contains("root").then_some(text)
}

/// What it is called, and how many of its units one is there.
fn item(kind: PosixRlimitType) -> Option<(&'static str, u64)> {
    Some(match kind {
        PosixRlimitType::RlimitAs => ("as", 1024),
        PosixRlimitType::RlimitCore => ("core", 1024),
        PosixRlimitType::RlimitCpu => ("cpu", 60),
        PosixRlimitType::RlimitData => ("data", 1024),
        PosixRlimitType::RlimitFsize => ("fsize", 1024),
        PosixRlimitType::RlimitLocks => ("locks", 1),
        PosixRlimitType::RlimitMemlock => ("memlock", 1024),
        PosixRlimitType::RlimitMsgqueue => ("msgqueue", 1),
        PosixRlimitType::RlimitNice => ("nice", 1),
        PosixRlimitType::RlimitNofile => ("nofile", 1),
        PosixRlimitType::RlimitNproc => ("nproc", 1),
        PosixRlimitType::RlimitRss => ("rss", 1024),
        PosixRlimitType::RlimitRtprio => ("rtprio", 1),
        // `pam_limits` does not know it; it stays that of the init.
        PosixRlimitType::RlimitRttime => return None,
        PosixRlimitType::RlimitSigpending => ("sigpending", 1),
        PosixRlimitType::RlimitStack => ("stack", 1024),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(name: &str, soft: &str, hard: &str) -> ResourceLimit {
        ResourceLimit { name: name.into(), soft: soft.into(), hard: hard.into() }
    }

    #[test]
    fn every_name_is_a_limit_of_the_specification() {
        for name in LIMIT_NAMES {
            let posix = posix(&[limit(name, "1", "unlimited")]).unwrap();
            assert_eq!((posix[0].soft(), posix[0].hard()), (1, u64::MAX), "{name}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_with_what_is_allowed() {
        let error = posix(&[limit("files", "1", "1")]).unwrap_err().to_string();
        assert!(error.contains("files") && error.contains("nofile"), "{error}");
        let error = posix(&[limit("nofile", "1", "many")]).unwrap_err().to_string();
        assert!(error.contains("many") && error.contains("unlimited"), "{error}");
        assert!(posix(&[limit("nofile", "-1", "1")]).is_err());
    }

    #[test]
    fn logins_are_told_in_their_units() {
        let limits = [
            limit("nofile", "2048", "unlimited"),
            limit("memlock", "65537", "131072"),
            limit("nice", "30", "40"),
            limit("rttime", "1", "1"),
        ];
        let text = of_logins(&posix(&limits).unwrap()).unwrap();
        let of_root: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("root ")).collect();
        assert_eq!(
            of_root,
            [
                "soft nofile 2048",
                "hard nofile unlimited",
                "soft memlock 65",
                "hard memlock 128",
                "soft nice -10",
                "hard nice -20"
            ]
        );
        assert_eq!(text.matches("* ").count(), of_root.len());
        assert_eq!(of_logins(&[]), None);
        assert_eq!(of_logins(&posix(&[limit("rttime", "1", "1")]).unwrap()), None);
    }
}
