//! What the built objects look like to Kubernetes.

use serde_json::{Value, json};

use super::fixtures::*;
use crate::environment::build;

fn as_json<T: serde::Serialize>(object: &T) -> Value {
    serde_json::to_value(object).unwrap()
}

fn rich() -> Value {
    json!({"resources": {"limits": {"cpu": "2", "memory": "16Mi"}, "disk": "1Gi"},
        "root": {"authorizedKeysFrom": [{"secretRef": {"name": "a"}}, {"secretRef": {"name": "b", "key": "k"}}]},
        "os": {"hostname": "till", "timezone": "Europe/Prague", "sysctls": [{"name": "net.ipv4.ip_forward", "value": "1"}]},
        "placement": {"nodeSelector": {"zone": "a"}},
        "services": [{"name": "web", "port": 80, "targetPort": 8080}, {"name": "dns", "port": 53, "protocol": "UDP"}]})
}

#[test]
fn a_pod_says_all_that_kubelet_and_shim_need_and_nothing_that_baseline_forbids() {
    let world = prepared(&rich());
    let placed = volume(&json!({"observedGeneration": 1, "node": "n1"}));
    let pod = as_json(&build::pod(&world.environment, &placed, 7, "example.org/stub:1", &build::Place::Data).unwrap());
    let boot = json!({"version": 1, "machineUuid": UID, "hostname": "till", "timezone": "Europe/Prague",
        "sysctls": [{"name": "net.ipv4.ip_forward", "value": "1"}], "authorizedKeys": 2});
    let annotation =
        |name: &str| -> Value { serde_json::from_str(pod["metadata"]["annotations"][name].as_str().unwrap()).unwrap() };
    assert_eq!(annotation("vivarium.dev/boot"), boot);
    assert_eq!(
        annotation("vivarium.dev/started-with"),
        json!({"nodeSelector": {"zone": "a"},
            "authorizedKeysFrom": [{"secretRef": {"name": "a", "key": "authorized_keys"}}, {"secretRef": {"name": "b", "key": "k"}}]})
    );
    let mut metadata = pod["metadata"].clone();
    metadata["annotations"] = Value::Null;
    assert_eq!(
        metadata,
        json!({"name": "shop-7", "namespace": "team-a", "annotations": null,
            "labels": {"vivarium.dev/environment": "shop", "vivarium.dev/epoch": "7"},
            "ownerReferences": [{"apiVersion": "vivarium.dev/v1alpha1", "kind": "VirtualEnvironment", "name": "shop", "uid": UID, "controller": true}]})
    );
    assert_eq!(
        pod["spec"],
        json!({
            "runtimeClassName": "vivarium", "hostUsers": false, "hostname": "till", "restartPolicy": "Never",
            "enableServiceLinks": false, "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 90,
            "nodeSelector": {"topology.csi.vivarium.dev/pool": "true", "zone": "a"},
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}]}}},
            "tolerations": [
                {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"},
                {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"}],
            "readinessGates": [{"conditionType": "vivarium.dev/Booted"}],
            "containers": [{"name": "environment", "image": "example.org/stub:1", "imagePullPolicy": "IfNotPresent",
                "command": ["/sbin/init"], "tty": true, "stdin": true,
                "resources": {"limits": {"cpu": "2", "memory": "16Mi"}, "requests": {"cpu": "10m", "memory": "16Mi"}},
                "volumeMounts": [{"name": "root", "mountPath": "/.vivarium/root"},
                    {"name": "config", "mountPath": "/.vivarium/config", "readOnly": true}]}],
            "volumes": [{"name": "root", "persistentVolumeClaim": {"claimName": "vivarium-shop"}},
                {"name": "config", "projected": {"sources": [
                    {"downwardAPI": {"items": [{"path": "boot.json",
                        "fieldRef": {"fieldPath": "metadata.annotations['vivarium.dev/boot']"}}]}},
                    {"secret": {"name": "a", "items": [{"key": "authorized_keys", "path": "authorized-keys/0"}], "optional": true}},
                    {"secret": {"name": "b", "items": [{"key": "k", "path": "authorized-keys/1"}], "optional": true}}]}}]
        })
    );
}

