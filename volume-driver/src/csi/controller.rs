//! CSI controller service: from the wire to [`crate::claim`] and back. It runs in the driver of each node and is about the
//! volumes of pods on that node alone: the provisioner and the snapshotter beside it are told so with `--node-deployment`.

use std::collections::HashMap;
use std::sync::Arc;

use tonic::{Request, Response, Status};
use vivarium_api::names;

use super::wire::{claim_capability, to_the_end, volume_health, volume_id};
use crate::claim::record::{Claim, Origin, Snapshot};
use crate::claim::request::{self, NewClaim, Range};
use crate::claim::{ClaimError, Claims};
use crate::ids::VolumeId;
use crate::proto::csi;
use crate::publish::Refusal;

/// Longest name that the specification lets a caller ask under.
const LONGEST_NAME: usize = 128;

/// The service.
#[derive(Clone)]
pub struct Controller {
    /// What does the work.
    pub claims: Arc<Claims>,
}

/// Where the volumes of a node are reachable.
pub(super) fn topology(node: &str) -> csi::Topology {
    csi::Topology { segments: HashMap::from([(names::TOPOLOGY_NODE.to_owned(), node.to_owned())]) }
}

/// Whether what is reachable at a topology can be on a node. Keys of others say nothing of it.
fn allows(topology: &csi::Topology, node: &str) -> bool {
    topology.segments.get(names::TOPOLOGY_NODE).is_none_or(|wanted| wanted == node)
}

fn content(source: Option<csi::VolumeContentSource>) -> Result<Option<Origin>, Refusal> {
    use csi::volume_content_source::{SnapshotSource, Type, VolumeSource};
    Ok(match source {
        None => None,
        Some(source) => Some(match source.r#type {
            Some(Type::Snapshot(SnapshotSource { snapshot_id })) => Origin::Snapshot(snapshot_id),
            Some(Type::Volume(VolumeSource { volume_id })) => Origin::Claim(volume_id),
            None => return Err(Refusal::Missing("volume_content_source.type")),
        }),
    })
}

fn name(name: String) -> Result<String, Refusal> {
    match name.len() {
        0 => Err(Refusal::Missing("name")),
        1..=LONGEST_NAME => Ok(name),
        _ => Err(Refusal::Invalid {
            field: "name",
            message: format!("it can have {LONGEST_NAME} bytes at most"),
            value: name.chars().take(LONGEST_NAME).collect(),
        }),
    }
}

fn new_claim(request: csi::CreateVolumeRequest, node: &str) -> Result<NewClaim, Refusal> {
    let name = name(request.name)?;
    if request.volume_capabilities.is_empty() {
        return Err(Refusal::Missing("volume_capabilities"));
    }
    for capability in &request.volume_capabilities {
        claim_capability(Some(capability))?;
    }
    if let Some(parameter) = request.mutable_parameters.keys().min() {
        return Err(ClaimError::Parameter { name: parameter.clone() }.into());
    }
    let range = request.capacity_range.unwrap_or_default();
    let range = Range::new(range.required_bytes, range.limit_bytes)?;
    let new = NewClaim::new(&name, node, range, &request.parameters, content(request.volume_content_source)?)?;
    let wanted = request.accessibility_requirements.unwrap_or_default().requisite;
    if !wanted.is_empty() && !wanted.iter().any(|topology| allows(topology, node)) {
        return Err(ClaimError::Elsewhere { node: node.to_owned() }.into());
    }
    Ok(new)
}

