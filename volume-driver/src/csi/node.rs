//! CSI node service: from the wire to [`crate::publish`], for volumes of environments, and [`crate::claim`], for those of
//! other pods, and back. Every call runs as a task of its own, so that a kubelet that gives up waiting does not cut an
//! operation off half way; its next call is answered ABORTED until that has ended.

use std::collections::HashMap;
use std::sync::Arc;

use tonic::{Request, Response, Status};
use vivarium_api::names;
use vivarium_api::node::guest::PodReference;

use super::controller::{signed, topology};
use super::wire::{claim_capability, environment_capability, path, to_the_end, volume_health, volume_id};
use crate::claim::Claims;
use crate::claim::request::{Range, is_claim};
use crate::directory::VolumeName;
use crate::ids::VolumeId;
use crate::proto::csi;
use crate::publish::{PublishCall, Publisher, Refusal, StageCall};
use crate::view::{Request as ViewRequest, ShowCall, Views};

/// Volume context: name of the pod that is being started (`podInfoOnMount`).
const POD_NAME: &str = "csi.storage.k8s.io/pod.name";
const POD_NAMESPACE: &str = "csi.storage.k8s.io/pod.namespace";
const POD_UID: &str = "csi.storage.k8s.io/pod.uid";
/// Whether the volume stands in a pod and nowhere else.
const EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";

/// The service.
#[derive(Clone)]
pub struct Node {
    /// What does the work.
    pub publisher: Arc<Publisher>,
    /// What shows trees to those who only read.
    pub views: Arc<Views>,
    /// The volumes of ordinary pods.
    pub claims: Arc<Claims>,
    /// Name of this node.
    pub name: String,
}

fn context(context: &HashMap<String, String>, key: &'static str) -> Result<String, Refusal> {
    context.get(key).filter(|value| !value.is_empty()).cloned().ok_or(Refusal::Missing(key))
}

fn volume_name(of: &HashMap<String, String>) -> Result<VolumeName, Refusal> {
    let value = context(of, names::ATTRIBUTE_VOLUME)?;
    VolumeName::parse(&value).ok_or_else(|| Refusal::Invalid {
        field: names::ATTRIBUTE_VOLUME,
        value,
        message: "it must be '<namespace>/<name>' of an EnvironmentVolume".into(),
    })
}

/// A path that a volume may be mounted at. One that cannot be simply shows no volume.
fn some_path(text: String) -> Result<std::path::PathBuf, Refusal> {
    if text.is_empty() { Err(Refusal::Missing("volume_path")) } else { Ok(text.into()) }
}

/// The disk of an environment grows when its object does. The kubelet asks for it as well, as soon as the persistent volume is
/// larger than the claim says, and would not start the pod if it were refused. It asks about a path that it has made,
/// when the volume may not have been brought here yet.
async fn grown_by_its_object(
    id: VolumeId,
    path: std::path::PathBuf,
    capacity_bytes: i64,
) -> Result<csi::NodeExpandVolumeResponse, Refusal> {
    if path.is_absolute() && tokio::fs::metadata(&path).await.is_ok_and(|found| found.is_dir()) {
        Ok(csi::NodeExpandVolumeResponse { capacity_bytes })
    } else {
        Err(Refusal::NotThere { id, path })
    }
}

/// What a pod asks to see, in a volume that stands in it alone.
fn view(request: csi::NodePublishVolumeRequest) -> Result<ShowCall, Refusal> {
    let handle = volume_id(&request.volume_id)?;
    let target = path(request.target_path, "target_path")?;
    if !request.readonly {
        return Err(Refusal::Invalid {
            field: "readonly",
            value: "false".into(),
            message: "an environment can only be read in this way: set readOnly: true on the pod's csi volume".into(),
        });
    }
    let request = ViewRequest::parse(&request.volume_context)
        .and_then(|parsed| Ok((context(&request.volume_context, POD_NAMESPACE)?, parsed)));
    let (namespace, request) = request?;
    Ok(ShowCall { handle, target, namespace, request })
}

