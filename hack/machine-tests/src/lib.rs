//! What the two sides of `hack/test-cgroup2` agree on: [`plan`] says which checks there are, [`tap`] how the machine
//! reports them over its serial line, [`options`] what the host tells the machine. [`config`] renders the files that
//! containerd, CNI and crictl read. All of it is pure; the program `machine-tests` does the work inside the machine.

pub mod config;
pub mod options;
pub mod plan;
pub mod tap;
