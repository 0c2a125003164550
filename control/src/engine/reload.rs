//! Another configuration while the gateway runs: only what differs is touched.
//!
//! What is new can be used at once, and is set up if it is to stand; what is gone is deleted. SAs of
//! a connection that changed stay and take the change up when they are renewed, as with swanctl,
//! unless the peer's identity does not fit any more or there is no key for it.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use culvert_api::{Code, Happening, Outcome, Refusal, Unloaded};
use culvert_dataplane_config::{ConfigError, Dataplane, Fixed, Restart, Source};
use culvert_ike::{IkeSaId, IkeSnapshot, Instant, Secret};

use super::Engine;
use super::commands::about;
use super::kept::KeepError;
use crate::clock;
use crate::config::{Config, Connection, Secrets};
use crate::said::{LoadedKey, Said};

/// What a change did, for people and in numbers.
#[derive(Default)]
pub(super) struct Report {
    outcomes: Vec<Outcome>,
    /// How many of them are warnings.
    warnings: usize,
    added: u64,
    removed: u64,
    changed: u64,
    secrets: u64,
}

impl Report {
    fn say(&mut self, connection: &str, message: String) {
        let connection = connection.to_owned();
        self.outcomes.push(Outcome { message, connection, ..Outcome::default() });
    }

    fn kept(&mut self, kept: Result<(), KeepError>) {
        if let Err(error) = kept {
            let reason = "a restarted control process will know nothing of this";
            self.warn(vec![format!("{reason}: {error}")]);
        }
    }

    fn warn(&mut self, warnings: Vec<String>) {
        self.warnings += warnings.len();
        warnings.into_iter().for_each(|warning| self.say("", format!("warning: {warning}")));
    }
}

