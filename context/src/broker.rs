//! All contexts of a broker, and the order in which each changes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use aerie_context_proto::{
    Answer, Cluster, Command, Contact, Context, ContextId, Creation, Fingerprint, InstanceHash, MemberName,
    Refusal, Retrieved, Secret, Settings, Status, Token, UserData, check_url,
};
use aerie_identity::files::private_dir;
use aerie_types::WallMillis;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::keys::{BrokerKeys, context_keys, is_token, random};
use crate::store::{MAX_TOMBSTONES, Store};
use crate::{Denied, Error};

/// Most contexts that live at a time. With the largest of each the broker's memory stays at some gigabytes; with
/// usual ones at some megabytes.
pub const MAX_CONTEXTS: usize = 256;

/// A new context, as its creator learns of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// What its members need; it holds the context's secret.
    pub contact: Contact,
    /// The members that are expected.
    pub members: Vec<MemberName>,
}

/// A broker: a folder with the database and the keys, and what it keeps in memory of them.
pub struct Broker {
    store: Store,
    keys: BrokerKeys,
    url: String,
    contexts: RwLock<BTreeMap<ContextId, Place>>,
}

#[derive(Clone)]
enum Place {
    Live(Arc<Entry>),
    /// It was destroyed. Its certificate still tells its agents from others.
    Ended(Fingerprint),
}

struct Entry {
    certificate: Vec<u8>,
    secret: Secret,
    context: RwLock<Context>,
    /// Held through all four steps of a change, so that changes follow each other.
    changing: Mutex<()>,
    /// Counts what members that wait should look at.
    news: watch::Sender<u64>,
}

impl Entry {
    fn new(certificate: Vec<u8>, secret: Secret, context: Context) -> Arc<Self> {
        Arc::new(Self {
            certificate,
            secret,
            context: RwLock::new(context),
            changing: Mutex::new(()),
            news: watch::Sender::new(0),
        })
    }

