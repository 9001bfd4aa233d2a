//! CSI identity service.

use std::collections::HashMap;
use std::sync::Arc;

use tonic::{Request, Response, Status};
use vivarium_api::names;

use crate::pool::Pool;
use crate::proto::csi;

/// Says who the driver is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Whose health counts.
    pub pool: Arc<Pool>,
}

#[tonic::async_trait]
impl csi::identity_server::Identity for Identity {
    async fn get_plugin_info(
        &self,
        _: Request<csi::GetPluginInfoRequest>,
    ) -> Result<Response<csi::GetPluginInfoResponse>, Status> {
        Ok(Response::new(csi::GetPluginInfoResponse {
            name: names::CSI_DRIVER.into(),
            vendor_version: env!("CARGO_PKG_VERSION").into(),
            manifest: HashMap::new(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<csi::GetPluginCapabilitiesRequest>,
    ) -> Result<Response<csi::GetPluginCapabilitiesResponse>, Status> {
        use csi::plugin_capability::{Service, Type, VolumeExpansion, service, volume_expansion};
        // Topology says which nodes have a pool, and that a volume of a pod is on one.
        let service = |service: service::Type| Type::Service(Service { r#type: service.into() });
        let online = VolumeExpansion { r#type: volume_expansion::Type::Online.into() };
        let capabilities = [
            service(service::Type::ControllerService),
            service(service::Type::VolumeAccessibilityConstraints),
            Type::VolumeExpansion(online),
        ]
        .map(|capability| csi::PluginCapability { r#type: Some(capability) });
        Ok(Response::new(csi::GetPluginCapabilitiesResponse { capabilities: capabilities.into() }))
    }

    async fn probe(&self, _: Request<csi::ProbeRequest>) -> Result<Response<csi::ProbeResponse>, Status> {
        let pool = self.pool.clone();
        // A pool that hangs must not take a thread of the runtime along.
        let checked = tokio::task::spawn_blocking(move || pool.check()).await;
        match checked.map_err(|error| Status::internal(error.to_string()))? {
            Ok(()) => Ok(Response::new(csi::ProbeResponse { ready: Some(true) })),
            Err(error) => Err(Status::failed_precondition(error.to_string())),
        }
    }
}
