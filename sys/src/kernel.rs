//! Which kernel runs.

/// First two numbers of a release.
pub type Version = (u32, u32);

/// Oldest kernel that Vivarium runs on: overlayfs takes layers one by one, and btrfs has simple quotas, since 6.7.
pub const OLDEST: Version = (6, 7);

/// The release as uname(2) says it.
#[must_use]
pub fn release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// Whether a release is old enough to be of no use. One that is not understood is not.
#[must_use]
pub fn is_too_old(release: &str) -> bool {
    version(release).is_some_and(|version| version < OLDEST)
}

fn version(release: &str) -> Option<Version> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernels_are_known() {
        for (release, old) in [
            ("6.7.0", false),
            ("6.12.48+deb13-cloud-amd64", false),
            ("7.0", false),
            ("6.6.13+bpo-amd64", true),
            ("5.15.0-91-generic", true),
            ("linux", false),
        ] {
            assert_eq!(is_too_old(release), old, "{release}");
        }
        assert!(version(&release()).is_some());
    }
}
