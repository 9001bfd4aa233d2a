//! Names of images, as far as building and pushing needs them.

use super::Error;

/// `[registry/]repository:tag`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    full: String,
    repository: String,
    tag: String,
}

impl Reference {
    pub fn parse(full: &str) -> Result<Self, Error> {
        let wrong = || Error::Reference(full.to_owned());
        let path = match full.split_once('/') {
            // The first component is a registry when it cannot be part of a repository (distribution's rule).
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => rest,
            _ => full,
        };
        let (repository, tag) = path.rsplit_once(':').ok_or_else(wrong)?;
        let usable = |part: &str| !part.is_empty() && !part.contains([':', '@', ' ']) && !part.starts_with('/');
        if !usable(repository) || !usable(tag) || tag.contains('/') {
            return Err(wrong());
        }
        Ok(Self { full: full.to_owned(), repository: repository.to_owned(), tag: tag.to_owned() })
    }

    /// As it was given.
    pub fn full(&self) -> &str {
        &self.full
    }

    /// Without registry and tag.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    pub fn tag(&self) -> &str {
        &self.tag
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registry_repository_and_tag_are_told_apart() {
        for (full, repository, tag) in [
            ("10.250.0.1:5000/vivarium/stub:dev", "vivarium/stub", "dev"),
            ("docker.io/library/busybox:lab", "library/busybox", "lab"),
            ("localhost/a:1", "a", "1"),
            ("vivarium/operator:0.1.0", "vivarium/operator", "0.1.0"),
        ] {
            let reference = Reference::parse(full).unwrap();
            assert_eq!((reference.full(), reference.repository(), reference.tag()), (full, repository, tag));
        }
    }

    #[test]
    fn a_reference_without_tag_or_repository_is_refused() {
        for full in ["busybox", "10.250.0.1:5000/busybox", ":tag", "a:", "a/b:c/d", "a@sha256:00", "10.250.0.1:5000/:x"]
        {
            assert!(matches!(Reference::parse(full), Err(Error::Reference(_))), "{full}");
        }
    }
}