#[tonic::async_trait]
impl csi::node_server::Node for Node {
    async fn node_stage_volume(
        &self,
        request: Request<csi::NodeStageVolumeRequest>,
    ) -> Result<Response<csi::NodeStageVolumeResponse>, Status> {
        let (publisher, claims, request) = (self.publisher.clone(), self.claims.clone(), request.into_inner());
        to_the_end(async move {
            let id = volume_id(&request.volume_id)?;
            path(request.staging_target_path, "staging_target_path")?;
            if is_claim(&id) {
                claim_capability(request.volume_capability.as_ref())?;
                claims.stage(id).await?;
                return Ok(csi::NodeStageVolumeResponse {});
            }
            environment_capability(request.volume_capability.as_ref())?;
            let name = volume_name(&request.volume_context)?;
            publisher.stage(StageCall { id, name }).await?;
            Ok(csi::NodeStageVolumeResponse {})
        })
        .await
    }

    async fn node_unstage_volume(
        &self,
        request: Request<csi::NodeUnstageVolumeRequest>,
    ) -> Result<Response<csi::NodeUnstageVolumeResponse>, Status> {
        let (publisher, request) = (self.publisher.clone(), request.into_inner());
        to_the_end(async move {
            let id = volume_id(&request.volume_id)?;
            path(request.staging_target_path, "staging_target_path")?;
            // Of the others nothing is outside the pool.
            if !is_claim(&id) {
                publisher.unstage(&id).await?;
            }
            Ok(csi::NodeUnstageVolumeResponse {})
        })
        .await
    }

