//! The chart `vivarium-crds` holds the files of `crds/`, each with the annotation that makes Helm leave it behind.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{ChartError, at, files};

/// Source, made by `vivarium-operator crds`.
pub const SOURCE: &str = "crds";
/// Copies.
const CHART: &str = "charts/vivarium-crds/templates";
/// Line that begins the metadata of a definition; no other has no indentation.
const METADATA: &str = "\nmetadata:\n";
/// What is added below it.
const KEEP: &str = "  annotations:\n    helm.sh/resource-policy: keep\n";

/// Writes the copies; what is not in the source any more goes.
pub fn copy(root: &Path) -> Result<(), ChartError> {
    let chart = root.join(CHART);
    fs::create_dir_all(&chart).map_err(at("create", &chart))?;
    for stale in files(&chart)? {
        fs::remove_file(&stale).map_err(at("remove", &stale))?;
    }
    for source in files(&root.join(SOURCE))? {
        let target = chart.join(source.file_name().unwrap_or_default());
        fs::write(&target, expected(&source)?).map_err(at("write", &target))?;
    }
    Ok(())
}

/// What differs between source and copies, one sentence each.
pub fn drift(root: &Path) -> Result<Vec<String>, ChartError> {
    let sources = files(&root.join(SOURCE))?;
    let chart = root.join(CHART);
    let mut found = Vec::new();
    for source in &sources {
        let copy = chart.join(source.file_name().unwrap_or_default());
        if fs::read_to_string(&copy).ok() != Some(expected(source)?) {
            found.push(format!("{} is not what {SOURCE}/ says; run: hack/run charts --write", copy.display()));
        }
    }
    let known = |copy: &PathBuf| sources.iter().any(|source| source.file_name() == copy.file_name());
    for stale in files(&chart)?.iter().filter(|copy| !known(copy)) {
        found.push(format!("{} is not in {SOURCE}/; run: hack/run charts --write", stale.display()));
    }
    Ok(found)
}

fn expected(source: &Path) -> Result<String, ChartError> {
    let text = fs::read_to_string(source).map_err(at("read", source))?;
    as_template(&text).map_err(|why| ChartError::Definition { path: source.into(), why })
}

/// A definition as a template of the chart.
fn as_template(definition: &str) -> Result<String, &'static str> {
    if definition.contains("{{") {
        return Err("it holds '{{', which Helm would take for its own");
    }
    let (before, after) = definition.split_once(METADATA).ok_or("it has no metadata")?;
    if after.starts_with("  annotations:") {
        return Err("it has annotations of its own; teach the copying to add to them");
    }
    Ok(format!("{before}{METADATA}{KEEP}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_annotation_is_all_that_is_added() {
        let definition =
            "kind: CustomResourceDefinition\nmetadata:\n  name: a\nspec:\n  x:\n    metadata:\n      y: 1\n";
        let template = as_template(definition).unwrap();
        assert_eq!(template.replacen(KEEP, "", 1), definition);
        assert!(template.contains("metadata:\n  annotations:\n    helm.sh/resource-policy: keep\n  name: a\n"));
    }

    #[test]
    fn what_helm_would_misread_is_refused() {
        for definition in ["a: b\n", "x: '{{'\nmetadata:\n  name: a\n", "k: v\nmetadata:\n  annotations: {}\n"] {
            assert!(as_template(definition).is_err(), "{definition}");
        }
    }
}
