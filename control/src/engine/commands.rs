//! What people ask for.

use culvert_api::{Code, Outcome, Refusal, Row, Target};
use culvert_ike::{IkeSaId, InitiateError, Instant};
use tokio::sync::oneshot;

use super::{Engine, WAITERS_MAX, Waiter};
use crate::clock;

/// What became of an initiation so far.
pub enum Initiated {
    /// The child stands already.
    Already(Outcome),
    /// It has begun; the second says how it ended.
    Begun(Outcome, oneshot::Receiver<Result<Outcome, Refusal>>),
}

impl Engine {
    /// Begins to set a child of a connection up; the first child if none is named.
    ///
    /// # Errors
    /// There is no such child, nobody to call, or nothing to call with.
    pub fn initiate(
        &mut self,
        connection: &str,
        child: Option<&str>,
    ) -> Result<Initiated, Refusal> {
        let configured = self.services.config.connection(connection).ok_or_else(|| {
            let reason =
                format!("no connection is called {connection:?}; `culvert connections` lists them");
            Refusal::new(Code::NotFound, reason)
        })?;
        let first = configured.ike.children.first().map(|child| child.name.clone());
        let child = child.map(ToOwned::to_owned).or(first).unwrap_or_default();
        if configured.ike.children.iter().all(|other| other.name != child) {
            let reason = format!("connection {connection} has no child called {child:?}");
            return Err(Refusal::new(Code::NotFound, reason));
        }
        if !self.is_dataplane_up() {
            let reason = "the dataplane is not running: start culvert-dataplane with the same \
                          configuration";
            return Err(Refusal::new(Code::NoDataplane, reason));
        }
        if self.waiters.len() >= WAITERS_MAX {
            let reason = format!("{WAITERS_MAX} initiations are waited for already");
            return Err(Refusal::new(Code::Busy, reason));
        }
        if let Some(outcome) = self.standing(connection, &child) {
            return Ok(Initiated::Already(outcome));
        }
        let now = clock::now();
        let ike = self
            .begin(now, connection, &child)
            .map_err(|error| Refusal::new(Code::Failed, error.to_string()))?;
        self.starts.trying(connection, &child, ike);
        let (sender, outcome) = oneshot::channel();
        self.waiters.push(Waiter { ike, child, outcome: sender });
        self.flush();
        let started = Outcome {
            message: format!("{connection} is being set up as IKE SA {ike}"),
            connection: connection.to_owned(),
            ike: Some(ike.0),
            child: None,
        };
        Ok(Initiated::Begun(started, outcome))
    }

    /// Begins a child: within the connection's IKE SA if that stands, else with a new one.
    pub(super) fn begin(
        &mut self,
        now: Instant,
        connection: &str,
        child: &str,
    ) -> Result<IkeSaId, InitiateError> {
        if let Some(ike) = self.established(connection) {
            self.endpoint.initiate_child(now, ike, child, &mut self.services)?;
            return Ok(ike);
        }
        let configured = self.services.config.connection(connection);
        let configured = configured.map(|found| std::sync::Arc::clone(&found.ike));
        let configured = configured.ok_or_else(|| InitiateError::NoSuchChild {
            connection: connection.to_owned(),
            child: child.to_owned(),
        })?;
        self.endpoint.initiate(now, &configured, Some(child), &mut self.services)
    }

    /// The child, if it stands.
    fn standing(&self, connection: &str, child: &str) -> Option<Outcome> {
        let mut of_connection = self.endpoint.sas().filter(|sa| sa.connection == connection);
        let (ike, spi_in) = of_connection.find_map(|sa| {
            let pair = sa.children.iter().find(|pair| pair.name == child)?;
            Some((sa.id.0, format!("{:08x}", pair.spi_in)))
        })?;
        Some(Outcome {
            message: format!("{connection} is up already: IKE SA {ike}, CHILD SA {child} {spi_in}"),
            connection: connection.to_owned(),
            ike: Some(ike),
            child: Some(spi_in),
        })
    }

    /// Deletes SAs; one row for each.
    pub(super) fn terminate(&mut self, target: &Target) -> Result<Vec<Row>, Refusal> {
        let rows = match target {
            Target::Ike(ike) => self.terminate_ike(IkeSaId(*ike)).map(|row| vec![row])?,
            Target::Child(spi_in) => self.terminate_child(spi_in).map(|row| vec![row])?,
            Target::Connection(name) => self.terminate_connection(name)?,
        };
        self.flush();
        Ok(rows)
    }

    fn terminate_ike(&mut self, ike: IkeSaId) -> Result<Row, Refusal> {
        let connection = self.connection_of(ike).unwrap_or_default();
        // Before the end is told, which would begin it anew.
        self.starts.hold(&connection);
        self.endpoint
            .terminate(clock::now(), ike, &mut self.services)
            .map_err(|error| Refusal::new(Code::NotFound, error.to_string()))?;
        let message = format!("IKE SA {ike} of {connection} is being deleted");
        Ok(Row::Outcome(Outcome { message, connection, ike: Some(ike.0), child: None }))
    }

    fn terminate_child(&mut self, spi_in: &str) -> Result<Row, Refusal> {
        let unknown = || {
            let reason =
                format!("no CHILD SA has the inbound SPI {spi_in:?}; `culvert sas` lists them");
            Refusal::new(Code::NotFound, reason)
        };
        let spi = u32::from_str_radix(spi_in, 16).map_err(|_| unknown())?;
        let child = Some(format!("{spi:08x}"));
        if self.services.forwarding.end_orphans(|orphan| orphan.spi_in == spi) > 0 {
            let message = format!("orphaned CHILD SA {spi:08x} is gone");
            let connection = String::new();
            return Ok(Row::Outcome(Outcome { message, connection, ike: None, child }));
        }
        let pair = self.services.forwarding.installed(spi).map(|pair| (pair.ike, pair.child));
        let (ike, id) = pair.ok_or_else(unknown)?;
        let connection = self.connection_of(ike).unwrap_or_default();
        self.starts.hold(&connection);
        self.endpoint
            .terminate_child(clock::now(), id, &mut self.services)
            .map_err(|error| Refusal::new(Code::NotFound, error.to_string()))?;
        let message = format!("CHILD SA {spi:08x} of {connection} is being deleted");
        Ok(Row::Outcome(Outcome { message, connection, ike: Some(ike.0), child }))
    }

    fn terminate_connection(&mut self, name: &str) -> Result<Vec<Row>, Refusal> {
        self.starts.hold(name);
        let of_connection = self.endpoint.sas().filter(|sa| sa.connection == name);
        let ids: Vec<IkeSaId> = of_connection.map(|sa| sa.id).collect();
        let mut rows =
            ids.into_iter().map(|ike| self.terminate_ike(ike)).collect::<Result<Vec<Row>, _>>()?;
        let orphans = self.services.forwarding.end_orphans(|orphan| orphan.connection == name);
        if orphans > 0 {
            let message = format!("{orphans} orphaned CHILD SAs of {name} are gone");
            let connection = name.to_owned();
            rows.push(Row::Outcome(Outcome { message, connection, ike: None, child: None }));
        }
        if rows.is_empty() {
            let reason = match self.services.config.connection(name) {
                Some(_) => format!("connection {name} has no SA"),
                None => {
                    format!("no connection is called {name:?}; `culvert connections` lists them")
                }
            };
            return Err(Refusal::new(Code::NotFound, reason));
        }
        Ok(rows)
    }
}