    async fn node_publish_volume(
        &self,
        request: Request<csi::NodePublishVolumeRequest>,
    ) -> Result<Response<csi::NodePublishVolumeResponse>, Status> {
        let (publisher, views, request) = (self.publisher.clone(), self.views.clone(), request.into_inner());
        let claims = self.claims.clone();
        to_the_end(async move {
            // The kubelet says so; a persistent volume that says it is not one of ours.
            if request.volume_context.get(EPHEMERAL).is_some_and(|ephemeral| ephemeral == "true") {
                views.publish(view(request)?).await?;
                return Ok(csi::NodePublishVolumeResponse {});
            }
            let id = volume_id(&request.volume_id)?;
            let target = path(request.target_path, "target_path")?;
            path(request.staging_target_path, "staging_target_path")?;
            if is_claim(&id) {
                claim_capability(request.volume_capability.as_ref())?;
                claims.publish(id, target, request.readonly).await?;
                return Ok(csi::NodePublishVolumeResponse {});
            }
            environment_capability(request.volume_capability.as_ref())?;
            if request.readonly {
                return Err(Refusal::Invalid {
                    field: "readonly",
                    value: "true".into(),
                    message: "an environment writes to its volume: mount it without readOnly".into(),
                });
            }
            let name = volume_name(&request.volume_context)?;
            let pod = PodReference {
                namespace: context(&request.volume_context, POD_NAMESPACE)?,
                name: context(&request.volume_context, POD_NAME)?,
                uid: context(&request.volume_context, POD_UID)?,
            };
            publisher.publish(PublishCall { id, name, target, pod }).await?;
            Ok(csi::NodePublishVolumeResponse {})
        })
        .await
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<csi::NodeUnpublishVolumeResponse>, Status> {
        let (publisher, views, request) = (self.publisher.clone(), self.views.clone(), request.into_inner());
        let claims = self.claims.clone();
        to_the_end(async move {
            let id = volume_id(&request.volume_id)?;
            let target = path(request.target_path, "target_path")?;
            if Views::is_view(&id) {
                views.unpublish(&id, &target)?;
            } else if is_claim(&id) {
                claims.unpublish(id, target).await?;
            } else {
                publisher.unpublish(&id, target).await?;
            }
            Ok(csi::NodeUnpublishVolumeResponse {})
        })
        .await
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<csi::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<csi::NodeGetVolumeStatsResponse>, Status> {
        let (publisher, claims, request) = (self.publisher.clone(), self.claims.clone(), request.into_inner());
        to_the_end(async move {
            let id = volume_id(&request.volume_id)?;
            let path = some_path(request.volume_path)?;
            if Views::is_view(&id) {
                // What it holds counts against nobody. The kubelet takes an answer without numbers for a failure.
                let usage = csi::VolumeUsage { unit: csi::volume_usage::Unit::Bytes.into(), ..Default::default() };
                return Ok(csi::NodeGetVolumeStatsResponse { usage: vec![usage] });
            }
            let usage = if is_claim(&id) {
                claims.stats(id, path).await?.map(|usage| (usage.used, usage.limit))
            } else {
                publisher.stats(&id, path).await?
            };
            let usage = usage.map(|(used, total)| csi::VolumeUsage {
                available: signed(total.saturating_sub(used)),
                total: signed(total),
                used: signed(used),
                unit: csi::volume_usage::Unit::Bytes.into(),
            });
            Ok(csi::NodeGetVolumeStatsResponse { usage: usage.into_iter().collect() })
        })
        .await
    }

    async fn node_get_volume_health(
        &self,
        request: Request<csi::NodeGetVolumeHealthRequest>,
    ) -> Result<Response<csi::NodeGetVolumeHealthResponse>, Status> {
        let (claims, request) = (self.claims.clone(), request.into_inner());
        to_the_end(async move {
            let id = volume_id(&request.volume_id)?;
            // How an environment's volume is, its object and its environment say.
            let troubles = if is_claim(&id) { claims.health(id.clone()).await? } else { Vec::new() };
            Ok(csi::NodeGetVolumeHealthResponse { volume_health: Some(volume_health(&id, troubles)) })
        })
        .await
    }

    async fn node_expand_volume(
        &self,
        request: Request<csi::NodeExpandVolumeRequest>,
    ) -> Result<Response<csi::NodeExpandVolumeResponse>, Status> {
        let (claims, request) = (self.claims.clone(), request.into_inner());
        to_the_end(async move {
            let id = volume_id(&request.volume_id)?;
            let path = some_path(request.volume_path)?;
            let wanted = request.capacity_range.unwrap_or_default();
            if !is_claim(&id) {
                return grown_by_its_object(id, path, wanted.required_bytes).await;
            }
            if let Some(capability) = &request.volume_capability {
                claim_capability(Some(capability))?;
            }
            let range = Range::new(wanted.required_bytes, wanted.limit_bytes)?;
            Ok(csi::NodeExpandVolumeResponse { capacity_bytes: signed(claims.expand(id, range).await?) })
        })
        .await
    }

    async fn node_get_capabilities(
        &self,
        _: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<csi::NodeGetCapabilitiesResponse>, Status> {
        use csi::node_service_capability::{Rpc, Type, rpc};
        let capabilities = [
            rpc::Type::StageUnstageVolume,
            rpc::Type::GetVolumeStats,
            rpc::Type::ExpandVolume,
            rpc::Type::GetVolumeHealth,
        ]
        .map(|rpc| csi::NodeServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: rpc.into() })) });
        Ok(Response::new(csi::NodeGetCapabilitiesResponse { capabilities: capabilities.into() }))
    }

    async fn node_get_info(
        &self,
        _: Request<csi::NodeGetInfoRequest>,
    ) -> Result<Response<csi::NodeGetInfoResponse>, Status> {
        let mut topology = topology(&self.name);
        topology.segments.insert(names::TOPOLOGY_POOL.to_owned(), "true".to_owned());
        Ok(Response::new(csi::NodeGetInfoResponse {
            node_id: self.name.clone(),
            max_volumes_per_node: 0,
            accessible_topology: Some(topology),
        }))
    }
}
