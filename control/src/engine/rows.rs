//! Tables: the protocol's view joined with what the workers write into the shared memory.

use std::collections::{HashMap, HashSet};

use culvert_api::{
    Child, ChildSa, ChildState, Command, Connection, Counter, DataplaneStatus, IkeSa, IkeState,
    Mode, Refusal, Role, Row, Standing, Status, Target, TcpConnection, Transport,
};
use culvert_ike::{self as ike, ChildSnapshot, IkeSnapshot, Instant};
use culvert_shm::{self as shm, ControlView, SaConfig, SaCounts, SaDrop, SlotRef, SlotState};

use super::Engine;
use crate::forwarding::Orphan;
use crate::{clock, convert};
use crate::{config, starts};

impl Engine {
    /// The answer to a command that only asks.
    ///
    /// # Errors
    /// What it names does not exist.
    pub fn rows(&self, command: &Command) -> Result<Vec<Row>, Refusal> {
        let rows = match command {
            Command::Connections => self.connections(),
            Command::Sas { connection } => self.sas(connection.as_deref()),
            Command::Tcp => self.tcp_connections(),
            Command::Counters { all } => self.counters(*all),
            // The others are answered over time, and elsewhere.
            _ => vec![Row::Status(self.status())],
        };
        match command {
            // SAs may outlive their connection.
            Command::Sas { connection: Some(name) }
                if rows.is_empty() && self.services.config.connection(name).is_none() =>
            {
                Err(self.nothing_fits(&Target::Connection(name.clone())))
            }
            _ => Ok(rows),
        }
    }