fn volume(claim: Claim, node: &str) -> csi::Volume {
    use csi::volume_content_source::{SnapshotSource, Type, VolumeSource};
    let source = match claim.record.origin {
        Origin::Snapshot(snapshot_id) => Some(Type::Snapshot(SnapshotSource { snapshot_id })),
        Origin::Claim(volume_id) => Some(Type::Volume(VolumeSource { volume_id })),
        Origin::Empty | Origin::Template(_) => None,
    };
    csi::Volume {
        capacity_bytes: signed(claim.record.size),
        volume_id: claim.id.to_string(),
        volume_context: HashMap::new(),
        content_source: source.map(|source| csi::VolumeContentSource { r#type: Some(source) }),
        accessible_topology: vec![topology(node)],
    }
}

fn snapshot(snapshot: Snapshot) -> csi::Snapshot {
    let created = snapshot.record.created;
    csi::Snapshot {
        size_bytes: signed(snapshot.record.size),
        snapshot_id: snapshot.id.to_string(),
        source_volume_id: snapshot.record.source,
        creation_time: Some(prost_types::Timestamp {
            seconds: created.as_second(),
            nanos: created.subsec_nanosecond(),
        }),
        ready_to_use: true,
    }
}

/// Bytes as the wire has them.
pub(super) fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[tonic::async_trait]
impl csi::controller_server::Controller for Controller {
    async fn create_volume(
        &self,
        request: Request<csi::CreateVolumeRequest>,
    ) -> Result<Response<csi::CreateVolumeResponse>, Status> {
        let (claims, request) = (self.claims.clone(), request.into_inner());
        to_the_end(async move {
            let new = new_claim(request, claims.node())?;
            let claim = claims.create(new).await?;
            Ok(csi::CreateVolumeResponse { volume: Some(volume(claim, claims.node())) })
        })
        .await
    }

    async fn delete_volume(
        &self,
        request: Request<csi::DeleteVolumeRequest>,
    ) -> Result<Response<csi::DeleteVolumeResponse>, Status> {
        let (claims, request) = (self.claims.clone(), request.into_inner());
        to_the_end(async move {
            match volume_id(&request.volume_id) {
                // What cannot be a handle is none of ours, so it is gone.
                Err(Refusal::BadId(_)) => {}
                id => claims.delete(id?).await?,
            }
            Ok(csi::DeleteVolumeResponse {})
        })
        .await
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<csi::ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<csi::ValidateVolumeCapabilitiesResponse>, Status> {
        let (claims, request) = (self.claims.clone(), request.into_inner());
        to_the_end(async move {
            use csi::validate_volume_capabilities_response::Confirmed;
            let id = volume_id(&request.volume_id)?;
            if request.volume_capabilities.is_empty() {
                return Err(Refusal::Missing("volume_capabilities"));
            }
            claims.get(id).await?;
            let check = request.volume_capabilities.iter().try_for_each(|one| claim_capability(Some(one)));
            Ok(match check {
                Err(refusal) => {
                    csi::ValidateVolumeCapabilitiesResponse { confirmed: None, message: refusal.to_string() }
                }
                Ok(()) => csi::ValidateVolumeCapabilitiesResponse {
                    confirmed: Some(Confirmed {
                        volume_context: request.volume_context,
                        volume_capabilities: request.volume_capabilities,
                        parameters: request.parameters,
                        mutable_parameters: request.mutable_parameters,
                    }),
                    message: String::new(),
                },
            })
        })
        .await
    }

    async fn list_volumes(
        &self,
        request: Request<csi::ListVolumesRequest>,
    ) -> Result<Response<csi::ListVolumesResponse>, Status> {
        let (claims, request) = (self.claims.clone(), request.into_inner());
        to_the_end(async move {
            let all = claims.list().await?;
            let (max, token) = (request.max_entries, &request.starting_token);
            let (page, next) = request::page(all, |claim| &claim.id, token, max, request::is_claim)?;
            let entry = |claim| csi::list_volumes_response::Entry { volume: Some(volume(claim, claims.node())) };
            Ok(csi::ListVolumesResponse {
                entries: page.into_iter().map(entry).collect(),
                next_token: next.unwrap_or_default(),
            })
        })
        .await
    }

    async fn controller_get_volume(
        &self,
        request: Request<csi::ControllerGetVolumeRequest>,
    ) -> Result<Response<csi::ControllerGetVolumeResponse>, Status> {
        let (claims, request) = (self.claims.clone(), request.into_inner());
        to_the_end(async move {
            let claim = claims.get(volume_id(&request.volume_id)?).await?;
            Ok(csi::ControllerGetVolumeResponse {
                volume: Some(volume(claim, claims.node())),
                status: Some(csi::controller_get_volume_response::VolumeStatus::default()),
            })
        })
        .await
    }

    async fn controller_get_volume_health(
        &self,
        request: Request<csi::ControllerGetVolumeHealthRequest>,
    ) -> Result<Response<csi::ControllerGetVolumeHealthResponse>, Status> {
        let (claims, request) = (self.claims.clone(), request.into_inner());
        to_the_end(async move {
            let id = volume_id(&request.volume_id)?;
            let volume_health = Some(volume_health(&id, claims.health(id.clone()).await?));
            Ok(csi::ControllerGetVolumeHealthResponse { volume_health })
        })
        .await
    }

    async fn get_capacity(
        &self,
        request: Request<csi::GetCapacityRequest>,
    ) -> Result<Response<csi::GetCapacityResponse>, Status> {
        let (claims, request) = (self.claims.clone(), request.into_inner());
        to_the_end(async move {
            let here = request.accessible_topology.is_none_or(|topology| allows(&topology, claims.node()));
            let fine = request.volume_capabilities.iter().all(|one| claim_capability(Some(one)).is_ok());
            let room = if here && fine { signed(claims.room()?) } else { 0 };
            Ok(csi::GetCapacityResponse { available_capacity: room, maximum_volume_size: Some(room) })
        })
        .await
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<csi::ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<csi::ControllerGetCapabilitiesResponse>, Status> {
        use csi::controller_service_capability::{Rpc, Type, rpc};
        // A volume is enlarged by the node that it is on, so the resizer, which is one for the cluster, leaves it to that.
        let capabilities = [
            rpc::Type::CreateDeleteVolume,
            rpc::Type::ListVolumes,
            rpc::Type::GetCapacity,
            rpc::Type::CreateDeleteSnapshot,
            rpc::Type::ListSnapshots,
            rpc::Type::CloneVolume,
            rpc::Type::GetVolume,
            rpc::Type::GetVolumeHealth,
        ]
        .map(|rpc| csi::ControllerServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: rpc.into() })) });
        Ok(Response::new(csi::ControllerGetCapabilitiesResponse { capabilities: capabilities.into() }))
    }

    async fn create_snapshot(
        &self,
        request: Request<csi::CreateSnapshotRequest>,
    ) -> Result<Response<csi::CreateSnapshotResponse>, Status> {
        let (claims, request) = (self.claims.clone(), request.into_inner());
        to_the_end(async move {
            let name = name(request.name)?;
            if request.source_volume_id.is_empty() {
                return Err(Refusal::Missing("source_volume_id"));
            }
            if let Some(unknown) = request.parameters.keys().find(|key| !key.starts_with("csi.storage.k8s.io/")) {
                return Err(Refusal::Invalid {
                    field: "parameters",
                    value: unknown.clone(),
                    message: "a VolumeSnapshotClass of this driver has none".into(),
                });
            }
            let taken = claims.snapshot(name, volume_id(&request.source_volume_id)?).await?;
            Ok(csi::CreateSnapshotResponse { snapshot: Some(snapshot(taken)) })
        })
        .await
    }

    async fn delete_snapshot(
        &self,
        request: Request<csi::DeleteSnapshotRequest>,
    ) -> Result<Response<csi::DeleteSnapshotResponse>, Status> {
        let (claims, request) = (self.claims.clone(), request.into_inner());
        to_the_end(async move {
            match request.snapshot_id.as_str() {
                "" => return Err(Refusal::Missing("snapshot_id")),
                id => {
                    if let Ok(id) = VolumeId::parse(id) {
                        claims.delete_snapshot(id).await?;
                    }
                }
            }
            Ok(csi::DeleteSnapshotResponse {})
        })
        .await
    }

    async fn list_snapshots(
        &self,
        request: Request<csi::ListSnapshotsRequest>,
    ) -> Result<Response<csi::ListSnapshotsResponse>, Status> {
        let (claims, request) = (self.claims.clone(), request.into_inner());
        to_the_end(async move {
            let fits = |wanted: &str, is: &str| wanted.is_empty() || wanted == is;
            let mut all = claims.list_snapshots().await?;
            all.retain(|found| {
                fits(&request.snapshot_id, found.id.as_str()) && fits(&request.source_volume_id, &found.record.source)
            });
            let (max, token) = (request.max_entries, &request.starting_token);
            let (page, next) = request::page(all, |found| &found.id, token, max, request::is_snapshot)?;
            let entry = |found| csi::list_snapshots_response::Entry { snapshot: Some(snapshot(found)) };
            Ok(csi::ListSnapshotsResponse {
                entries: page.into_iter().map(entry).collect(),
                next_token: next.unwrap_or_default(),
            })
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(node: &str) -> csi::Topology {
        csi::Topology {
            segments: HashMap::from([
                (names::TOPOLOGY_NODE.to_owned(), node.to_owned()),
                (names::TOPOLOGY_POOL.to_owned(), "true".to_owned()),
            ]),
        }
    }

    #[test]
    fn a_volume_is_made_only_where_it_may_be() {
        use csi::volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode};
        let anywhere =
            csi::Topology { segments: HashMap::from([(names::TOPOLOGY_POOL.to_owned(), "true".to_owned())]) };
        for (requisite, fine) in [
            (vec![], true),
            (vec![at("n1")], true),
            (vec![at("n2"), at("n1")], true),
            (vec![anywhere], true),
            (vec![at("n2")], false),
        ] {
            let request = csi::CreateVolumeRequest {
                name: "pvc-1".into(),
                volume_capabilities: vec![csi::VolumeCapability {
                    access_type: Some(AccessType::Mount(MountVolume::default())),
                    access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
                }],
                accessibility_requirements: Some(csi::TopologyRequirement {
                    requisite: requisite.clone(),
                    preferred: vec![],
                }),
                ..Default::default()
            };
            let found = new_claim(request, "n1");
            assert_eq!(found.is_ok(), fine, "{requisite:?}");
            assert!(found.err().is_none_or(|refusal| refusal.code() == tonic::Code::ResourceExhausted));
        }
    }
}
