//! What the agent does, from the user-data to the end of its context.
//!
//! ```text
//!  user-data ──► register ──► wait for news ──► write files ──► run phases ──► report ──┐
//!                                  ▲                                                     │
//!                                  └── next version, or the same again after a failure ◄─┘
//! ```
//!
//! Everything is asked until it is answered; what the broker refuses for good ends the agent. What has been done is
//! kept on the disk before the next thing begins, so that an agent that is killed goes on where it was: as the same
//! member, with the report that it owes, or with the version that it was at, from its first phase.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use aerie_context_client::{Client, Error as BrokerError};
use aerie_context_proto::wire::{ExitAnswer, MAX_WAIT_SECS, Report};
use aerie_context_proto::{ContextId, Exit, MemberName, Provided, UserData, View};

use crate::error::Error;
use crate::identity::{self, Overrides};
use crate::phases::{Phases, Run, state_dir};
use crate::render;
use crate::source::{self, Sources};
use crate::state::State;

/// The first wait after something failed; each further one is twice as long, up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LAST_PAUSE: Duration = Duration::from_secs(15);

/// How the agent runs.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) sources: Sources,
    pub(crate) overrides: Overrides,
    pub(crate) phases: Phases,
    /// Folder of the data blobs that this machine provides.
    pub(crate) data: PathBuf,
    /// How long the network may take to come up.
    pub(crate) network: Duration,
    /// End after the first version.
    pub(crate) once: bool,
}

/// How a member's time in its context ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// It was to run once, and all is well.
    Configured,
    /// The context was destroyed.
    Destroyed,
    /// The member was taken out, or left.
    Removed,
}

/// A member at work.
struct Agent<'a> {
    options: &'a Options,
    client: Client,
    context: ContextId,
    state: State,
    member: MemberName,
    provided: Provided,
}

/// Runs until the context ends, or once.
pub(crate) fn run(options: &Options) -> Result<End, Error> {
    let mut agent = match Agent::join(options)? {
        Ok(agent) => agent,
        Err(end) => return Ok(end),
    };
    loop {
        if let Some(end) = agent.turn()? {
            return Ok(end);
        }
    }
}

/// Leaves the context.
pub(crate) fn leave(options: &Options) -> Result<End, Error> {
    let data = user_data(options)?;
    let client = Client::member(&data.contact)?;
    let state = State::open(&state_dir(&options.phases.root), data.contact.context)?;
    let Some(member) = &state.kept.member else {
        return Ok(End::Removed);
    };
    let left = patiently(|| client.leave(data.contact.context, &state.instance, member))?;
    Ok(left.err().unwrap_or(End::Removed))
}

fn user_data(options: &Options) -> Result<UserData, Error> {
    let until = Instant::now() + options.network;
    loop {
        match source::find(&options.sources) {
            // The network may not be up yet, and with it the metadata service.
            Err(Error::NoUserData(_)) if Instant::now() < until => std::thread::sleep(FIRST_PAUSE * 4),
            found => return found,
        }
    }
}

impl<'a> Agent<'a> {
    fn join(options: &'a Options) -> Result<Result<Self, End>, Error> {
        let data = user_data(options)?;
        let context = data.contact.context;
        let set = data
            .active()
            .ok_or_else(|| Error::NoActiveSet(data.contact.broker_url.clone()))?;
        let client = Client::member(&data.contact)?;
        let mut state = State::open(&state_dir(&options.phases.root), context)?;
        let provided = identity::gather(
            set,
            &options.overrides,
            &options.phases.root,
            &options.data,
            options.network,
        )?;
        let report = Report {
            member: data.member.clone(),
            set: set.name.clone(),
            provided: provided.clone(),
        };
        let member = match patiently(|| client.register(context, &state.instance, &report))? {
            Ok(member) => member,
            Err(end) => return Ok(Err(end)),
        };
        say(&format!("this is {member} of context {context}"));
        state.kept.member = Some(member.clone());
        state.save()?;
        Ok(Ok(Self {
            options,
            client,
            context,
            state,
            member,
            provided,
        }))
    }

