//! What a host asks an endpoint to do: begin, delete, rekey, reauthenticate, move.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Endpoint, EndpointConfig, InitiateError, UnknownSa};
use crate::config::{AddressMatch, ChildConfig, ConnectionConfig};
use crate::event::{ChildId, DownReason, IkeSaId, RekeyCause};
use crate::host::Host;
use crate::sa::{Cx, PathChoice, Session};
use crate::time::Instant;

/// The address that an initiator asks, and its own of the same family.
fn addresses(
    connection: &ConnectionConfig,
    host: &mut dyn Host,
) -> Result<(IpAddr, IpAddr), InitiateError> {
    let remote = connection
        .remote_addrs
        .iter()
        .find_map(AddressMatch::address)
        .ok_or_else(|| InitiateError::NoRemoteAddress(connection.name.clone()))?;
    let own = connection.local_addrs.iter().filter_map(AddressMatch::address);
    let local = own
        .into_iter()
        .find(|a| a.is_ipv4() == remote.is_ipv4())
        .or_else(|| host.source_address(remote))
        .ok_or(InitiateError::NoRoute(remote))?;
    Ok((local, remote))
}

fn child_config(
    connection: &ConnectionConfig,
    child: Option<&str>,
) -> Result<Arc<ChildConfig>, InitiateError> {
    let found = match child {
        Some(name) => connection.children.iter().find(|c| c.name == name),
        None => connection.children.first(),
    };
    found.cloned().ok_or_else(|| InitiateError::NoSuchChild {
        connection: connection.name.clone(),
        child: child.unwrap_or_default().to_owned(),
    })
}

impl Endpoint {
    /// Begins an IKE SA with the first CHILD SA `child` (a name in `connection`; `None`: the first
    /// one configured). All further children are asked for with [`Self::initiate_child`] once it is
    /// up.
    ///
    /// Success and failure come as [`Event::IkeUp`], [`Event::ChildUp`],
    /// [`Event::InitiationFailed`] or [`Event::ChildFailed`].
    ///
    /// # Errors
    /// When there is nobody to ask, no such child, or no room.
    pub fn initiate(
        &mut self,
        now: Instant,
        connection: &Arc<ConnectionConfig>,
        child: Option<&str>,
        host: &mut dyn Host,
    ) -> Result<IkeSaId, InitiateError> {
        let addresses = addresses(connection, host)?;
        let child = child_config(connection, child)?;
        if self.table.len() >= self.config.ike_sas_max {
            return Err(InitiateError::TooManyIkeSas(self.config.ike_sas_max));
        }
        let id = self.new_ike_id();
        let first = !self.table.by_connection(&connection.name).any(Session::is_up);
        let cx = cx!(self, now, host);
        let session = Session::initiate(cx, id, connection, child, addresses, first);
        self.table.insert(session);
        Ok(id)
    }

    /// Asks for one more CHILD SA in an IKE SA that stands, or that this side is setting up
    /// (CREATE_CHILD_SA; RFC 7296, 1.3.1). It waits its turn behind other exchanges.
    ///
    /// # Errors
    /// When the IKE SA or the child does not exist, or there is no room.
    pub fn initiate_child(
        &mut self,
        now: Instant,
        ike: IkeSaId,
        child: &str,
        host: &mut dyn Host,
    ) -> Result<(), InitiateError> {
        let session = self.table.get(ike).ok_or(UnknownSa::Ike(ike))?;
        let Some(connection) = session.connection.clone().filter(|_| session.takes_wishes()) else {
            return Err(InitiateError::NotEstablished(ike));
        };
        let config = child_config(&connection, Some(child))?;
        // One that is to take the place of the IKE SA inherits what this had when it was begun, and
        // nothing of this.
        let successor = self.table.successor_of(ike);
        let successor =
            successor.filter(|id| self.table.get(*id).is_some_and(Session::takes_wishes));
        for ike in [Some(ike), successor].into_iter().flatten() {
            let config = Arc::clone(&config);
            self.with(now, ike, host, |session, cx| session.ask_child(cx, config));
        }
        Ok(())
    }

