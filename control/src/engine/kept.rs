//! How what an operator said outlives the process: it is written into the shared memory as soon as it
//! is said, and said again to the process that follows.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use culvert_api::Happening;
use culvert_shm::{ControlView, SaveError, Saved, Shelf, TableFull};

use super::Engine;
use super::reload::Report;
use crate::clock;
use crate::config::{Config, Connection};
use crate::log::Scope;
use crate::said::{Said, Topic, Unreadable};
use crate::starts::Rest;

const SHELF: Shelf = Shelf::Operator;

/// Why something said will be forgotten with this process.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeepError {
    #[error(transparent)]
    Slots(#[from] TableFull),
    #[error(transparent)]
    Room(#[from] SaveError),
    #[error(transparent)]
    Record(#[from] Unreadable),
}

/// Names of connections and secrets.
#[derive(Default)]
struct Names {
    connections: HashSet<String>,
    secrets: HashSet<String>,
}

/// Where everything that was said is kept.
#[derive(Default)]
pub(super) struct Keeper {
    slots: HashMap<Topic, u32>,
    /// What was said while there was no memory to keep it in.
    pending: BTreeMap<Topic, Said>,
    /// What the file has: unloading anything else takes only back what was said.
    of_file: Names,
    /// Whether a reload has taken back what was said of connections and secrets to a process before.
    reloaded: bool,
    /// The gateway stops in good order: nothing is kept any more.
    ended: bool,
}

impl Keeper {
    /// A file was read.
    pub(super) fn file_read(&mut self, config: &Config) {
        self.of_file = Names {
            connections: config.connections.keys().cloned().collect(),
            secrets: config.secrets.names().map(ToOwned::to_owned).collect(),
        };
    }

    fn keep(&mut self, view: Option<&mut ControlView>, said: Said) -> Result<(), KeepError> {
        if self.ended {
            return Ok(());
        }
        let topic = said.topic();
        let Some(view) = view else {
            self.pending.insert(topic, said);
            return Ok(());
        };
        let octets = said.encode()?;
        let slot = match self.slots.get(&topic) {
            Some(slot) => *slot,
            None => *self.slots.entry(topic).or_insert(view.take_saved_slot(SHELF)?),
        };
        Ok(view.save(SHELF, slot, &octets)?)
    }

    fn forget(&mut self, view: Option<&mut ControlView>, topic: &Topic) {
        self.pending.remove(topic);
        if let (Some(view), Some(slot)) = (view, self.slots.remove(topic)) {
            view.free_saved_slot(SHELF, slot);
        }
    }

    /// Takes a record of an earlier process over; `None` if it was taken back meanwhile.
    fn take_over(&mut self, view: &mut ControlView, slot: u32, saved: &Saved) -> Option<Said> {
        let Saved::Octets(octets) = saved else {
            tracing::error!("something that an operator said is lost: its record is damaged");
            view.free_saved_slot(SHELF, slot);
            return None;
        };
        let said = match Said::decode(octets) {
            Ok(said) => said,
            Err(error) => {
                tracing::error!(%error, "something that an operator said is lost");
                view.free_saved_slot(SHELF, slot);
                return None;
            }
        };
        let topic = said.topic();
        if topic.is_configuration() && self.reloaded {
            view.free_saved_slot(SHELF, slot);
            return None;
        }
        let is_newest = !self.pending.contains_key(&topic);
        self.slots.insert(topic, slot);
        is_newest.then_some(said)
    }
}

impl Engine {
    /// Keeps a thing said. One that finds no room is in force all the same.
    pub(super) fn keep(&mut self, said: Said) -> Result<(), KeepError> {
        self.keeper.keep(self.services.forwarding.view_mut(), said)
    }

    /// Takes a thing said back.
    pub(super) fn forget(&mut self, topic: &Topic) {
        self.keeper.forget(self.services.forwarding.view_mut(), topic);
    }

    /// A connection or secret was unloaded: what the file has is kept as gone.
    pub(super) fn keep_unloaded(&mut self, gone: Said) -> Result<(), KeepError> {
        let topic = gone.topic();
        let of_file = match &topic {
            Topic::Connection(name) => self.keeper.of_file.connections.contains(name),
            Topic::Secret(name) => self.keeper.of_file.secrets.contains(name),
            Topic::Rests(_) | Topic::Log(_) => false,
        };
        if of_file {
            return self.keep(gone);
        }
        self.forget(&topic);
        Ok(())
    }

    /// A file was read again: it says all about connections and secrets.
    pub(super) fn forget_loaded(&mut self, config: &Config) {
        self.keeper.file_read(config);
        self.keeper.reloaded |= self.services.forwarding.view().is_none();
        let topics = self.keeper.slots.keys().chain(self.keeper.pending.keys());
        let topics: Vec<Topic> = topics.filter(|topic| topic.is_configuration()).cloned().collect();
        topics.iter().for_each(|topic| self.forget(topic));
    }

    /// The gateway stops in good order, and what was said ends with it.
    pub(super) fn forget_said(&mut self) {
        let topics: Vec<Topic> = self.keeper.slots.keys().cloned().collect();
        topics.iter().for_each(|topic| self.forget(topic));
        self.keeper.ended = true;
    }

    /// Keeps what has changed of the children that do not stand. Called before anything is sent.
    pub(super) fn keep_rests(&mut self) {
        for (connection, children) in self.starts.changed_rests() {
            if children.is_empty() {
                self.forget(&Topic::Rests(connection));
                continue;
            }
            let said = Said::Rests { connection: connection.clone(), children };
            if let Err(error) = self.keep(said) {
                tracing::error!(connection, %error, "what was terminated will be forgotten");
            }
        }
    }

    /// Takes over what was said to an earlier process, but for its children's rests, which are given
    /// to [`Engine::restore_rests`] when it is known what stands. Then keeps what was said to this one
    /// before it had the memory.
    pub(super) fn restore_said(&mut self) -> Vec<(String, Vec<(String, Rest)>)> {
        let Some(view) = self.services.forwarding.view_mut() else { return Vec::new() };
        let saved: Vec<(u32, Saved)> = view.saved(SHELF).collect();
        let said =
            saved.iter().filter_map(|(slot, saved)| self.keeper.take_over(view, *slot, saved));
        let (mut rests, mut configuration) = (Vec::new(), Vec::new());
        for said in said.collect::<Vec<_>>() {
            match said {
                Said::Rests { connection, children } => rests.push((connection, children)),
                Said::Log { scope, level } => self.restore_log(scope, &level),
                Said::Connection { .. } | Said::Secret { .. } => configuration.push(said),
            }
        }
        self.restore_configuration(configuration);
        for (_, said) in std::mem::take(&mut self.keeper.pending) {
            if let Err(error) = self.keep(said) {
                tracing::error!(%error, "what an operator said will be forgotten");
            }
        }
        rests
    }

    fn restore_log(&mut self, scope: Option<Scope>, level: &str) {
        let set = match scope {
            Some(scope) => self.log.set_own(scope, level),
            None => self.log.set_all(level),
        };
        if let Err(error) = set {
            tracing::error!(%error, "a level of the log is not restored");
        }
    }

    /// Loads and unloads connections and secrets as it was said.
    fn restore_configuration(&mut self, said: Vec<Said>) {
        if said.is_empty() {
            return;
        }
        let count = said.len();
        let mut texts = Vec::new();
        let mut connections = self.services.config.connections.clone();
        let mut secrets = (*self.services.config.secrets).clone();
        for said in said {
            match said {
                Said::Connection { name, text: None } => drop(connections.remove(&name)),
                Said::Connection { text: Some(text), .. } => texts.push(text),
                Said::Secret { name, key: None } => secrets.remove(&name),
                Said::Secret { name, key: Some(key) } => {
                    if let Err(error) = secrets.restore(&name, &key.owners, &key.secret) {
                        tracing::error!(secret = name, %error, "a secret is not restored");
                    }
                }
                Said::Rests { .. } | Said::Log { .. } => {}
            }
        }
        self.services.config.secrets = secrets.clone().into();
        connections.extend(self.checked(texts));
        self.apply(connections, secrets.into(), &mut Report::default());
        tracing::info!("{count} connections and secrets are loaded or unloaded as before");
    }

    /// The connections of these texts. One that fits no more, since the file was changed meanwhile, is
    /// told and left out.
    fn checked(&mut self, texts: Vec<String>) -> BTreeMap<String, Connection> {
        let name = Path::new("loaded");
        if let Ok(fragment) = self.services.config.fragment(name, texts.concat()) {
            return fragment.connections;
        }
        let mut connections = BTreeMap::new();
        for text in texts {
            match self.services.config.fragment(name, text) {
                Ok(fragment) => connections.extend(fragment.connections),
                Err(error) => {
                    let reason = error.to_string();
                    self.note(None, None, Happening::ConfigurationRefused { reason });
                }
            }
        }
        connections
    }

    /// Lets children rest as they did.
    pub(super) fn restore_rests(&mut self, rests: Vec<(String, Vec<(String, Rest)>)>) {
        let now = clock::now();
        for (connection, children) in rests {
            if self.services.config.connection(&connection).is_none() {
                self.forget(&Topic::Rests(connection));
                continue;
            }
            for (child, rest) in children {
                self.starts.restore(&connection, &child, rest, now);
            }
        }
    }
}
