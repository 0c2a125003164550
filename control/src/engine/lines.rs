//! Lines in the log about one peer: each names the connection and the IKE SA, and is written by the
//! level of the peer, of the connection, or of all.

use std::net::IpAddr;

use culvert_api::{Code, Happening, LogLevel, Refusal, Row};
use culvert_ike::message::Header;
use culvert_ike::{IkeSaId, Path};
use tracing::Level;

use super::Engine;
use crate::log::{DEFAULT, PEER, Scope};
use crate::said::{Said, Topic};

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
        if self.log.writes(Level::INFO, connection, peer) {
            let name = connection.filter(|name| !name.is_empty()).unwrap_or("-");
            let number = ike.map(|IkeSaId(number)| number);
            tracing::info!(target: PEER, connection = name, ike = number, "{happening}");
        }
        self.history.note(connection, ike, happening);
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
        if let Some(Scope::Connection(name)) = &scope
            && self.services.config.connection(name).is_none()
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