    /// Deletes an IKE SA with its CHILD SAs: sends a Delete payload where the peer is authenticated,
    /// and ends with [`Event::IkeDown`] once the peer has answered or is given up. An SA that is not
    /// up yet ends at once, with [`Event::InitiationFailed`] if this side began it.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn terminate(
        &mut self,
        now: Instant,
        ike: IkeSaId,
        host: &mut dyn Host,
    ) -> Result<(), UnknownSa> {
        self.with(now, ike, host, |s, cx| s.terminate(cx, DownReason::TerminatedLocally))
            .ok_or(UnknownSa::Ike(ike))
    }

    /// Deletes one pair of CHILD SAs; the IKE SA stays.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn terminate_child(
        &mut self,
        now: Instant,
        child: ChildId,
        host: &mut dyn Host,
    ) -> Result<(), UnknownSa> {
        self.with_child(now, child, host, Session::terminate_child)
    }

    /// Replaces one pair of CHILD SAs by a new one with fresh keys, which goes by the same name (RFC
    /// 7296, 1.3.3 and 2.8). Ends with [`Event::ChildUp`] and, for the old pair,
    /// [`Event::ChildDown`] with [`DownReason::Rekeyed`]; or with [`Event::ChildFailed`].
    ///
    /// # Errors
    /// When it does not exist.
    pub fn rekey_child(
        &mut self,
        now: Instant,
        child: ChildId,
        host: &mut dyn Host,
    ) -> Result<(), UnknownSa> {
        self.with_child(now, child, host, |s, cx, child| {
            s.rekey_child(cx, child, RekeyCause::Asked);
        })
    }

    /// An IKE SA on which exchanges may be begun.
    fn established(&self, ike: IkeSaId) -> Result<&Session, InitiateError> {
        let session = self.table.get(ike).ok_or(UnknownSa::Ike(ike))?;
        session.is_established().then_some(session).ok_or(InitiateError::NotEstablished(ike))
    }

    /// Gives an IKE SA new keys and SPIs (RFC 7296, 1.3.2 and 2.18); its CHILD SAs go over to it. Ends
    /// with [`Event::IkeRekeyed`] or [`Event::RekeyFailed`].
    ///
    /// # Errors
    /// When it does not exist or is not established.
    pub fn rekey_ike(
        &mut self,
        now: Instant,
        ike: IkeSaId,
        host: &mut dyn Host,
    ) -> Result<(), InitiateError> {
        self.established(ike)?;
        self.with(now, ike, host, |s, cx| s.rekey_ike(cx, RekeyCause::Asked));
        Ok(())
    }

    /// Authenticates anew: sets up an IKE SA with the same CHILD SAs beside this one, which is deleted
    /// then (RFC 7296, 2.8.3). Begins with [`Event::Reauthenticating`]; for the old one ends with
    /// [`Event::IkeDown`] and [`DownReason::Reauthenticated`].
    ///
    /// # Errors
    /// When it does not exist or is not established.
    pub fn reauthenticate(
        &mut self,
        now: Instant,
        ike: IkeSaId,
        host: &mut dyn Host,
    ) -> Result<(), InitiateError> {
        let session = self.established(ike)?;
        if let Some(connection) = session.connection.clone() {
            addresses(&connection, host)?;
        }
        self.with(now, ike, host, |s, cx| s.reauthenticate(cx));
        Ok(())
    }

    /// Moves an established IKE SA with its CHILD SAs to other addresses or another transport (RFC
    /// 4555; RFC 9329, 7.1), when the gateway's addresses changed or to find out whether UDP works
    /// again. ESP goes the new way once the peer has agreed ([`Event::PathMoved`]); over UDP without
    /// an answer the IKE SA stays on, or falls back to, TCP.
    ///
    /// # Errors
    /// When it does not exist, or when this gateway may not move it: it is not established, the peer
    /// does not take part in MOBIKE, the peer began it (RFC 4555, 3.5), or it is to other addresses
    /// and has CHILD SAs in transport mode.
    pub fn move_to(
        &mut self,
        now: Instant,
        ike: IkeSaId,
        to: PathChoice,
        host: &mut dyn Host,
    ) -> Result<(), InitiateError> {
        let session = self.table.get(ike).ok_or(UnknownSa::Ike(ike))?;
        if !session.may_move_to(to) {
            return Err(InitiateError::Immovable(ike));
        }
        self.with(now, ike, host, |s, cx| s.move_to(cx, to));
        Ok(())
    }

    /// Takes a changed configuration of a connection over for the IKE SAs that it has. What was
    /// negotiated stays until it is rekeyed or reauthenticated; MOBIKE peers are told of changed
    /// [`ConnectionConfig::additional_addrs`].
    pub fn reconfigure(
        &mut self,
        now: Instant,
        connection: &Arc<ConnectionConfig>,
        host: &mut dyn Host,
    ) {
        let of_it = self.table.by_connection(&connection.name);
        for ike in of_it.map(|s| s.id).collect::<Vec<IkeSaId>>() {
            self.with(now, ike, host, |s, cx| s.reconfigure(cx, connection));
        }
    }

    /// Tells how many octets and packets a pair has carried so far, in the direction with more of
    /// them; it is rekeyed or deleted where [`ChildConfig::octets`] or [`ChildConfig::packets`] says
    /// so. The host calls this now and then.
    pub fn child_used(
        &mut self,
        now: Instant,
        ike: IkeSaId,
        child: ChildId,
        (octets, packets): (u64, u64),
        host: &mut dyn Host,
    ) {
        self.with(now, ike, host, |s, cx| s.child_used(cx, child, octets, packets));
    }

    /// Sets other limits. IKE SAs that exceed them stay.
    pub fn set_limits(&mut self, limits: EndpointConfig) {
        self.config = limits;
    }

    /// Lets the session that has `child` act on it.
    fn with_child(
        &mut self,
        now: Instant,
        child: ChildId,
        host: &mut dyn Host,
        act: impl FnOnce(&mut Session, &mut Cx<'_>, ChildId),
    ) -> Result<(), UnknownSa> {
        let ike = self.table.by_child(child);
        ike.and_then(|ike| self.with(now, ike, host, |session, cx| act(session, cx, child)))
            .ok_or(UnknownSa::Child(child))
    }
}
