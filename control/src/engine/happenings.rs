//! What the protocol tells: to the log and to clients, to those who wait, to what is to stand.

use culvert_api::{Code, Happening, Outcome, Refusal};
use culvert_ike::{ChildId, DownReason, Event, IkeSaId, IkeSnapshot};

use super::{Engine, Standing, random_octet};
use crate::{clock, convert};

impl Engine {
    /// Takes an event of the protocol.
    pub(super) fn happened(&mut self, event: Event) {
        match event {
            Event::IkeUp { ike, connection } => self.ike_up(ike, &connection),
            Event::IkeDown { ike, connection, reason } => {
                self.history.note(
                    Some(&connection),
                    Some(ike),
                    Happening::IkeDown { reason: reason.to_string() },
                );
                self.ike_gone(ike, &connection, &reason.to_string());
            }
            Event::IkeRekeyed { ike } => tracing::info!(%ike, "IKE SA rekeyed"),
            Event::Reauthenticating { ike, successor } => {
                tracing::info!(%ike, %successor, "reauthenticating by a new IKE SA");
            }
            // The SA stays, and the protocol tries again.
            Event::RekeyFailed { ike, child, reason } => {
                let child = child.map(|child| child.0);
                tracing::warn!(%ike, child, %reason, "rekeying failed and is tried again");
            }
            Event::ChildUp { ike, child, name, .. } => self.child_up(ike, child, &name),
            Event::ChildDown { ike, child, name, reason } => {
                self.child_down(ike, child, name, reason);
            }
            Event::ChildFailed { ike, name, reason } => {
                self.child_failed(ike, name.unwrap_or_default(), reason.to_string());
            }
            Event::InitiationFailed { ike, connection, error } => {
                let reason = error.to_string();
                let happening = Happening::IkeFailed { reason: reason.clone() };
                self.history.note(Some(&connection), Some(ike), happening);
                self.ike_gone(ike, &connection, &reason);
            }
            Event::Refused { path, error } => {
                let reason = format!("{path}: {error}");
                self.history.note(None, None, Happening::IkeFailed { reason });
            }
            Event::FallbackToTcp { ike, transmissions } => self.fallback(ike, transmissions),
            Event::TcpLost { ike, reconnecting } => {
                tracing::info!(%ike, reconnecting, "the TCP connection of an IKE SA is lost");
            }
            Event::PathMoved { ike, path } => {
                let connection = self.connection_of(ike);
                self.history.note(
                    connection.as_deref(),
                    Some(ike),
                    Happening::PathMoved {
                        remote: path.remote.to_string(),
                        transport: convert::transport(path.transport),
                    },
                );
            }
        }
    }

    fn snapshot(&self, ike: IkeSaId) -> Option<IkeSnapshot> {
        self.endpoint.sas().find(|sa| sa.id == ike)
    }

    /// The connection of an IKE SA.
    pub(super) fn connection_of(&self, ike: IkeSaId) -> Option<String> {
        self.snapshot(ike).map(|sa| sa.connection)
    }

    fn ike_up(&mut self, ike: IkeSaId, connection: &str) {
        let Some(sa) = self.snapshot(ike) else { return };
        self.history.note(
            Some(connection),
            Some(ike),
            Happening::IkeUp {
                remote: sa.path.remote.to_string(),
                remote_id: sa.remote_id.map(|id| id.to_string()).unwrap_or_default(),
                transport: convert::transport(sa.path.transport),
            },
        );
    }

    /// An IKE SA is gone, or did not come about: nothing of it may be left.
    fn ike_gone(&mut self, ike: IkeSaId, connection: &str, reason: &str) {
        self.services.forwarding.forget_peer(ike);
        self.children.retain(|_, stood| stood.ike != ike);
        let wait = self.starts.ike_down(ike, clock::now(), random_octet());
        self.note_retry(connection, wait);
        self.tell_waiters(ike, None, &Err(Refusal::new(Code::Failed, reason)));
    }