#[test]
fn a_pod_of_a_plain_environment_is_free_to_go_to_any_pool() {
    let world = prepared(&json!({}));
    let pod = as_json(
        &build::pod(&world.environment, world.volume.as_ref().unwrap(), 1, "stub", &build::Place::Data).unwrap(),
    );
    assert_eq!(pod["spec"]["affinity"], Value::Null);
    assert_eq!(pod["spec"]["hostname"], "shop");
    assert_eq!(pod["spec"]["nodeSelector"], json!({"topology.csi.vivarium.dev/pool": "true"}));
    assert_eq!(pod["spec"]["containers"][0]["resources"], json!({"requests": {"cpu": "10m", "memory": "32Mi"}}));
}

#[test]
fn volume_and_claim_find_each_other_by_name() {
    let world = prepared(&rich());
    let volume = world.volume.as_ref().unwrap();
    let persistent = as_json(&build::persistent_volume(&world.environment, volume).unwrap());
    assert_eq!(
        persistent["metadata"],
        json!({"name": format!("vivarium-{VOLUME_UID}"), "labels": {"vivarium.dev/environment": "shop"}})
    );
    assert_eq!(
        persistent["spec"],
        json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "10Gi"}, "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "", "volumeMode": "Filesystem",
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": "team-a", "name": "vivarium-shop"},
            "csi": {"driver": "csi.vivarium.dev", "volumeHandle": VOLUME_UID, "volumeAttributes": {"vivarium.dev/volume": "team-a/shop"}}})
    );
    let claim = as_json(&build::claim(&world.environment, volume).unwrap());
    assert_eq!(claim["metadata"]["name"], "vivarium-shop");
    assert_eq!(
        claim["spec"],
        json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}, "storageClassName": "",
            "volumeMode": "Filesystem", "volumeName": format!("vivarium-{VOLUME_UID}")})
    );
}

#[test]
fn a_service_has_the_ports_of_the_spec() {
    let service = as_json(&build::service(&environment(&rich())).unwrap());
    assert_eq!(service["metadata"]["name"], "shop");
    assert_eq!(
        service["spec"],
        json!({"type": "ClusterIP", "selector": {"vivarium.dev/environment": "shop"}, "publishNotReadyAddresses": true, "ports": [
            {"name": "web", "port": 80, "targetPort": 8080, "protocol": "TCP"},
            {"name": "dns", "port": 53, "targetPort": 53, "protocol": "UDP"}]})
    );
    assert!(build::service(&environment(&json!({}))).is_none());
}

#[test]
fn a_pod_has_the_priority_of_its_environment_and_is_told_apart_by_it() {
    let mut world = super::fixtures::with_pod(&json!({"priorityClassName": "shops"}), 1, &super::fixtures::running());
    assert_eq!(world.pods[0].spec.as_ref().unwrap().priority_class_name.as_deref(), Some("shops"));
    super::fixtures::change(&mut world, |ve| ve.spec.priority_class_name = None);
    let decision = super::fixtures::decided(&world);
    let up_to_date = super::fixtures::shown(&decision, "UpToDate");
    assert!(up_to_date.message.contains("spec.priorityClassName"), "{}", up_to_date.message);
}

#[test]
fn a_new_volume_lies_on_the_template_by_digest() {
    let volume = build::volume(&environment(&rich()), &template(), None).unwrap();
    assert_eq!(
        as_json(&volume.spec),
        json!({"template": {"name": "debian-13", "image": "example.org/debian@sha256:abc", "layers": ["sha256:l1", "sha256:l2"]},
            "size": "1Gi", "environment": "shop"})
    );
    assert_eq!(volume.metadata.finalizers, Some(vec!["vivarium.dev/volume-data".to_owned()]));
    assert_eq!(volume.metadata.owner_references, None);
}
