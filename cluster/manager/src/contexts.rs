//! The contexts of clusters: what makes a set of machines a cluster once they run.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use aerie_cluster_manager_proto::{ContextReport, Failure};
use aerie_context::{Broker, Denied};
use aerie_context_proto::{Cluster, Command, ContextId, MemberName, Phase, Refusal, SetName, Settings};
use aerie_types::WallMillis;
use async_trait::async_trait;

/// Whoever makes contexts. Every call may be made again.
///
/// What is missing is a call that makes the broker forget which machine a member is. A member that has reported and is
/// then deployed anew is another machine, which the broker refuses: it runs, and does not join its context again until
/// its cluster is asked for anew.
#[async_trait]
pub trait ContextService: fmt::Debug + Send + Sync {
    /// Makes a context under this id. One that is there is no error.
    ///
    /// # Errors
    /// [`Failure`]
    async fn create(&self, id: ContextId, cluster: Cluster, absent: Vec<MemberName>) -> Result<(), Failure>;

    /// What the machine of a member is told at its start. It holds the context's secret.
    ///
    /// # Errors
    /// [`Failure`]
    async fn user_data(&self, id: ContextId, set: SetName, member: MemberName) -> Result<Vec<u8>, Failure>;

    /// What there is to say of members; of those that have not reported and may yet, nothing.
    ///
    /// # Errors
    /// [`Failure`]
    async fn reports(&self, id: ContextId) -> Result<BTreeMap<MemberName, ContextReport>, Failure>;

    /// Ends a context. One that is not there is no error.
    ///
    /// # Errors
    /// [`Failure`]
    async fn remove(&self, id: ContextId) -> Result<(), Failure>;
}

/// The broker within this process. Whoever serves it to members, and lets its time pass, is who opened it.
pub struct EmbeddedContexts {
    broker: Arc<Broker>,
    settings: Settings,
}

impl fmt::Debug for EmbeddedContexts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = self.broker.url();
        f.debug_struct("EmbeddedContexts").field("url", &url).finish()
    }
}

impl EmbeddedContexts {
    /// Contexts of this broker, with these time limits.
    #[must_use]
    pub fn new(broker: Arc<Broker>, settings: Settings) -> Self {
        Self { broker, settings }
    }

    /// Runs something that may wait for the disk.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Broker, WallMillis) -> Result<T, Denied> + Send + 'static,
    ) -> Result<T, Failure> {
        let broker = Arc::clone(&self.broker);
        let done = tokio::task::spawn_blocking(move || work(&broker, SystemTime::now().into())).await;
        done.map_err(Failure::failed)?.map_err(|denied| match denied {
            Denied::Refused(refusal) => Failure::refused(format!("the context broker refuses: {refusal}")),
            other => Failure::failed(format!("the context broker: {other}")),
        })
    }
}

#[async_trait]
impl ContextService for EmbeddedContexts {
    async fn create(&self, id: ContextId, cluster: Cluster, absent: Vec<MemberName>) -> Result<(), Failure> {
        let settings = self.settings.clone();
        self.run(move |broker, now| {
            broker.create_as(id, cluster, settings, false, now)?;
            for member in absent {
                match broker.ask(id, Command::Remove { member }, now) {
                    // It was taken out the time before.
                    Ok(_) | Err(Denied::Refused(Refusal::UnknownMember(_))) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        })
        .await
    }

    async fn user_data(&self, id: ContextId, set: SetName, member: MemberName) -> Result<Vec<u8>, Failure> {
        let data = self
            .run(move |broker, _| broker.user_data(id, &set, Some(member)))
            .await?;
        serde_json::to_vec(&data).map_err(Failure::refused)
    }

    async fn reports(&self, id: ContextId) -> Result<BTreeMap<MemberName, ContextReport>, Failure> {
        let status = self.run(move |broker, now| broker.status(id, now)).await?;
        let report = |phase, reason: String| match phase {
            Phase::Expected => None,
            Phase::Reported | Phase::Due | Phase::Retrying => Some(ContextReport::Reported),
            Phase::Ok => Some(ContextReport::Configured),
            Phase::Missing | Phase::Failed => Some(ContextReport::Failed(reason)),
        };
        let members = status.members.into_iter();
        let members = members.filter_map(|member| Some((member.name, report(member.phase, member.reason)?)));
        Ok(members.collect())
    }

    async fn remove(&self, id: ContextId) -> Result<(), Failure> {
        self.run(move |broker, now| match broker.ask(id, Command::Destroy, now) {
            Ok(_) | Err(Denied::UnknownContext(_) | Denied::Refused(Refusal::Destroyed(_))) => Ok(()),
            Err(error) => Err(error),
        })
        .await
    }
}