impl Engine {
    /// The configuration file.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.services.config.path.clone()
    }

    /// Applies a file that was read again.
    ///
    /// # Errors
    /// It is wrong, or changes what needs the control process to be started anew: nothing is applied.
    /// What only the dataplane reads when it starts is told, and takes effect then.
    pub fn reload(
        &mut self,
        read: Result<(Source, Config), ConfigError>,
    ) -> Result<Vec<Outcome>, Refusal> {
        let (source, new) = read.map_err(|error| self.refused(error.to_string()))?;
        let fixed = self.services.config.fixed_differences(&new);
        if fixed.iter().any(|fixed| fixed.restart != Restart::Dataplane) {
            let lines = said_of_fixed(&source, &fixed, "nothing was applied");
            return Err(self.refused(lines.join("\n")));
        }
        self.forget_loaded(&new);
        let mut report = Report::default();
        for message in said_of_fixed(&source, &fixed, "the rest is applied") {
            report.say("", message);
        }
        let Config { dataplane, connections, secrets, limits, warnings, .. } = new;
        report.warn(warnings);
        if limits != self.services.config.limits {
            report.say("", "limits of half-open IKE SAs changed".to_owned());
            self.endpoint.set_limits(limits.clone());
            self.services.config.limits = limits;
        }
        for (setting, who) in taken_up(&self.services.config.dataplane, &dataplane) {
            report.say("", format!("[dataplane] {setting} changed; new {who} take it up"));
        }
        self.services.config.dataplane = dataplane;
        self.apply(connections, secrets, &mut report);
        Ok(self.told(report))
    }

    /// Adds connections and secrets, or changes those of the same name.
    ///
    /// # Errors
    /// The text is wrong: nothing is applied.
    pub fn load(&mut self, name: &str, text: String) -> Result<Vec<Outcome>, Refusal> {
        let config = &self.services.config;
        let read = config.fragment(Path::new(name), text);
        let fragment = read.map_err(|error| self.refused(error.to_string()))?;
        let mut report = Report::default();
        report.warn(fragment.warnings);
        let config = &self.services.config;
        let mut connections = config.connections.clone();
        connections.extend(fragment.connections);
        let secrets = config.secrets.with(&fragment.secrets);
        let sections = fragment.sections.into_iter();
        let said = sections.map(|(name, text)| Said::Connection { name, text: Some(text) });
        let keys = fragment.owners.into_iter().filter_map(|(name, owners)| {
            let secret = fragment.secrets.text(&name)?;
            Some(Said::Secret { name, key: Some(LoadedKey { owners, secret }) })
        });
        for said in said.chain(keys) {
            let kept = self.keep(said);
            report.kept(kept);
        }
        self.apply(connections, secrets.into(), &mut report);
        Ok(self.told(report))
    }

    /// Removes a connection or a secret.
    ///
    /// # Errors
    /// There is no such, or a connection needs the secret.
    pub fn unload(&mut self, what: &Unloaded) -> Result<Vec<Outcome>, Refusal> {
        let config = &self.services.config;
        let mut connections = config.connections.clone();
        let mut secrets = std::sync::Arc::clone(&config.secrets);
        let missing = |kind: &str, name: &str| {
            Refusal::new(Code::NotFound, format!("no {kind} is called {name:?}"))
        };
        let gone = match what {
            Unloaded::Connection(name) => {
                connections.remove(name).ok_or_else(|| missing("connection", name))?;
                Said::Connection { name: name.clone(), text: None }
            }
            Unloaded::Secret(name) => {
                let left = secrets.without(name).ok_or_else(|| missing("secret", name))?;
                let uncovered = connections.values().find(|connection| {
                    !left.covers(&connection.ike.local_id, &connection.ike.remote_id)
                });
                if let Some(Connection { ike, .. }) = uncovered {
                    let reason = format!(
                        "connection {} has no other key than {name}: unload it first",
                        ike.name
                    );
                    return Err(Refusal::new(Code::Failed, reason));
                }
                secrets = left.into();
                Said::Secret { name: name.clone(), key: None }
            }
        };
        let mut report = Report::default();
        report.kept(self.keep_unloaded(gone));
        self.apply(connections, secrets, &mut report);
        Ok(self.told(report))
    }

    fn refused(&mut self, reason: String) -> Refusal {
        let happening = Happening::ConfigurationRefused { reason: reason.clone() };
        self.note(None, None, happening);
        Refusal::new(Code::Failed, reason)
    }

    /// Tells what a change did.
    fn told(&mut self, mut report: Report) -> Vec<Outcome> {
        if report.outcomes.len() == report.warnings {
            report.say("", "nothing changed".to_owned());
        }
        let Report { outcomes, added, removed, changed, secrets, .. } = report;
        let happening = Happening::Reconfigured { added, removed, changed, secrets };
        self.note(None, None, happening);
        outcomes
    }

    /// Puts connections and secrets in the place of the present ones.
    pub(super) fn apply(
        &mut self,
        connections: BTreeMap<String, Connection>,
        secrets: std::sync::Arc<Secrets>,
        report: &mut Report,
    ) {
        let now = clock::now();
        compare_secrets(&self.services.config.secrets, &secrets, report);
        let config = &mut self.services.config;
        let old = std::mem::replace(&mut config.connections, connections);
        let old_secrets = std::mem::replace(&mut config.secrets, secrets);
        let mut sas: HashMap<String, Vec<IkeSnapshot>> = HashMap::new();
        for sa in self.endpoint.sas() {
            sas.entry(sa.connection.clone()).or_default().push(sa);
        }
        for (name, before) in &old {
            let of_connection = sas.get(name).map(Vec::as_slice).unwrap_or_default();
            match self.services.config.connections.get(name).cloned() {
                None => self.connection_removed(now, name, of_connection, report),
                Some(after) if after == *before => {}
                Some(after) => {
                    self.connection_changed(now, before, &after, of_connection, report);
                }
            }
        }
        for name in self.services.config.connections.keys().filter(|name| !old.contains_key(*name))
        {
            report.added += 1;
            report.say(name, format!("connection {name} added"));
        }
        if report.secrets > 0 {
            self.end_without_key(now, sas.values().flatten(), report);
        }
        let config = &self.services.config;
        self.starts.configure(config.connections.values(), now);
        for (name, after) in &config.connections {
            let ike = &after.ike;
            let key_differs = report.secrets > 0
                && self.starts.has_given_up(name)
                && ike.remote_id.exact().is_some_and(|remote| {
                    let key = |of: &Secrets| of.find(&ike.local_id, remote);
                    let [before, after] = [key(&old_secrets), key(&config.secrets)];
                    before.as_ref().map(Secret::expose) != after.as_ref().map(Secret::expose)
                });
            if key_differs || old.get(name).is_some_and(|before| before != after) {
                self.starts.renew(name, now);
            }
        }
        self.flush();
    }

    fn connection_removed(
        &mut self,
        now: Instant,
        name: &str,
        sas: &[IkeSnapshot],
        report: &mut Report,
    ) {
        report.removed += 1;
        self.known.ends.remove(name);
        // Before the end of its SAs is told, which would begin them anew.
        self.starts.hold(name, None);
        let ended = sas.iter().filter(|sa| self.end(now, sa)).count();
        let message = match ended {
            0 => format!("connection {name} removed"),
            _ => format!("connection {name} removed; {ended} IKE SAs of it are being deleted"),
        };
        report.say(name, message);
    }

    fn connection_changed(
        &mut self,
        now: Instant,
        before: &Connection,
        after: &Connection,
        sas: &[IkeSnapshot],
        report: &mut Report,
    ) {
        report.changed += 1;
        let name = &after.ike.name;
        let fits = |sa: &IkeSnapshot| {
            sa.local_id.as_ref().is_none_or(|id| id.same_as(&after.ike.local_id))
                && sa.remote_id.as_ref().is_none_or(|id| after.ike.remote_id.matches(id))
        };
        let (stay, go): (Vec<&IkeSnapshot>, Vec<&IkeSnapshot>) =
            sas.iter().partition(|sa| fits(sa));
        for sa in &go {
            self.end(now, sa);
        }
        self.endpoint.reconfigure(now, &after.ike, &mut self.services);
        let mut message = format!("connection {name} changed");
        if !stay.is_empty() {
            message +=
                &format!("; {} IKE SAs stay and take it up when they are renewed", stay.len());
        }
        if !go.is_empty() {
            let count = go.len();
            message +=
                &format!("; {count} IKE SAs are being deleted: their identities fit no more");
        }
        report.say(name, message);
        let is_gone = |child: &str| after.ike.children.iter().all(|other| other.name != child);
        for child in before.ike.children.iter().filter(|child| is_gone(&child.name)) {
            self.starts.hold(name, Some(&child.name));
            let pairs = stay.iter().flat_map(|sa| &sa.children);
            let ids = pairs.filter(|pair| pair.name == child.name).map(|pair| pair.id);
            for id in ids.collect::<Vec<_>>() {
                // It may be on its way out already.
                let _ = self.endpoint.terminate_child(now, id, &mut self.services);
            }
            report.say(name, format!("child {} of {name} removed, with its SAs", child.name));
        }
    }

    /// Ends what has no key any more.
    fn end_without_key<'a>(
        &mut self,
        now: Instant,
        sas: impl Iterator<Item = &'a IkeSnapshot>,
        report: &mut Report,
    ) {
        let secrets = std::sync::Arc::clone(&self.services.config.secrets);
        let holders = secrets.holders();
        for sa in sas {
            let (Some(local), Some(remote)) = (&sa.local_id, &sa.remote_id) else { continue };
            if !holders.have_key(local, remote) && self.end(now, sa) {
                let message = format!(
                    "IKE SA {} of {} is being deleted: there is no key for {remote} any more",
                    sa.id, sa.connection
                );
                report.outcomes.push(about(sa, None, message));
            }
        }
    }

    /// Ends what was restored and has no key any more, since the file was changed meanwhile.
    pub(super) fn end_restored_without_key(&mut self, now: Instant, restored: &[IkeSaId]) {
        let restored = restored.iter().filter_map(|ike| self.endpoint.sa(*ike));
        let restored: Vec<IkeSnapshot> = restored.collect();
        let mut report = Report::default();
        self.end_without_key(now, restored.iter(), &mut report);
        report.outcomes.iter().for_each(|ended| tracing::warn!("{}", ended.message));
    }

    /// Deletes an IKE SA; whether it was there.
    fn end(&mut self, now: Instant, sa: &IkeSnapshot) -> bool {
        self.endpoint.terminate(now, sa.id, &mut self.services).is_ok()
    }
}

