//! Runs the machine under qemu with emulation of the processor, which needs nothing of the host: no /dev/kvm, no
//! network. Killing the emulator is a power cut: what the machine had not handed to its disks is lost, and of what a disk
//! behind a socket ([`super::nbd`]) had not flushed, as much as one likes.

use std::{
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
};

use super::{Error, base, console::Console, outside::Outside};
use crate::command;

/// Memory of the machine in MiB.
const MEMORY: u32 = 3072;

/// Processor: everything that the emulator can do, without
/// - `cx16`: the emulator of Debian 12 (7.2) leaves garbage in the flags after CMPXCHG16B, so that the kernel's
///   allocator, which uses it, takes a trap in its fast path; about every third boot hung or crashed on it;
/// - `la57`: five levels of page tables are walked in vain.
const PROCESSOR: &str = "max,cx16=off,la57=off";

/// A machine whose operating system is in the cache.
#[derive(Debug)]
pub struct Machine {
    kernel: PathBuf,
    system: PathBuf,
}

/// A disk.
#[derive(Clone, Debug)]
pub enum Disk {
    /// An image that stays as it is: what the machine writes is forgotten when it ends.
    Forgetful(PathBuf),
    /// One that is served at this socket, and keeps what was flushed, also over a power cut.
    Served(PathBuf),
}

/// How a machine is to start.
#[derive(Debug)]
pub struct Start<'a> {
    /// Disks beside the forgetful one with the operating system, in the order `/dev/vda`, `/dev/vdb`, ...
    pub disks: &'a [Disk],
    /// A directory of this machine.
    pub outside: Option<&'a Outside>,
    /// What the kernel is told beside what it is always told.
    pub kernel: &'a str,
}

impl Machine {
    /// Makes the operating system unless the cache has it.
    pub fn build() -> Result<Self, Error> {
        let folder = base::build()?;
        Ok(Self { kernel: folder.join(base::KERNEL), system: folder.join(base::SYSTEM) })
    }

    /// Switches it on.
    pub fn boot(&self, start: &Start) -> Result<Running, Error> {
        // When we are killed the emulator goes too: it would otherwise run on with nobody to look at it.
        let mut emulator = command::mortal("KILL", "qemu-system-x86_64");
        emulator.args(self.arguments(start)).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = emulator.spawn().map_err(Error::Emulator)?;
        let output = child.stdout.take().ok_or_else(|| Error::Emulator(std::io::ErrorKind::BrokenPipe.into()))?;
        Ok(Running { child, console: Console::new(output) })
    }

    fn arguments(&self, start: &Start) -> Vec<String> {
        let memory = MEMORY.to_string();
        let kernel = self.kernel.to_string_lossy();
        let told = format!("{} {}", base::kernel_arguments(), start.kernel);
        let mut arguments: Vec<String> = [
            &["-accel", "tcg,thread=multi", "-cpu", PROCESSOR, "-smp", "2", "-m", &memory][..],
            &["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"],
            &["-kernel", &kernel, "-append", told.trim_end()],
        ]
        .concat()
        .into_iter()
        .map(str::to_owned)
        .collect();
        arguments.extend(start.outside.into_iter().flat_map(|outside| outside.arguments(MEMORY)));
        arguments.extend(Disk::Forgetful(self.system.clone()).arguments("system", "nvme,serial=system"));
        for (number, disk) in start.disks.iter().enumerate() {
            arguments.extend(disk.arguments(&format!("disk{number}"), "virtio-blk-pci"));
        }
        arguments
    }
}

impl Disk {
    fn arguments(&self, name: &str, device: &str) -> [String; 4] {
        let drive = match self {
            Self::Forgetful(image) => format!("format=raw,cache=unsafe,snapshot=on,file={}", escaped(image)),
            Self::Served(socket) => {
                format!("format=raw,cache=writeback,file.driver=nbd,file.path={}", escaped(socket))
            }
        };
        ["-drive".into(), format!("if=none,id={name},{drive}"), "-device".into(), format!("{device},drive={name}")]
    }
}

/// In qemu's lists of options a comma stands for itself when doubled.
pub fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

/// A machine that is on.
#[derive(Debug)]
pub struct Running {
    child: Child,
    console: Console,
}

impl Running {
    /// Its serial line.
    pub fn console(&mut self) -> &mut Console {
        &mut self.console
    }

    /// Cuts its power.
    pub fn power_cut(mut self) -> Result<(), Error> {
        self.child.kill().and_then(|()| self.child.wait()).map(drop).map_err(Error::Emulator)
    }

    /// Waits for the end of an emulator that has closed the serial line.
    pub fn wait(mut self) -> Result<ExitStatus, Error> {
        self.child.wait().map_err(Error::Emulator)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already unless something went wrong before; then it must not stay.
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_has_a_driver_of_the_kernel_and_the_rest_keep_their_order() {
        let machine = Machine { kernel: "/k".into(), system: "/s,x".into() };
        let disks = [Disk::Forgetful("/a".into()), Disk::Served("/b".into())];
        let start = Start { disks: &disks, outside: None, kernel: "init=/x" };
        let arguments = machine.arguments(&start).join(" ");
        for part in [
            "id=system,format=raw,cache=unsafe,snapshot=on,file=/s,,x -device nvme,serial=system,drive=system ",
            "id=disk0,format=raw,cache=unsafe,snapshot=on,file=/a -device virtio-blk-pci,drive=disk0 ",
            "id=disk1,format=raw,cache=writeback,file.driver=nbd,file.path=/b -device virtio-blk-pci,drive=disk1",
            " init=/x ",
        ] {
            assert!(arguments.contains(part), "{part} in {arguments}");
        }
    }
}