    fn status(&self) -> Status {
        let now = clock::now();
        let config = &self.services.config;
        let view = self.services.forwarding.view();
        let orphans = self.services.forwarding.orphans();
        let mut status = Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_s: now.since(self.started).as_secs(),
            config: config.path.display().to_string(),
            dataplane: DataplaneStatus {
                up: self.is_dataplane_up(),
                since_s: now.since(self.dataplane_since).as_secs(),
                workers: config.dataplane.workers(),
                starts: view.map_or(0, ControlView::dataplane_epoch),
            },
            connections: config.connections.len() as u64,
            child_sas_orphaned: orphans.len() as u64,
            child_sas: orphans.len() as u64,
            child_sas_max: config.dataplane.sas.into(),
            tcp_connections: self.tcp.len() as u64,
            ..Status::default()
        };
        for sa in self.endpoint.sas() {
            match sa.state {
                ike::IkeState::Established | ike::IkeState::Deleting => status.ike_sas += 1,
                ike::IkeState::Connecting | ike::IkeState::HalfOpen => {
                    status.ike_sas_half_open += 1;
                }
            }
            status.child_sas += sa.children.len() as u64;
            for child in &sa.children {
                let counts = self.counts(child.spi_in);
                status.octets_in = status.octets_in.saturating_add(counts.octets_in);
                status.octets_out = status.octets_out.saturating_add(counts.octets_out);
            }
        }
        status
    }

    fn connections(&self) -> Vec<Row> {
        let mut standing: HashMap<String, (u64, HashSet<String>)> = HashMap::new();
        for sa in self.endpoint.sas().filter(|sa| sa.state == ike::IkeState::Established) {
            let (count, children) = standing.entry(sa.connection).or_default();
            *count += 1;
            children.extend(sa.children.into_iter().map(|pair| pair.name));
        }
        let now = clock::now();
        let row = |connection: &config::Connection| {
            let name = &connection.ike.name;
            let (count, up) = standing.remove(name).unwrap_or_default();
            let mut row = configured(connection, count);
            for child in &mut row.children {
                self.show_standing(name, child, up.contains(&child.name), now);
            }
            Row::Connection(row)
        };
        self.services.config.connections.values().map(row).collect()
    }

    fn show_standing(&self, connection: &str, child: &mut Child, is_up: bool, now: Instant) {
        let (standing, due) = match self.starts.standing(connection, &child.name) {
            _ if is_up => (Standing::Up, None),
            starts::Standing::Down => (Standing::Down, None),
            starts::Standing::Trying => (Standing::Trying, None),
            starts::Standing::Waiting(due) => (Standing::Waiting, Some(due)),
            starts::Standing::Trapped => (Standing::Trapped, None),
            starts::Standing::Held => (Standing::Held, None),
            starts::Standing::GivenUp => (Standing::GivenUp, None),
        };
        child.now = standing;
        child.retry_s = due.map(|due| due.since(now).as_secs());
        child.reason = self.known.ends.get(connection).filter(|_| !is_up).cloned();
    }

    fn sas(&self, connection: Option<&str>) -> Vec<Row> {
        let wanted = |name: &str| connection.is_none_or(|wanted| wanted == name);
        let now = clock::now();
        let snapshots = self.endpoint.sas().filter(|sa| wanted(&sa.connection));
        let mut rows: Vec<IkeSa> = snapshots.map(|sa| self.ike_sa(&sa, now)).collect();
        rows.extend(self.orphaned(now).into_iter().filter(|row| wanted(&row.connection)));
        rows.into_iter().map(Row::IkeSa).collect()
    }

    fn ike_sa(&self, sa: &IkeSnapshot, now: Instant) -> IkeSa {
        let text =
            |id: &Option<ike::Identity>| id.as_ref().map(ToString::to_string).unwrap_or_default();
        let seconds = |at: Option<Instant>| at.map(|at| at.since(now).as_secs());
        IkeSa {
            id: Some(sa.id.0),
            connection: sa.connection.clone(),
            state: match sa.state {
                ike::IkeState::Connecting => IkeState::Connecting,
                ike::IkeState::HalfOpen => IkeState::HalfOpen,
                ike::IkeState::Established => IkeState::Established,
                ike::IkeState::Deleting => IkeState::Deleting,
            },
            role: Some(if sa.initiator { Role::Initiator } else { Role::Responder }),
            transport: convert::way(sa).transport,
            local: sa.path.local.to_string(),
            remote: sa.path.remote.to_string(),
            local_id: text(&sa.local_id),
            remote_id: text(&sa.remote_id),
            spi_initiator: format!("{:016x}", sa.spi_i),
            spi_responder: format!("{:016x}", sa.spi_r),
            proposal: sa.suite.map(|suite| suite.to_string()).unwrap_or_default(),
            tcp: sa.path.conn.map(|token| convert::conn_name(convert::conn(token))),
            mobike: sa.mobike,
            nat_local: sa.nat_local,
            nat_remote: sa.nat_remote,
            age_s: now.since(sa.since).as_secs(),
            rekey_s: seconds(sa.rekey_at),
            reauth_s: seconds(sa.reauth_at),
            expires_s: seconds(sa.expires_at),
            children: sa.children.iter().map(|child| self.child_sa(child, now)).collect(),
        }
    }

    pub(super) fn counts(&self, spi_in: u32) -> SaCounts {
        let pair = self.services.forwarding.installed(spi_in);
        let counts = pair.zip(self.services.forwarding.view());
        counts.and_then(|(pair, view)| view.sa_counts(pair.slot)).unwrap_or_default()
    }

    fn child_sa(&self, child: &ChildSnapshot, now: Instant) -> ChildSa {
        let pair = self.services.forwarding.installed(child.spi_in);
        let text = |list: &[ike::TrafficSelector]| list.iter().map(ToString::to_string).collect();
        let described = ChildSa {
            name: child.name.clone(),
            state: if pair.is_some() { ChildState::Installed } else { ChildState::Retiring },
            mode: match child.mode {
                ike::ChildMode::Tunnel => Mode::Tunnel,
                ike::ChildMode::Transport => Mode::Transport,
            },
            spi_in: format!("{:08x}", child.spi_in),
            spi_out: format!("{:08x}", child.spi_out),
            proposal: child.suite.to_string(),
            local_ts: text(&child.local_ts),
            remote_ts: text(&child.remote_ts),
            age_s: now.since(child.since).as_secs(),
            rekey_s: child.rekey_at.map(|at| at.since(now).as_secs()),
            expires_s: pair.and_then(|pair| expires_s(pair.deadline_ns, now)),
            ..blank_child()
        };
        counted(described, &self.counts(child.spi_in), now)
    }

    /// SAs of an earlier control process, those of one peer together.
    fn orphaned(&self, now: Instant) -> Vec<IkeSa> {
        let Some(view) = self.services.forwarding.view() else { return Vec::new() };
        let mut peers: Vec<(SlotRef, IkeSa)> = Vec::new();
        for orphan in self.services.forwarding.orphans() {
            let index = peers.iter().position(|(peer, _)| *peer == orphan.peer);
            let index = index.unwrap_or_else(|| {
                peers.push((orphan.peer, orphaned_peer(view, orphan)));
                peers.len() - 1
            });
            let child = orphaned_child(view, orphan, now);
            if let (Some((_, row)), Some(child)) = (peers.get_mut(index), child) {
                row.age_s = row.age_s.max(child.age_s);
                row.children.push(child);
            }
        }
        peers.into_iter().map(|(_, row)| row).collect()
    }

    fn tcp_connections(&self) -> Vec<Row> {
        let Some(view) = self.services.forwarding.view() else { return Vec::new() };
        let mut names: HashMap<shm::ConnRef, String> = HashMap::new();
        for sa in self.endpoint.sas().filter(|sa| !sa.connection.is_empty()) {
            names.extend(sa.path.conn.map(|conn| (convert::conn(conn), sa.connection)));
        }
        let now = clock::now();
        let layout = view.region().layout();
        let slots = (0..layout.workers)
            .flat_map(|worker| (0..layout.conn_slots).map(move |index| (worker, index)));
        let conns = slots.filter_map(|(worker, index)| view.conn(worker, index));
        let row = |(conn, _, info, stats): (_, _, shm::ConnInfo, shm::ConnStats)| TcpConnection {
            id: convert::conn_name(conn),
            local: info.local.to_string(),
            remote: info.remote.to_string(),
            originator: info.originator,
            connection: names.get(&conn).cloned(),
            congestion: stats.congestion.map(|congestion| congestion.to_string()),
            octets_in: stats.octets_in,
            octets_out: stats.octets_out,
            age_s: now.since(clock::from_ns(info.opened_ns)).as_secs(),
            idle_s: idle_s(stats.last_frame_ns, now),
        };
        conns.map(row).map(Row::Tcp).collect()
    }

    fn counters(&self, all: bool) -> Vec<Row> {
        let mut rows = Vec::new();
        if let Some(view) = self.services.forwarding.view() {
            let region = view.region();
            for counter in shm::Counter::ALL {
                let workers = 0..region.layout().workers;
                rows.push(Counter {
                    name: counter.name().to_owned(),
                    help: counter.help().to_owned(),
                    total: region.counter_total(*counter),
                    workers: workers.map(|worker| region.counter(worker, *counter)).collect(),
                });
            }
        }
        let own = |name: &str, help: &str, total: u64| Counter {
            name: name.to_owned(),
            help: help.to_owned(),
            total,
            workers: Vec::new(),
        };
        let drops = self.drops.iter();
        rows.extend(drops.map(|(name, total)| own(name, "IKE messages dropped for this.", *total)));
        for (name, what, total) in [
            ("ike_cookie_demanded", "a cookie (RFC 7296, 2.6)", self.cookies_demanded),
            ("ike_puzzle_demanded", "a solved puzzle (RFC 8019)", self.puzzles_demanded),
        ] {
            let help = format!("First requests that were to come again with {what}.");
            rows.push(own(name, &help, total));
        }
        rows.push(own("record_malformed", "Records of workers without meaning.", self.malformed));
        rows.push(own("record_unsent", "Records that a worker had no room for.", self.unsent));
        rows.into_iter().filter(|row| all || row.total > 0).map(Row::Counter).collect()
    }
}

