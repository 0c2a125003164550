//! Lines in the log about one peer: each names the connection and the IKE SA, and is written by the
//! level of the peer, of the connection, or of all.

use std::net::IpAddr;

use culvert_api::{Code, Happening, LogLevel, Refusal, Row};
use culvert_ike::message::Header;
use culvert_ike::{IkeSaId, Instant, Path};
use tracing::Level;

use super::Engine;
use crate::clock;
use crate::log::{DEFAULT, PEER, Scope};
use crate::pace::Pace;
use crate::said::{Said, Topic};

/// Lines about peers in a second: a thousand of them may go at once. Of those that have a level of
/// their own, and of what is not of peers, every one is written.
const LINES_MAX: u32 = 100;
/// What anybody can make any number of is told so often in a second: attempts to set up an IKE SA that
/// come to nothing, and TCP connections.
const STRANGERS_MAX: u32 = 10;

/// How fast lines are written.
pub(super) struct Paces {
    lines: Pace,
    refusals: Pace,
    connections: Pace,
}

impl Default for Paces {
    fn default() -> Self {
        let [refusals, connections] = [(); 2].map(|()| Pace::new(STRANGERS_MAX));
        Self { lines: Pace::new(LINES_MAX), refusals, connections }
    }
}

/// Whether peers can make any number of these happen.
const fn is_of_peers(happening: &Happening) -> bool {
    !matches!(
        happening,
        Happening::DataplaneUp
            | Happening::DataplaneDown
            | Happening::Restored { .. }
            | Happening::Reconfigured { .. }
            | Happening::ConfigurationRefused { .. }
    )
}

impl Engine {
    /// Notes what happened, and writes it to the log.
    pub(super) fn note(
        &mut self,
        connection: Option<&str>,
        ike: Option<IkeSaId>,
        happening: Happening,
    ) {
        let known = ike.and_then(|ike| self.known.ikes.get(&ike));
        let peer = known.map(|known| (known.remote_id.as_str(), known.way.remote.ip()));
        let id = known.map(|known| known.remote_id.clone());
        let paced = is_of_peers(&happening) && !self.log.has_own(connection, peer);
        if self.log.writes(Level::INFO, connection, peer)
            && (!paced || self.paces.lines.take(clock::now()))
        {
            let name = connection.filter(|name| !name.is_empty()).unwrap_or("-");
            let number = ike.map(|IkeSaId(number)| number);
            tracing::info!(target: PEER, connection = name, ike = number, peer = id, "{happening}");
        }
        self.history.note(connection, ike, id, happening);
    }

    /// Notes that a peer's attempt came to nothing: anybody can make any number of them.
    pub(super) fn note_refused(&mut self, reason: String) {
        if self.paces.refusals.take(clock::now()) {
            self.note(None, None, Happening::IkeFailed { reason });
        }
    }

    /// Notes that a TCP connection opened or closed, likewise.
    pub(super) fn note_connection(&mut self, happening: Happening) {
        if self.paces.connections.take(clock::now()) {
            self.note(None, None, happening);
        }
    }

    /// Writes how much was left out.
    pub(super) fn tell_left_out(&mut self, now: Instant) {
        if let Some(count) = self.paces.lines.left_out(now) {
            tracing::warn!(
                "{count} more lines about peers are left out here; see `culvert events`, \
                 `culvert connections` and `culvert sas`"
            );
        }
        if let Some(count) = self.paces.refusals.left_out(now) {
            tracing::warn!("{count} more attempts of peers came to nothing");
        }
        if let Some(count) = self.paces.connections.left_out(now) {
            tracing::warn!("{count} more TCP connections opened or closed; see `culvert tcp`");
        }
    }

    /// Writes that an IKE message came or goes, where somebody wants to know.
    pub(super) fn trace_message(&self, what: &str, is_ours: bool, path: &Path, octets: &[u8]) {
        if !self.log.may_write(Level::DEBUG) {
            return;
        }
        let Ok((header, _)) = Header::decode(octets) else { return };
        let own = if header.from_initiator == is_ours { header.spi_i } else { header.spi_r };
        let ike = self.endpoint.by_spi(own);
        let sa = ike.and_then(|ike| self.endpoint.sa(ike));
        let connection = sa.as_ref().map(|sa| sa.connection.as_str());
        let id = sa.as_ref().and_then(|sa| sa.remote_id.as_ref()).map(ToString::to_string);
        let peer: (&str, IpAddr) = (id.as_deref().unwrap_or_default(), path.remote.ip());
        if self.log.writes(Level::DEBUG, connection, Some(peer)) {
            let kind = if header.response { "response" } else { "request" };
            tracing::debug!(
                target: PEER,
                connection = connection.filter(|name| !name.is_empty()).unwrap_or("-"),
                ike = ike.map(|IkeSaId(number)| number),
                "{what} {:?} {kind} {}, {} octets, {path}",
                header.exchange,
                header.message_id,
                octets.len()
            );
        }
    }

    /// The levels: of all, then of those that have their own.
    #[must_use]
    pub fn log_levels(&self) -> Vec<Row> {
        let (all, own) = self.log.levels();
        let row = |scope: &str, name: &str, level: String| {
            Row::LogLevel(LogLevel { scope: scope.to_owned(), name: name.to_owned(), level })
        };
        let own = own.map(|(scope, level)| match scope {
            Scope::Connection(name) => row("connection", name, level.to_string()),
            Scope::Peer(name) => row("peer", name, level.to_string()),
        });
        std::iter::once(row("all", "", all.to_owned())).chain(own).collect()
    }

    /// Sets the level of all, or of a connection or peer; the levels then.
    ///
    /// # Errors
    /// It is no level, or there is no such connection.
    pub fn set_log(&mut self, scope: Option<Scope>, level: &str) -> Result<Vec<Row>, Refusal> {
        // One that is gone may have a level left.
        let takes_away =
            level == DEFAULT && scope.as_ref().is_some_and(|scope| self.log.is_set(scope));
        if let Some(Scope::Connection(name)) = &scope
            && self.services.config.connection(name).is_none()
            && !takes_away
        {
            return Err(self.nothing_fits(&culvert_api::Target::Connection(name.clone())));
        }
        let set = match scope.clone() {
            Some(scope) => self.log.set_own(scope, level),
            None => self.log.set_all(level),
        };
        set.map_err(|error| Refusal::new(Code::BadRequest, error.to_string()))?;
        if scope.is_some() && level == DEFAULT {
            self.forget(&Topic::Log(scope));
        } else if let Err(error) = self.keep(Said::Log { scope, level: level.to_owned() }) {
            tracing::error!(level, %error, "this level will be forgotten");
        }
        Ok(self.log_levels())
    }
}
