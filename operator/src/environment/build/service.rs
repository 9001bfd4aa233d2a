//! The Service under which an environment is reached by name.

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use vivarium_api::v1alpha1::VirtualEnvironment;
use vivarium_api::v1alpha1::environment::Protocol;

use super::{child, labels};

/// The Service; `None` if the spec names no ports.
#[must_use]
pub fn service(environment: &VirtualEnvironment) -> Option<Service> {
    let spec = &environment.spec;
    if spec.services.is_empty() {
        return None;
    }
    let ports = spec.services.iter().map(|port| ServicePort {
        name: Some(port.name.clone()),
        port: port.port,
        target_port: Some(IntOrString::Int(port.target_port.unwrap_or(port.port))),
        protocol: Some(
            match port.protocol {
                Protocol::TCP => "TCP",
                Protocol::UDP => "UDP",
                Protocol::SCTP => "SCTP",
            }
            .into(),
        ),
        ..ServicePort::default()
    });
    Some(Service {
        metadata: child(environment, environment.metadata.name.clone().unwrap_or_default()),
        spec: Some(ServiceSpec {
            selector: Some(labels(environment)),
            ports: Some(ports.collect()),
            type_: Some("ClusterIP".into()),
            // Whoever is told that the environment is Ready reaches it, also in the second that the kubelet takes to say the
            // same of the pod. Before that the guest refuses by itself.
            publish_not_ready_addresses: Some(true),
            ..ServiceSpec::default()
        }),
        status: None,
    })
}