fn configured(connection: &config::Connection, ike_sas: u64) -> Connection {
    let ike = &connection.ike;
    let addresses = |list: &[ike::AddressMatch]| {
        let texts = list.iter().filter_map(|address| match address {
            ike::AddressMatch::Any => None,
            ike::AddressMatch::Address(address) => Some(address.to_string()),
            ike::AddressMatch::Network(address, length) => Some(format!("{address}/{length}")),
        });
        texts.collect()
    };
    let selectors = |list: &[ike::TrafficSelector]| list.iter().map(ToString::to_string).collect();
    let children = ike.children.iter().zip(&connection.children).map(|(child, host)| Child {
        name: child.name.clone(),
        local_ts: selectors(&child.local_ts),
        remote_ts: selectors(&child.remote_ts),
        start_action: host.start.name().to_owned(),
        close_action: host.close.name().to_owned(),
        dpd_action: host.dpd.name().to_owned(),
        now: Standing::default(),
        retry_s: None,
        reason: None,
    });
    Connection {
        name: ike.name.clone(),
        local_addrs: addresses(&ike.local_addrs),
        remote_addrs: addresses(&ike.remote_addrs),
        transport: match ike.transport {
            ike::TransportChoice::Udp => "udp",
            ike::TransportChoice::Tcp => "tcp",
            ike::TransportChoice::Auto => "auto",
        }
        .to_owned(),
        local_id: ike.local_id.to_string(),
        remote_id: ike.remote_id.to_string(),
        children: children.collect(),
        ike_sas,
    }
}

