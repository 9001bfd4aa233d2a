//! Calls helm on the charts of the checkout.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use super::ChartError;
use crate::command;

/// Release and namespace that charts are rendered for; names that no template may hold itself.
const RELEASE: &str = "some-release";
/// See [`RELEASE`].
pub const NAMESPACE: &str = "some-namespace";

/// helm and the folder of the charts.
pub struct Helm {
    program: PathBuf,
    charts: PathBuf,
}

impl Helm {
    pub fn new(program: PathBuf, charts: PathBuf) -> Self {
        Self { program, charts }
    }

    /// `helm lint --strict`.
    pub fn lint(&self, chart: &str, values: Option<&Path>) -> Result<(), ChartError> {
        let mut helm = Command::new(&self.program);
        helm.args(["lint", "--strict", "--quiet"]).arg(self.charts.join(chart));
        with(&mut helm, values);
        command::run(&mut helm).map(drop).map_err(ChartError::Helm)
    }

    /// `helm template`: every object, hooks and tests among them.
    pub fn render(&self, chart: &str, values: Option<&Path>, settings: &[&str]) -> Result<Vec<Value>, ChartError> {
        let mut helm = Command::new(&self.program);
        helm.args(["template", RELEASE]).arg(self.charts.join(chart)).args(["--namespace", NAMESPACE]);
        with(&mut helm, values);
        helm.args(settings.iter().flat_map(|setting| ["--set", setting]));
        let printed = command::run(&mut helm).map_err(ChartError::Helm)?;
        let objects: Vec<Value> = serde_yaml::from_multiple(&printed)
            .map_err(|cause| ChartError::Yaml { chart: chart.to_owned(), cause: cause.to_string() })?;
        Ok(objects.into_iter().filter(|object| !object.is_null()).collect())
    }
}

fn with(helm: &mut Command, values: Option<&Path>) {
    if let Some(values) = values {
        helm.arg("--values").arg(values);
    }
}
