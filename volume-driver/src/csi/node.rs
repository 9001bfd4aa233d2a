//! CSI node service: from the wire to [`crate::publish`] and back. Every call runs as a task of its own, so that a kubelet
//! that gives up waiting does not cut an operation off half way; its next call is answered ABORTED until that has ended.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use tonic::{Request, Response, Status};
use vivarium_api::names;

use crate::directory::VolumeName;
use crate::ids::VolumeId;
use crate::proto::csi;
use crate::publish::{PodName, PublishCall, Publisher, Refusal, StageCall};
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
    /// Name of this node.
    pub name: String,
}

/// Runs a call to its end, whatever becomes of the caller.
async fn to_the_end<T: Send + 'static>(
    call: impl Future<Output = Result<T, Refusal>> + Send + 'static,
) -> Result<Response<T>, Status> {
    let result = tokio::spawn(call).await.unwrap_or_else(|error| Err(Refusal::CutOff(error.to_string())));
    result.map(Response::new).map_err(|refusal| {
        tracing::warn!(code = ?refusal.code(), "{refusal}");
        refusal.into()
    })
}

fn volume_id(text: &str) -> Result<VolumeId, Refusal> {
    if text.is_empty() {
        return Err(Refusal::Missing("volume_id"));
    }
    Ok(VolumeId::parse(text)?)
}

fn path(text: String, field: &'static str) -> Result<PathBuf, Refusal> {
    let path = PathBuf::from(&text);
    if text.is_empty() {
        return Err(Refusal::Missing(field));
    }
    let plain = path.components().all(|part| !matches!(part, std::path::Component::ParentDir));
    if path.is_absolute() && plain {
        Ok(path)
    } else {
        Err(Refusal::Invalid { field, value: text, message: "it must be an absolute path without '..'".into() })
    }
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

/// A volume of ours is a file tree that one pod writes.
fn check_capability(capability: Option<&csi::VolumeCapability>) -> Result<(), Refusal> {
    use csi::volume_capability::{AccessType, access_mode::Mode};
    let capability = capability.ok_or(Refusal::Missing("volume_capability"))?;
    let invalid = |value: String, message: &str| Refusal::Invalid {
        field: "volume_capability",
        value,
        message: message.to_owned(),
    };
    match &capability.access_type {
        None => return Err(Refusal::Missing("volume_capability.access_type")),
        Some(AccessType::Block(_)) => {
            return Err(invalid("block".into(), "an EnvironmentVolume is a file tree: use volumeMode Filesystem"));
        }
        Some(AccessType::Mount(_)) => {}
    }
    match capability.access_mode.map(|mode| mode.mode()) {
        None | Some(Mode::Unknown) => Err(Refusal::Missing("volume_capability.access_mode")),
        Some(Mode::SingleNodeWriter | Mode::SingleNodeSingleWriter) => Ok(()),
        Some(other) => Err(invalid(
            other.as_str_name().into(),
            "an EnvironmentVolume is written by one pod: use accessMode ReadWriteOnce",
        )),
    }
}

#[tonic::async_trait]
impl csi::node_server::Node for Node {
    async fn node_stage_volume(
        &self,
        request: Request<csi::NodeStageVolumeRequest>,
    ) -> Result<Response<csi::NodeStageVolumeResponse>, Status> {
        let (publisher, request) = (self.publisher.clone(), request.into_inner());
        to_the_end(async move {
            let id = volume_id(&request.volume_id)?;
            path(request.staging_target_path, "staging_target_path")?;
            check_capability(request.volume_capability.as_ref())?;
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
            publisher.unstage(&id).await?;
            Ok(csi::NodeUnstageVolumeResponse {})
        })
        .await
    }

    async fn node_publish_volume(
        &self,
        request: Request<csi::NodePublishVolumeRequest>,
    ) -> Result<Response<csi::NodePublishVolumeResponse>, Status> {
        let (publisher, views, request) = (self.publisher.clone(), self.views.clone(), request.into_inner());
        to_the_end(async move {
            // The kubelet says so; a persistent volume that says it is not one of ours.
            if request.volume_context.get(EPHEMERAL).is_some_and(|ephemeral| ephemeral == "true") {
                views.publish(view(request)?).await?;
                return Ok(csi::NodePublishVolumeResponse {});
            }
            let id = volume_id(&request.volume_id)?;
            let target = path(request.target_path, "target_path")?;
            path(request.staging_target_path, "staging_target_path")?;
            check_capability(request.volume_capability.as_ref())?;
            if request.readonly {
                return Err(Refusal::Invalid {
                    field: "readonly",
                    value: "true".into(),
                    message: "an environment writes to its volume: mount it without readOnly".into(),
                });
            }
            let name = volume_name(&request.volume_context)?;
            let pod = PodName {
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
        to_the_end(async move {
            let id = volume_id(&request.volume_id)?;
            let target = path(request.target_path, "target_path")?;
            if Views::is_view(&id) {
                views.unpublish(&id, &target)?;
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
        let (publisher, request) = (self.publisher.clone(), request.into_inner());
        to_the_end(async move {
            let id = volume_id(&request.volume_id)?;
            let path = path(request.volume_path, "volume_path")?;
            if Views::is_view(&id) {
                // What it holds counts against nobody. The kubelet takes an answer without numbers for a failure.
                let usage = csi::VolumeUsage { unit: csi::volume_usage::Unit::Bytes.into(), ..Default::default() };
                return Ok(csi::NodeGetVolumeStatsResponse { usage: vec![usage] });
            }
            let usage = publisher.stats(&id, path).await?;
            let usage = usage.map(|(used, total)| csi::VolumeUsage {
                available: total.saturating_sub(used) as i64,
                total: total as i64,
                used: used as i64,
                unit: csi::volume_usage::Unit::Bytes.into(),
            });
            Ok(csi::NodeGetVolumeStatsResponse { usage: usage.into_iter().collect() })
        })
        .await
    }

    async fn node_get_capabilities(
        &self,
        _: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<csi::NodeGetCapabilitiesResponse>, Status> {
        use csi::node_service_capability::{Rpc, Type, rpc};
        let capabilities = [rpc::Type::StageUnstageVolume, rpc::Type::GetVolumeStats]
            .map(|rpc| csi::NodeServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: rpc.into() })) });
        Ok(Response::new(csi::NodeGetCapabilitiesResponse { capabilities: capabilities.into() }))
    }

    async fn node_get_info(
        &self,
        _: Request<csi::NodeGetInfoRequest>,
    ) -> Result<Response<csi::NodeGetInfoResponse>, Status> {
        let segments = HashMap::from([(names::TOPOLOGY_POOL.to_owned(), "true".to_owned())]);
        Ok(Response::new(csi::NodeGetInfoResponse {
            node_id: self.name.clone(),
            max_volumes_per_node: 0,
            accessible_topology: Some(csi::Topology { segments }),
        }))
    }
}
