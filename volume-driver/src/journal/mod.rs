//! Transaction files of volumes: made from what the kernel says has changed ([`capture`]), and carried out again on any
//! node ([`apply`]). The format itself is the crate `vivarium-journal`'s.

pub mod apply;
pub mod capture;
mod layout;
pub mod tree;
