//! `kubectl ve restore`: makes an `EnvironmentRestore`, and tells how to follow it.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::Error;
use crate::at::At;
use crate::commands::environment;
use crate::kubectl::Kubectl;

/// Asks for a former state of an environment, or of some of its paths.
///
/// # Errors
/// There is no such environment, it was not consented to, or the API server refuses.
pub fn run(kubectl: &Kubectl, name: &str, at: At, paths: &[String], yes: bool) -> Result<(), Error> {
    environment(kubectl, name)?;
    let at = at.attribute(Timestamp::now());
    let what = if paths.is_empty() { "all of it".to_owned() } else { paths.join(", ") };
    println!("environment {name} is shut down, gets back what it was at {at} ({what}), and starts again");
    super::failover::consent(yes)?;
    let made = kubectl.output(&["create", "-o", "json", "-f", "-"], order(name, &at, paths).to_string().as_bytes())?;
    let made: Value = serde_json::from_slice(&made).map_err(|error| Error::NotUnderstood("kubectl", error))?;
    let restore = made["metadata"]["name"].as_str().unwrap_or_default();
    println!("asked for; see kubectl get er {restore} -o wide, or: kubectl wait er/{restore} --for=condition=Complete");
    Ok(())
}

/// The object. Its name says whose it is; which, the API server decides.
fn order(name: &str, at: &str, paths: &[String]) -> Value {
    json!({
        "apiVersion": "vivarium.dev/v1alpha1",
        "kind": "EnvironmentRestore",
        "metadata": {"generateName": format!("{name}-")},
        "spec": {"environment": name, "at": at, "paths": paths},
    })
}

#[cfg(test)]
mod tests {
    use vivarium_api::v1alpha1::EnvironmentRestore;

    use super::*;

    #[test]
    fn what_is_asked_for_is_what_the_api_takes() {
        let order = |at: &str, paths: &[&str]| -> EnvironmentRestore {
            let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
            let at = at.parse::<At>().unwrap().attribute("2026-01-31T12:00:00Z".parse().unwrap());
            let mut order = order("shop", &at, &paths);
            // As the API server does.
            order["metadata"]["name"] = json!("shop-x1");
            serde_json::from_value(order).unwrap()
        };
        for (at, paths, expected) in [
            ("17", &[][..], "17"),
            ("10m", &["/etc/ssh", "/srv/a b"], "2026-01-31T11:50:00Z"),
            ("2026-01-31T11:00:00.25+01:00", &["/srv"], "2026-01-31T10:00:00.25Z"),
        ] {
            let order = order(at, paths);
            order.validate_cel().unwrap();
            assert_eq!((order.spec.environment.as_str(), order.spec.at.as_str()), ("shop", expected));
            assert_eq!(order.spec.paths, paths);
        }
    }
}
