//! The part of a spec that an incarnation takes at its start and that cannot be changed while it runs. It is kept in
//! annotations of the pod, so that a later spec can be compared with it, and a guest that reboots in place finds what it was
//! started with.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde::{Deserialize, Serialize};
use vivarium_api::names;
use vivarium_api::node::boot::{self, BootConfig};
use vivarium_api::v1alpha1::VirtualEnvironment;
use vivarium_api::v1alpha1::environment::{AuthorizedKeysSource, OperatingSystem};

/// What an incarnation is started with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StartedWith {
    /// The boot configuration, which has an annotation of its own.
    #[serde(skip)]
    pub boot: BootConfig,
    /// Labels that the node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Class of its priority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority_class_name: Option<String>,
    /// Where root's keys come from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub authorized_keys_from: Vec<AuthorizedKeysSource>,
}

impl StartedWith {
    /// What an incarnation of the present spec would be started with.
    #[must_use]
    pub fn of(environment: &VirtualEnvironment) -> Self {
        let spec = &environment.spec;
        let os = spec.os.clone().unwrap_or_default();
        let authorized_keys_from = spec.root.clone().unwrap_or_default().authorized_keys_from;
        let OperatingSystem { hostname, timezone, locale, sysctls, limits } = os;
        Self {
            boot: BootConfig {
                version: boot::VERSION,
                machine_uuid: environment.uid().unwrap_or_default(),
                hostname: hostname.unwrap_or_else(|| environment.name_any()),
                timezone,
                locale,
                sysctls,
                limits,
                authorized_keys: u32::try_from(authorized_keys_from.len()).unwrap_or(u32::MAX),
            },
            node_selector: spec.placement.clone().unwrap_or_default().node_selector,
            priority_class_name: spec.priority_class_name.clone(),
            authorized_keys_from,
        }
    }

    /// Annotations for a pod that is started with this.
    pub fn annotations(&self) -> Result<BTreeMap<String, String>, serde_json::Error> {
        Ok(BTreeMap::from([
            (names::ANNOTATION_BOOT.to_owned(), serde_json::to_string(&self.boot)?),
            (names::ANNOTATION_STARTED_WITH.to_owned(), serde_json::to_string(self)?),
        ]))
    }

    /// What a pod was started with; `None` if an annotation is missing or not understood.
    #[must_use]
    pub fn of_pod(pod: &Pod) -> Option<Self> {
        let annotation = |name| pod.annotations().get(name);
        let started_with: Self = serde_json::from_str(annotation(names::ANNOTATION_STARTED_WITH)?).ok()?;
        let boot = serde_json::from_str(annotation(names::ANNOTATION_BOOT)?).ok()?;
        Some(Self { boot, ..started_with })
    }

    /// Fields of the spec in which `self` differs from `other`.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<&'static str> {
        let (a, b) = (&self.boot, &other.boot);
        [
            ("spec.os.hostname", a.hostname != b.hostname),
            ("spec.os.timezone", a.timezone != b.timezone),
            ("spec.os.locale", a.locale != b.locale),
            ("spec.os.sysctls", a.sysctls != b.sysctls),
            ("spec.os.limits", a.limits != b.limits),
            ("spec.placement.nodeSelector", self.node_selector != other.node_selector),
            ("spec.priorityClassName", self.priority_class_name != other.priority_class_name),
            ("spec.root.authorizedKeysFrom", self.authorized_keys_from != other.authorized_keys_from),
        ]
        .into_iter()
        .filter_map(|(field, differs)| differs.then_some(field))
        .collect()
    }
}
