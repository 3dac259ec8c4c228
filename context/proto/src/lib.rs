//! The context of a cluster: what its members have to know of each other before they are one.
//!
//! Machines that are started together need each other's addresses, host names, host keys and data before they can
//! be configured, and nobody knows those beforehand. A *context* is where they meet: its *cluster document* says
//! which sets of members there are and what each provides and requires; every member reports what it is, and once
//! all have, each is given what it required, filled in. This is what Nimbus's context broker did ("Contextualization:
//! Providing One-Click Virtual Clusters"); its documents are read and written as it had them. What that paper leaves
//! for later is here too: data blobs, and members that join or leave a running cluster, by numbered versions.
//!
//! ```text
//!  cluster document ──► Cluster ──► Context::create ──┐
//!        xml, JSON                                    ▼
//!  member's report ──► Command ──► Context::decide ──► Record ──► (made durable) ──► Context::commit
//!                                      │ Answer                                          │ Effects: wake those
//!                                      ▼                                                 ▼ that wait
//!  member ◄────────────────────────────┴────────── View ◄────────── Context::retrieve ◄──┘
//! ```
//!
//! Everything here is pure: no runtime, socket, file or clock; `now` and random ids are arguments. The crate above
//! it is the broker, and the agent in each member shares the names, the documents and the messages.

mod cluster;
mod contact;
mod error;
pub mod limits;
mod names;
mod state;
pub mod wire;
pub mod xml;

pub use cluster::{
    Cluster, Deploy, Line, Nic, ProvidedIdentity, ProvidedRole, Provides, RequiredData, RequiredRole,
    Requires, Workspace, is_data, member_name,
};
pub use contact::{
    BadDer, BadFingerprint, BadUrl, BrokerFile, Contact, Fingerprint, Secret, Token, UserData, check_url,
};
pub use error::{Corrupt, DocumentError, Refusal};
pub use names::{
    BadName, ContextId, DataName, HostKey, HostName, Instance, InstanceHash, Interface, MemberName, RoleName,
    SetName, StepName,
};
pub use state::{
    Answer, Blob, Command, Context, Creation, Decision, Effects, Exit, Identity, MemberStatus, Phase, Player,
    Provided, Record, Registration, Retrieved, Settings, Status, Step, Verdict, View,
};
