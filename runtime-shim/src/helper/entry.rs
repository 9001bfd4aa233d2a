//! What libcontainer's init does last: our own system call filter and capabilities (libcontainer installs no filter and
//! would drop the capabilities that installing one needs, so it is told to keep all), then execve.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use oci_spec::runtime::{Process, Spec};

use super::credentials::{Capabilities, drop_privileges, execute};
use crate::seccomp::Filter;

/// The end of a container's init. Lives in the forked process; a failure goes to the shim over the control socket,
/// success closes that socket.
#[derive(Clone)]
pub struct Entry {
    /// Process of the spec, with its true capabilities.
    pub process: Arc<Process>,
    /// Filters in order of installation.
    pub filters: Arc<Vec<Filter>>,
    /// To the shim.
    pub control: Arc<UnixStream>,
}

impl Executor for Entry {
    fn exec(&self, _: &Spec) -> Result<(), ExecutorError> {
        let capabilities = Capabilities::of(self.process.capabilities().as_ref());
        let no_new_privileges = self.process.no_new_privileges().unwrap_or(false);
        let error = match drop_privileges(&capabilities, &self.filters, no_new_privileges) {
            Ok(()) => execute(&self.process),
            Err(error) => error,
        };
        // If the shim is gone there is nobody left to tell.
        (&*self.control).write_all(error.to_string().as_bytes()).ok();
        Err(ExecutorError::Other(error.to_string()))
    }

    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        if self.process.args().as_ref().is_none_or(Vec::is_empty) {
            return Err(ExecutorValidationError::ArgValidationError("the process has no arguments".into()));
        }
        Ok(())
    }
}