/// The settings of the dataplane in which these differ and for which nobody has to be restarted
/// ([`Dataplane::differences`]), each with who takes it up.
fn taken_up(
    old: &Dataplane,
    new: &Dataplane,
) -> impl Iterator<Item = (&'static str, &'static str)> {
    let congestion = ("tcp_congestion", "TCP connections");
    let window = ("replay_window", "CHILD SAs");
    let all = [
        (congestion, old.tcp_congestion != new.tcp_congestion),
        (window, old.replay_window != new.replay_window),
    ];
    all.into_iter().filter(|(_, differs)| *differs).map(|(setting, _)| setting)
}

/// What is to be done about each setting that a reload cannot change, with the line it stands on.
fn said_of_fixed(source: &Source, fixed: &[Fixed], outcome: &str) -> Vec<String> {
    let names: Vec<&str> = fixed.iter().map(|fixed| fixed.name).collect();
    let lines = source.lines_of(&names);
    let say = |(Fixed { name, restart }, line): (&Fixed, usize)| {
        let (units, sas) = match restart {
            Restart::Dataplane => ("culvert-dataplane", "SAs go on"),
            Restart::Control => ("culvert-control", "SAs go on"),
            Restart::Both => ("culvert-control culvert-dataplane", "all SAs end"),
        };
        let file = source.path().display();
        format!(
            "{file}:{line}: {name} takes effect with systemctl restart {units} ({sas}); {outcome}"
        )
    };
    fixed.iter().zip(lines).map(say).collect()
}

fn compare_secrets(old: &Secrets, new: &Secrets, report: &mut Report) {
    let mut differ = Vec::new();
    for (name, differs) in old.compared(new) {
        match differs {
            None => differ.push(format!("secret {name} removed")),
            Some(true) => differ.push(format!("secret {name} changed")),
            Some(false) => {}
        }
    }
    let fresh = new.compared(old).filter(|(_, differs)| differs.is_none());
    differ.extend(fresh.map(|(name, _)| format!("secret {name} added")));
    report.secrets = differ.len() as u64;
    differ.into_iter().for_each(|message| report.say("", message));
}