    fn child_up(&mut self, ike: IkeSaId, child: ChildId, name: &str) {
        let Some(sa) = self.snapshot(ike) else { return };
        let Some(pair) = sa.children.iter().find(|other| other.id == child) else { return };
        let text = |list: &[culvert_ike::TrafficSelector]| {
            list.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let standing = Standing { ike, connection: sa.connection.clone(), spi_in: pair.spi_in };
        self.children.insert(child, standing);
        let spi_in = format!("{:08x}", pair.spi_in);
        self.history.note(
            Some(&sa.connection),
            Some(ike),
            Happening::ChildUp {
                child: name.to_owned(),
                spi_in: spi_in.clone(),
                local_ts: text(&pair.local_ts),
                remote_ts: text(&pair.remote_ts),
            },
        );
        self.starts.up(&sa.connection, name, ike, clock::now());
        let transport = convert::transport(pair.transport);
        let message = format!(
            "{} is up: IKE SA {ike} with {} over {transport}, CHILD SA {name} {spi_in}",
            sa.connection, sa.path.remote
        );
        let outcome =
            Outcome { message, connection: sa.connection, ike: Some(ike.0), child: Some(spi_in) };
        self.tell_waiters(ike, Some(name), &Ok(outcome));
    }

    fn child_down(&mut self, ike: IkeSaId, child: ChildId, name: String, reason: DownReason) {
        // The IKE SA may be gone already.
        let (connection, spi_in) = match self.children.remove(&child) {
            Some(stood) => (stood.connection, format!("{:08x}", stood.spi_in)),
            None => (self.connection_of(ike).unwrap_or_default(), String::new()),
        };
        let text = reason.to_string();
        self.history.note(
            Some(&connection),
            Some(ike),
            Happening::ChildDown { child: name.clone(), spi_in, reason: text },
        );
        // What ends with its IKE SA is begun anew with it, and a rekey has a successor.
        if !matches!(reason, DownReason::Rekeyed | DownReason::IkeGone) {
            let wait = self.starts.down(ike, &name, clock::now(), random_octet());
            self.note_retry(&connection, wait);
        }
    }

    fn child_failed(&mut self, ike: IkeSaId, name: String, reason: String) {
        let connection = self.connection_of(ike).unwrap_or_default();
        let refusal = Refusal::new(Code::Failed, format!("CHILD SA {name}: {reason}"));
        self.history.note(
            Some(&connection),
            Some(ike),
            Happening::ChildFailed { child: name.clone(), reason },
        );
        let wait = self.starts.down(ike, &name, clock::now(), random_octet());
        self.note_retry(&connection, wait);
        self.tell_waiters(ike, Some(&name), &Err(refusal));
    }

    fn fallback(&mut self, ike: IkeSaId, transmissions: u32) {
        let Some(sa) = self.snapshot(ike) else { return };
        tracing::info!(%ike, transmissions, "no answer over UDP");
        let port = self.services.config.connection(&sa.connection);
        let port = port.map_or(sa.path.remote.port(), |found| found.ike.tcp_remote_port);
        let remote = std::net::SocketAddr::new(sa.path.remote.ip(), port).to_string();
        self.history.note(Some(&sa.connection), Some(ike), Happening::Fallback { remote });
    }

    /// Tells those who wait for a child of this IKE SA, or for any of it.
    fn tell_waiters(
        &mut self,
        ike: IkeSaId,
        child: Option<&str>,
        outcome: &Result<Outcome, Refusal>,
    ) {
        let concerned = |waiter: &mut super::Waiter| {
            waiter.ike == ike && child.is_none_or(|child| child == waiter.child)
        };
        for waiter in self.waiters.extract_if(.., concerned) {
            // Who asked may be gone.
            let _ = waiter.outcome.send(outcome.clone());
        }
    }
}
