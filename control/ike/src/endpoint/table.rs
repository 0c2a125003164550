//! The sessions and the ways to find one: by SPI, by first request, by TCP connection, by peer, by
//! configured connection, by CHILD SA, by the IKE SA that it is to replace, and by what is due next.
//! Each is kept up to date by [`Table::sync`] after a session has acted.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use crate::config::ConnectionConfig;
use crate::event::{ChildId, IkeSaId};
use crate::path::{ConnToken, ConnectRequest, Path};
use crate::sa::Session;
use crate::time::Instant;

/// What a source counts as: an IPv4 address, or an IPv6 /64.
fn source(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(a) => IpAddr::V6(Ipv6Addr::from(u128::from(a) >> 64 << 64)),
    }
}

/// By what a session is found.
#[derive(Default)]
struct Keys {
    spis: Vec<u64>,
    /// The initiator's SPI and address of a half-open SA that a peer began.
    init: Option<(u64, IpAddr)>,
    conn: Option<ConnToken>,
    request: Option<ConnectRequest>,
    peer: Option<Vec<u8>>,
    /// Its configuration, of which the name counts.
    connection: Option<Arc<ConnectionConfig>>,
    children: Vec<ChildId>,
    predecessor: Option<IkeSaId>,
    timeout: Option<Instant>,
}

impl Keys {
    fn of(session: &Session) -> Self {
        let (conn, request) = session.connections();
        Self {
            spis: session.spis(),
            init: session.half_open_spi().map(|spi| (spi, session.path.remote.ip())),
            conn,
            request,
            peer: session.peer_key(),
            connection: session.connection.clone(),
            children: session.child_ids().collect(),
            predecessor: session.predecessor(),
            timeout: session.timeout(),
        }
    }
}

