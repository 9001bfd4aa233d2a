//! Resource limits of `spec.os.limits`, as the runtime specification has them.

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
}