    fn read(&self) -> RwLockReadGuard<'_, Context> {
        self.context.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Context> {
        self.context.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Broker {
    /// Opens a folder, making it if it is not there. `url` is where members reach the broker.
    ///
    /// # Errors
    /// [`Error`]: another broker has the folder, or something in it is damaged.
    pub fn open(dir: &Path, url: &str) -> Result<Self, Error> {
        check_url(url).map_err(|source| Error::Url {
            url: url.to_owned(),
            source,
        })?;
        private_dir(dir)?;
        let store = Store::open(dir)?;
        let keys = BrokerKeys::open(dir, url)?;
        let mut contexts = BTreeMap::new();
        for kept in store.load()? {
            let id = kept.id;
            let place = match kept.live {
                Some(live) => {
                    let context =
                        Context::replay(live.records).map_err(|source| Error::Corrupt { id, source })?;
                    Place::Live(Entry::new(kept.certificate, live.secret, context))
                }
                None => Place::Ended(Fingerprint::of(&kept.certificate)),
            };
            contexts.insert(id, place);
        }
        Ok(Self {
            store,
            keys,
            url: url.trim_end_matches('/').to_owned(),
            contexts: RwLock::new(contexts),
        })
    }

    /// Where members reach the broker.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The fingerprint of its certificate.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.keys.certificate)
    }

    /// What a creator shows.
    #[must_use]
    pub fn token(&self) -> &Token {
        &self.keys.token
    }

    pub(crate) fn is_token(&self, shown: &str) -> bool {
        is_token(&self.keys.token, shown)
    }

    pub(crate) fn certificate(&self) -> (&[u8], &[u8]) {
        (&self.keys.certificate, &self.keys.key)
    }

    /// Creates a context. Blocks while it is written to the disk.
    ///
    /// # Errors
    /// [`Denied`]
    pub fn create(
        &self,
        cluster: Cluster,
        settings: Settings,
        open: bool,
        now: WallMillis,
    ) -> Result<Created, Denied> {
        self.create_as(ContextId(random()?), cluster, settings, open, now)
    }

    /// As [`Broker::create`], under an id that the creator chose before, so that it may ask again where the answer was
    /// lost. A context that is there by this id is the answer, however it was created. Blocks while it is written to
    /// the disk.
    ///
    /// # Errors
    /// [`Denied`]; [`Refusal::Destroyed`] if it was there and has been destroyed.
    pub fn create_as(
        &self,
        id: ContextId,
        cluster: Cluster,
        settings: Settings,
        open: bool,
        now: WallMillis,
    ) -> Result<Created, Denied> {
        let creation = Creation {
            id,
            cluster,
            settings,
            open,
        };
        let record = Context::create(creation, now)?;
        let context = Context::replay([record.clone()]).map_err(|source| Error::Corrupt { id, source })?;
        let (certificate, secret) = context_keys(&format!("aerie context {id}"))?;
        // Held until the context is in the map, so that the limit holds for those who come together.
        let mut contexts = self.contexts.write().unwrap_or_else(PoisonError::into_inner);
        match contexts.get(&id) {
            None => {}
            Some(Place::Ended(_)) => return Err(Refusal::Destroyed(id).into()),
            Some(Place::Live(entry)) => return Ok(self.created(id, entry, now)),
        }
        let live = contexts
            .values()
            .filter(|place| matches!(place, Place::Live(_)))
            .count();
        if live >= MAX_CONTEXTS {
            return Err(Denied::Full { limit: MAX_CONTEXTS });
        }
        self.store.create(id, &certificate, &secret, &record, now)?;
        let entry = Entry::new(certificate, secret, context);
        let created = self.created(id, &entry, now);
        contexts.insert(id, Place::Live(entry));
        tracing::info!(%id, "context created");
        Ok(created)
    }

    fn created(&self, id: ContextId, entry: &Entry, now: WallMillis) -> Created {
        let members = entry.read().status(now).members.into_iter();
        Created {
            contact: self.contact_of(id, entry),
            members: members.map(|member| member.name).collect(),
        }
    }

    fn contact_of(&self, id: ContextId, entry: &Entry) -> Contact {
        Contact {
            broker_url: self.url.clone(),
            context: id,
            fingerprint: self.fingerprint(),
            certificate: entry.certificate.clone(),
            secret: entry.secret.clone(),
        }
    }

    /// What a member of a context needs.
    ///
    /// # Errors
    /// [`Denied`]
    pub fn contact(&self, id: ContextId) -> Result<Contact, Denied> {
        Ok(self.contact_of(id, &*self.entry(id)?))
    }

    /// The user-data of a machine of a set.
    ///
    /// # Errors
    /// [`Denied`]; [`Refusal::UnknownSet`] for a set that the context lacks.
    pub fn user_data(
        &self,
        id: ContextId,
        set: &aerie_context_proto::SetName,
        member: Option<MemberName>,
    ) -> Result<UserData, Denied> {
        let entry = self.entry(id)?;
        let mut cluster = entry.read().cluster().clone();
        let mut found = false;
        for workspace in &mut cluster.workspaces {
            workspace.active = workspace.name == *set;
            found |= workspace.active;
            // The broker brings the blobs; user-data is small.
            for data in &mut workspace.requires.data {
                data.content = None;
            }
        }
        if !found {
            return Err(Refusal::UnknownSet(set.clone()).into());
        }
        Ok(UserData {
            contact: self.contact_of(id, &entry),
            member,
            cluster,
        })
    }

    /// Changes a context, in the four steps that the crate's documentation names. Blocks while the disk is written;
    /// call it on a thread that may.
    ///
    /// # Errors
    /// [`Denied`]; nothing has changed then, unless it is [`Error::Defect`].
    pub fn ask(&self, id: ContextId, command: Command, now: WallMillis) -> Result<Answer, Denied> {
        let entry = self.entry(id)?;
        let changing = entry.change();
        let decision = entry.read().decide(command, now)?;
        let Some(record) = decision.record else {
            return Ok(decision.answer);
        };
        let ends = matches!(record, aerie_context_proto::Record::Destroyed { .. });
        let compact = if ends {
            self.store.destroy(id, now)?;
            false
        } else {
            self.store.append(id, &record)?
        };
        let committed = entry.write().commit(record);
        let effects = committed.map_err(|why| Error::Defect { id, why })?;
        if effects.destroyed {
            let ended = Place::Ended(Fingerprint::of(&entry.certificate));
            let mut contexts = self.contexts.write().unwrap_or_else(PoisonError::into_inner);
            contexts.insert(id, ended);
            forget_old(&mut contexts);
            tracing::info!(%id, "context destroyed");
        }
        if effects.published || effects.destroyed {
            entry.news.send_modify(|count| *count += 1);
        }
        if compact {
            let snapshot = entry.read().snapshot();
            if let Err(error) = self.store.compact(id, &snapshot) {
                // The record itself is kept; the next time will do.
                tracing::error!(%id, %error, "a long journal was not shortened");
            }
        }
        drop(changing);
        Ok(decision.answer)
    }

    /// How far a context is.
    ///
    /// # Errors
    /// [`Denied`]
    pub fn status(&self, id: ContextId, now: WallMillis) -> Result<Status, Denied> {
        Ok(self.entry(id)?.read().status(now))
    }

    /// How far all contexts are, without their members.
    #[must_use]
    pub fn list(&self, now: WallMillis) -> Vec<Status> {
        let brief = |entry: Arc<Entry>| Status {
            members: Vec::new(),
            ..entry.read().status(now)
        };
        self.entries()
            .into_iter()
            .map(|(_, entry)| brief(entry))
            .collect()
    }

    /// What a member has not been given yet, as soon as there is some; after `wait` nothing.
    ///
    /// # Errors
    /// [`Denied`]
    pub async fn retrieve(
        &self,
        id: ContextId,
        member: &MemberName,
        instance: InstanceHash,
        after: u32,
        wait: Duration,
        now: WallMillis,
    ) -> Result<Retrieved, Denied> {
        let until = Instant::now() + wait;
        let entry = self.entry(id)?;
        entry.write().touch(member, instance, now);
        // Subscribed before the first look, so that no news falls between.
        let mut news = entry.news.subscribe();
        loop {
            let found = entry.read().retrieve(member, instance, after)?;
            if found != Retrieved::Wait {
                return Ok(found);
            }
            match tokio::time::timeout_at(until, news.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return Ok(Retrieved::Wait),
            }
        }
    }

    /// Fails whom a deadline has passed for. Blocks while the disk is written. Says when to look next.
    ///
    /// # Errors
    /// [`Denied::Failed`] of the first context that could not be written; the others were looked at.
    pub fn tick(&self, now: WallMillis) -> Result<Option<WallMillis>, Denied> {
        let mut next = None;
        let mut failure = None;
        for (id, entry) in self.entries() {
            let deadline = entry.read().next_deadline();
            let deadline = match deadline {
                Some(deadline) if deadline <= now => {
                    match self.ask(id, Command::Tick, now) {
                        Ok(_) | Err(Denied::Refused(_)) => {}
                        Err(error) => failure = failure.or(Some(error)),
                    }
                    entry.read().next_deadline()
                }
                other => other,
            };
            next = [next, deadline].into_iter().flatten().min();
        }
        match failure {
            Some(failure) => Err(failure),
            None => Ok(next),
        }
    }

    /// Whether a certificate is the context's, of one that lives or did.
    pub(crate) fn is_members(&self, id: ContextId, shown: Fingerprint) -> bool {
        match self.place(id) {
            Some(Place::Live(entry)) => Fingerprint::of(&entry.certificate) == shown,
            Some(Place::Ended(fingerprint)) => fingerprint == shown,
            None => false,
        }
    }

    fn place(&self, id: ContextId) -> Option<Place> {
        let contexts = self.contexts.read().unwrap_or_else(PoisonError::into_inner);
        contexts.get(&id).cloned()
    }

    fn entry(&self, id: ContextId) -> Result<Arc<Entry>, Denied> {
        match self.place(id) {
            Some(Place::Live(entry)) => Ok(entry),
            Some(Place::Ended(_)) => Err(Refusal::Destroyed(id).into()),
            None => Err(Denied::UnknownContext(id)),
        }
    }

    fn entries(&self) -> Vec<(ContextId, Arc<Entry>)> {
        let contexts = self.contexts.read().unwrap_or_else(PoisonError::into_inner);
        let live = contexts.iter().filter_map(|(id, place)| match place {
            Place::Live(entry) => Some((*id, Arc::clone(entry))),
            Place::Ended(_) => None,
        });
        live.collect()
    }
}

/// Keeps no more destroyed contexts in memory than in the database.
fn forget_old(contexts: &mut BTreeMap<ContextId, Place>) {
    let is_ended = |(_, place): &(&ContextId, &Place)| matches!(place, Place::Ended(_));
    if contexts.iter().filter(is_ended).count() > MAX_TOMBSTONES
        && let Some(id) = contexts.iter().find(is_ended).map(|(id, _)| *id)
    {
        contexts.remove(&id);
    }
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}
