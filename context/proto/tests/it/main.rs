//! Tests of contexts and their documents, through the crate's public face.

mod common;
mod documents;
mod hostile;
mod lifecycle;
mod recontext;
mod simulated;