fn orphaned_peer(view: &ControlView, orphan: &Orphan) -> IkeSa {
    let path = view.peer_state(orphan.peer).map(|state| state.path);
    let path = path.or_else(|| view.peer(orphan.peer.index).map(|(_, _, peer)| peer.path));
    IkeSa {
        id: None,
        connection: orphan.connection.clone(),
        state: IkeState::Orphaned,
        role: None,
        transport: path.map_or(Transport::Native, |path| {
            convert::transport(convert::child_path(&path).transport)
        }),
        local: path.map(|path| path.local.to_string()).unwrap_or_default(),
        remote: path.map(|path| path.remote.to_string()).unwrap_or_default(),
        local_id: String::new(),
        remote_id: orphan.remote_id.clone(),
        spi_initiator: String::new(),
        spi_responder: String::new(),
        proposal: String::new(),
        tcp: path.and_then(|path| path.conn).map(convert::conn_name),
        mobike: false,
        nat_local: false,
        nat_remote: false,
        age_s: 0,
        rekey_s: None,
        reauth_s: None,
        expires_s: None,
        children: Vec::new(),
    }
}

fn orphaned_child(view: &ControlView, orphan: &Orphan, now: Instant) -> Option<ChildSa> {
    let (_, state, config) =
        view.sa(orphan.slot.index).filter(|(slot, ..)| *slot == orphan.slot)?;
    let described = ChildSa {
        name: orphan.name.clone(),
        state: match state {
            SlotState::Orphan => ChildState::Orphaned,
            SlotState::Live => ChildState::Installed,
            _ => ChildState::Retiring,
        },
        mode: match config.mode {
            shm::Mode::Tunnel => Mode::Tunnel,
            shm::Mode::Transport(_) => Mode::Transport,
        },
        spi_in: format!("{:08x}", config.spi_in),
        spi_out: format!("{:08x}", config.spi_out),
        proposal: proposal(&config),
        local_ts: selectors(&config.local),
        remote_ts: selectors(&config.remote),
        age_s: now.since(clock::from_ns(config.created_ns)).as_secs(),
        expires_s: expires_s(config.deadline_ns, now),
        ..blank_child()
    };
    Some(counted(described, &view.sa_counts(orphan.slot).unwrap_or_default(), now))
}

fn proposal(config: &SaConfig) -> String {
    let encryption = match config.algorithm {
        shm::sa::Algorithm::Aes128Gcm16 => ike::Encryption::Aes128Gcm16,
        shm::sa::Algorithm::Aes256Gcm16 => ike::Encryption::Aes256Gcm16,
    };
    ike::EspSuite { encryption, key_exchange: None, esn: config.esn }.to_string()
}

fn selectors(list: &shm::SelectorList) -> Vec<String> {
    let spelled = |selector: &shm::Selector| {
        let (port_start, port_end) = selector.ports();
        let (start, end) = (selector.first(), selector.last());
        ike::TrafficSelector { protocol: selector.protocol(), port_start, port_end, start, end }
            .to_string()
    };
    list.as_slice().iter().map(spelled).collect()
}

fn counted(child: ChildSa, counts: &SaCounts, now: Instant) -> ChildSa {
    let mut drops_out = 0u64;
    let mut drops_in = 0u64;
    for (reason, count) in SaDrop::ALL.iter().zip(counts.drops) {
        match reason {
            SaDrop::Exhausted | SaDrop::Path => drops_out = drops_out.saturating_add(count),
            _ => drops_in = drops_in.saturating_add(count),
        }
    }
    ChildSa {
        packets_in: counts.packets_in,
        octets_in: counts.octets_in,
        packets_out: counts.packets_out,
        octets_out: counts.octets_out,
        drops_in,
        drops_out,
        idle_s: idle_s(counts.last_in_ns.max(counts.last_out_ns), now),
        ..child
    }
}

/// A CHILD SA that nothing is said of yet.
fn blank_child() -> ChildSa {
    ChildSa {
        name: String::new(),
        state: ChildState::Unknown,
        mode: Mode::Unknown,
        spi_in: String::new(),
        spi_out: String::new(),
        proposal: String::new(),
        local_ts: Vec::new(),
        remote_ts: Vec::new(),
        packets_in: 0,
        octets_in: 0,
        packets_out: 0,
        octets_out: 0,
        drops_in: 0,
        drops_out: 0,
        age_s: 0,
        idle_s: None,
        rekey_s: None,
        expires_s: None,
    }
}

/// Seconds since a time that is 0 while it has not come.
fn idle_s(last_ns: u64, now: Instant) -> Option<u64> {
    (last_ns > 0).then(|| now.since(clock::from_ns(last_ns)).as_secs())
}

/// Seconds until a deadline that is the greatest number if there is none.
fn expires_s(deadline_ns: u64, now: Instant) -> Option<u64> {
    (deadline_ns < u64::MAX).then(|| clock::from_ns(deadline_ns).since(now).as_secs())
}