/// Every session.
#[derive(Default)]
pub(super) struct Table {
    sessions: BTreeMap<IkeSaId, (Session, Keys)>,
    by_spi: HashMap<u64, IkeSaId>,
    by_init: HashMap<(u64, IpAddr), IkeSaId>,
    half_open: HashMap<IpAddr, usize>,
    by_conn: BTreeSet<(ConnToken, IkeSaId)>,
    by_request: HashMap<ConnectRequest, IkeSaId>,
    by_peer: BTreeSet<(Vec<u8>, IkeSaId)>,
    by_connection: HashMap<String, BTreeSet<IkeSaId>>,
    by_child: HashMap<ChildId, IkeSaId>,
    by_predecessor: HashMap<IkeSaId, IkeSaId>,
    timeouts: BTreeSet<(Instant, IkeSaId)>,
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.sessions.len()
    }

    pub(super) fn sessions(&self) -> impl Iterator<Item = &Session> {
        self.sessions.values().map(|(session, _)| session)
    }

    pub(super) fn get(&self, id: IkeSaId) -> Option<&Session> {
        self.sessions.get(&id).map(|(session, _)| session)
    }

    pub(super) fn get_mut(&mut self, id: IkeSaId) -> Option<&mut Session> {
        self.sessions.get_mut(&id).map(|(session, _)| session)
    }

    pub(super) fn insert(&mut self, session: Session) {
        let id = session.id;
        self.sessions.insert(id, (session, Keys::default()));
        self.sync(id);
    }

    pub(super) fn by_spi(&self, spi: u64) -> Option<IkeSaId> {
        self.by_spi.get(&spi).copied()
    }

    /// The half-open SA that a first request with this SPI from this address began.
    pub(super) fn by_init(&self, spi_i: u64, path: &Path) -> Option<&Session> {
        self.by_init.get(&(spi_i, path.remote.ip())).and_then(|id| self.get(*id))
    }

    pub(super) fn by_conn(&self, conn: ConnToken) -> Vec<IkeSaId> {
        let range = (conn, IkeSaId(0))..=(conn, IkeSaId(u64::MAX));
        self.by_conn.range(range).map(|(_, id)| *id).collect()
    }

    pub(super) fn by_request(&self, request: ConnectRequest) -> Option<IkeSaId> {
        self.by_request.get(&request).copied()
    }

    /// The other established SAs with the same two identities.
    pub(super) fn same_peer(&self, id: IkeSaId) -> Vec<IkeSaId> {
        let Some((_, Keys { peer: Some(peer), .. })) = self.sessions.get(&id) else {
            return Vec::new();
        };
        let range = (peer.clone(), IkeSaId(0))..=(peer.clone(), IkeSaId(u64::MAX));
        self.by_peer.range(range).map(|(_, other)| *other).filter(|other| *other != id).collect()
    }

    /// The sessions of a configured connection.
    pub(super) fn by_connection(&self, name: &str) -> impl Iterator<Item = &Session> + use<'_> {
        let ids = self.by_connection.get(name).into_iter().flatten();
        ids.filter_map(|id| self.get(*id))
    }

    /// The session that has this CHILD SA.
    pub(super) fn by_child(&self, child: ChildId) -> Option<IkeSaId> {
        self.by_child.get(&child).copied()
    }

    /// The session that is on its way to take the place of `old`.
    pub(super) fn successor_of(&self, old: IkeSaId) -> Option<IkeSaId> {
        self.by_predecessor.get(&old).copied()
    }

    /// Half-open SAs that peers began: in all, and from the source of this address.
    pub(super) fn half_open(&self, remote: IpAddr) -> (usize, usize) {
        (self.by_init.len(), self.half_open.get(&source(remote)).copied().unwrap_or(0))
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.timeouts.first().map(|(at, _)| *at)
    }

    /// The sessions for which something is due.
    pub(super) fn due(&self, now: Instant) -> Vec<IkeSaId> {
        self.timeouts.range(..=(now, IkeSaId(u64::MAX))).map(|(_, id)| *id).collect()
    }

    /// How many ways to sessions there are.
    #[cfg(test)]
    pub(super) fn ways(&self) -> usize {
        let sets = [self.by_conn.len(), self.by_peer.len(), self.timeouts.len()];
        let by_number = [self.by_spi.len(), self.by_child.len(), self.by_predecessor.len()];
        let by_name = [self.by_init.len(), self.half_open.len(), self.by_connection.len()];
        let sum = |ways: [usize; 3]| ways.iter().sum::<usize>();
        sum(sets) + sum(by_number) + sum(by_name) + self.by_request.len()
    }

    /// Brings the ways to find a session up to date, and forgets it when it is dead.
    pub(super) fn sync(&mut self, id: IkeSaId) {
        let Some((session, old)) = self.sessions.get_mut(&id) else { return };
        let dead = session.is_dead();
        let new = if dead { Keys::default() } else { Keys::of(session) };
        let connection = new.connection.clone();
        let old = std::mem::replace(old, new);
        self.forget(id, &old);
        self.file(id, old.connection.as_deref(), connection.as_deref());
        if dead {
            self.sessions.remove(&id);
        } else {
            self.enter(id);
        }
    }

    fn forget(&mut self, id: IkeSaId, keys: &Keys) {
        for spi in &keys.spis {
            self.by_spi.remove(spi);
        }
        if let Some(init) = keys.init {
            self.by_init.remove(&init);
            let source = source(init.1);
            if let Some(count) = self.half_open.get_mut(&source) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    self.half_open.remove(&source);
                }
            }
        }
        if let Some(conn) = keys.conn {
            self.by_conn.remove(&(conn, id));
        }
        if let Some(request) = keys.request {
            self.by_request.remove(&request);
        }
        if let Some(peer) = &keys.peer {
            self.by_peer.remove(&(peer.clone(), id));
        }
        for child in &keys.children {
            self.by_child.remove(child);
        }
        if let Some(old) = keys.predecessor {
            self.by_predecessor.remove(&old);
        }
        if let Some(at) = keys.timeout {
            self.timeouts.remove(&(at, id));
        }
    }

    /// Keeps a session among those of its connection, which seldom changes.
    fn file(
        &mut self,
        id: IkeSaId,
        old: Option<&ConnectionConfig>,
        new: Option<&ConnectionConfig>,
    ) {
        let [old, new] = [old, new].map(|connection| connection.map(|c| c.name.as_str()));
        if old == new {
            return;
        }
        if let Some(old) = old
            && let Some(ids) = self.by_connection.get_mut(old)
        {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_connection.remove(old);
            }
        }
        if let Some(new) = new {
            self.by_connection.entry(new.to_owned()).or_default().insert(id);
        }
    }

    fn enter(&mut self, id: IkeSaId) {
        let Some((_, keys)) = self.sessions.get(&id) else { return };
        for spi in &keys.spis {
            self.by_spi.insert(*spi, id);
        }
        if let Some(init) = keys.init {
            self.by_init.insert(init, id);
            *self.half_open.entry(source(init.1)).or_default() += 1;
        }
        if let Some(conn) = keys.conn {
            self.by_conn.insert((conn, id));
        }
        if let Some(request) = keys.request {
            self.by_request.insert(request, id);
        }
        if let Some(peer) = &keys.peer {
            self.by_peer.insert((peer.clone(), id));
        }
        for child in &keys.children {
            self.by_child.insert(*child, id);
        }
        if let Some(old) = keys.predecessor {
            self.by_predecessor.insert(old, id);
        }
        if let Some(at) = keys.timeout {
            self.timeouts.insert((at, id));
        }
    }
}
