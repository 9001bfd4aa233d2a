//! Makes the driver known to the kubelet, which looks for sockets in its `plugins_registry` and asks them who they are.

use std::path::PathBuf;

use tokio::sync::mpsc;
use tonic::{Request, Response, Status};
use vivarium_api::names;

use crate::proto::registration::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse, registration_server,
};

/// Answers the kubelet.
#[derive(Clone, Debug)]
pub struct Registration {
    /// Socket of the CSI services, as the kubelet sees it.
    pub csi_socket: PathBuf,
    /// Told when the kubelet did not take the driver.
    pub refused: mpsc::Sender<String>,
}

#[tonic::async_trait]
impl registration_server::Registration for Registration {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".into(),
            name: names::CSI_DRIVER.into(),
            endpoint: self.csi_socket.to_string_lossy().into_owned(),
            supported_versions: vec!["1.0.0".into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        if status.plugin_registered {
            tracing::info!("the kubelet has registered the driver");
        } else if self.refused.try_send(status.error.clone()).is_err() {
            tracing::error!(error = status.error, "the kubelet did not register the driver");
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