    /// Sends what is owed, or waits for news and acts on it.
    fn turn(&mut self) -> Result<Option<End>, Error> {
        if let Some(exit) = self.state.kept.unsent.clone() {
            return self.report(&exit);
        }
        let wait = Duration::from_secs(MAX_WAIT_SECS);
        let after = self.state.kept.version;
        let asked = patiently(|| {
            self.client
                .retrieve(self.context, &self.state.instance, &self.member, after, wait)
        })?;
        match asked {
            Ok(Some(view)) => self.apply(&view),
            Ok(None) => Ok(None),
            Err(end) => Ok(Some(end)),
        }
    }

    fn apply(&mut self, view: &View) -> Result<Option<End>, Error> {
        let (version, attempt) = self.state.kept.trying;
        let attempt = if version == view.version { attempt } else { 1 };
        let dir = render::write(&state_dir(&self.options.phases.root), view)?;
        let run = Run {
            view,
            dir: &dir,
            own: &self.provided.identities,
            attempt,
        };
        if !view.missing.is_empty() {
            let message = format!(
                "version {} lacks what this machine requires: {}",
                view.version,
                view.missing.join(", ")
            );
            self.options.phases.run_problem(&run, &message);
            self.state.kept.version = view.version;
            self.state.save()?;
            return if self.options.once {
                Err(Error::Failed(message))
            } else {
                Ok(None)
            };
        }
        say(&format!(
            "configuring by version {}, attempt {attempt}",
            view.version
        ));
        let exit = self.options.phases.run(&run);
        self.state.kept.trying = (view.version, attempt);
        self.state.kept.unsent = Some(exit);
        self.state.save()?;
        Ok(None)
    }

    fn report(&mut self, exit: &Exit) -> Result<Option<End>, Error> {
        let asked = patiently(|| {
            self.client
                .exit(self.context, &self.state.instance, &self.member, exit)
        });
        let answer = match asked {
            Ok(Ok(answer)) => answer,
            Ok(Err(end)) => return Ok(Some(end)),
            // A broker that was restored from a backup remembers otherwise. This report will never be taken; that of
            // the next attempt may be.
            Err(Error::Broker(BrokerError::Refused {
                status: 409, message, ..
            })) => {
                say(&format!(
                    "the report of attempt {} is refused: {message}",
                    exit.attempt
                ));
                ExitAnswer::Retry {
                    after_millis: u64::try_from(LAST_PAUSE.as_millis()).unwrap_or(u64::MAX),
                }
            }
            Err(error) => return Err(error),
        };
        self.state.kept.unsent = None;
        let mut end = Ok(None);
        match answer {
            ExitAnswer::Accepted => {
                say(&format!("configured by version {}", exit.version));
                self.state.kept.version = exit.version;
                if self.options.once {
                    end = Ok(Some(End::Configured));
                }
            }
            ExitAnswer::GivenUp => {
                self.state.kept.version = exit.version;
                if self.options.once {
                    end = Err(Error::Failed(exit.message.clone()));
                }
            }
            // The next turn gets what is newer.
            ExitAnswer::Superseded => {}
            ExitAnswer::Retry { after_millis } => {
                self.state.kept.trying = (exit.version, exit.attempt + 1);
                self.state.save()?;
                std::thread::sleep(Duration::from_millis(after_millis));
                return Ok(None);
            }
        }
        self.state.save()?;
        end
    }
}

/// Asks until there is an answer.
fn patiently<T>(mut ask: impl FnMut() -> Result<T, BrokerError>) -> Result<Result<T, End>, Error> {
    let mut pause = FIRST_PAUSE;
    let mut said = String::new();
    loop {
        let error = match ask() {
            Ok(answer) => return Ok(Ok(answer)),
            Err(error) => error,
        };
        if error.is_destroyed() {
            return Ok(Err(End::Destroyed));
        }
        let waits = match &error {
            BrokerError::Refused { code, .. } if code == "unknown-member" => return Ok(Err(End::Removed)),
            // The creator may be about to expect one more.
            BrokerError::Refused { code, .. } if code == "no-place" => true,
            error => error.is_retryable(),
        };
        if !waits {
            return Err(error.into());
        }
        let text = error.to_string();
        if text != said {
            say(&format!("{text}; trying again"));
            said = text;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

fn say(text: &str) {
    eprintln!("aerie-context-agent: {text}");
}
