//! `ENVIRONMENT:PATH`.

use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A path in an environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The environment.
    pub environment: String,
    /// The path below its root directory.
    pub path: PathBuf,
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (environment, path) =
            text.split_once(':').filter(|(name, _)| !name.is_empty()).ok_or("write it as ENVIRONMENT:PATH")?;
        let path = Path::new(path.trim_start_matches('/'));
        Ok(Self { environment: environment.into(), path: path.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_name_and_a_path() {
        for (text, path) in
            [("shop:/etc/x", "etc/x"), ("shop:etc/x", "etc/x"), ("shop:/", ""), ("shop:", ""), ("shop:/a:b", "a:b")]
        {
            let place: Place = text.parse().unwrap();
            assert_eq!((place.environment.as_str(), place.path.to_str().unwrap()), ("shop", path), "{text}");
        }
        for text in ["shop", ":/etc", ""] {
            assert!(text.parse::<Place>().is_err(), "{text}");
        }
    }
}
