//! The XML documents, as Nimbus had them.
//!
//! A document is first read into a small tree of elements that know their lines, within the limits of
//! [`crate::limits`], and then into typed values. There is no document type and no entity but the five of XML
//! itself, so nothing expands. Elements and attributes that are not known are errors: a requirement that is
//! misspelt must not pass for none. Names of namespaces are accepted and not judged.

mod cluster;
mod tree;
mod user_data;
mod view;

pub use cluster::{read_cluster, write_cluster};
pub use user_data::{read_user_data, write_user_data};
pub use view::write_view;
