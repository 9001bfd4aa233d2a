//! Installation of a seccomp filter without `no_new_privs`, which the crates that offer it always set: an init that
//! runs set-user-ID programs needs a filter all the same. The caller then needs `CAP_SYS_ADMIN` in its user namespace.

use std::io;

/// One instruction of a classic BPF program, laid out as the kernel's `struct sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip if a jump's condition holds.
    pub jump_true: u8,
    /// Instructions to skip if it does not.
    pub jump_false: u8,
    /// Operand.
    pub operand: u32,
}

/// Adds a filter to the calling thread, for ever; it is inherited over fork and execve.
pub fn install(program: &[Instruction]) -> io::Result<()> {
    #[repr(C)]
    struct Program {
        length: libc::c_ushort,
        instructions: *const Instruction,
    }
    let length = u16::try_from(program.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let raw = Program { length, instructions: program.as_ptr() };
    // SAFETY: `raw` has the layout of `struct sock_fprog` and points to `length` instructions that outlive the call; the
    // kernel copies them and checks that the program ends and stays in bounds.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const raw) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
