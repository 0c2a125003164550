//! The gateway's peers: a TCP stack of their own, and the other end of SAs.

use std::net::IpAddr;
use std::sync::atomic::AtomicU64;

use culvert_dataplane::net::{checksum, ip as ip_format};
use culvert_esp::{Algorithm, InboundSa, OpenError, OutboundSa, Provider, ReplayWindow};
use culvert_shm::sa::Algorithm as ShmAlgorithm;
use culvert_shm::{
    ConnRef, Dscp, KeyMaterial, Mode, Name, Path, PeerConfig, Policy, Prefix, SaConfig, Selector,
    SelectorList, SlotRef, Transport, TransportEnds,
};
use culvert_tcpstack::framing::{self, Decoder, Frame, Gathering};
use culvert_tcpstack::{
    ConnId, EphemeralPorts, Event, Instant, Packet, RxChecksum, SEGMENTATION_BYTES_MAX, Stack,
    StackConfig, Transmit, TxChecksum,
};

use crate::fixture::{Gateway, OUTER_V4, PEER_V4};
use crate::packets::{ip, mark_congestion};

/// Another host's TCP.
pub(crate) struct Peer {
    pub(crate) stack: Stack,
    /// What it has read of each connection and not yet looked at is kept by the caller.
    pub(crate) events: Vec<Event>,
    /// The worker whose queue its packets reach.
    pub(crate) worker: usize,
    /// Its device and the gateway's fill in checksums, and neither cuts or coalesces.
    device: bool,
    /// Its packets meet congestion on their way.
    pub(crate) congested: bool,
    /// Octets of the longest packet that it got.
    pub(crate) longest: usize,
}

#[derive(Default)]
pub(crate) struct Packets(pub(crate) Vec<Vec<u8>>);

impl Transmit for Packets {
    fn has_room(&mut self) -> bool {
        true
    }

    fn packet(&mut self, packet: Packet, mut fill: impl FnMut(&mut [u8])) {
        let mut octets = vec![0; packet.bytes];
        fill(&mut octets);
        self.0.push(octets);
    }
}

impl Peer {
    /// `number` keeps the ports of several peers apart.
    pub(crate) fn new(number: u8) -> Self {
        Self::made(number, StackConfig::default())
    }

    /// One that sends and takes packets of many segments.
    pub(crate) fn with_long_packets(number: u8) -> Self {
        let segmentation_bytes = SEGMENTATION_BYTES_MAX;
        let tx_checksum = TxChecksum::Device;
        Self::made(
            number,
            StackConfig { tx_checksum, segmentation_bytes, ..StackConfig::default() },
        )
    }

    fn made(number: u8, config: StackConfig) -> Self {
        let first = 40_000 + 100 * u16::from(number);
        let ports = EphemeralPorts { first, last: first + 99, stride: 1, offset: 0 };
        let device = config.tx_checksum == TxChecksum::Device;
        let config = StackConfig { ephemeral_ports: ports, ..config };
        let stack = Stack::new(config, [number; 32]).unwrap();
        Self { stack, events: Vec::new(), worker: 0, device, congested: false, longest: 0 }
    }

    /// Carries packets both ways until nobody has anything to say.
    pub(crate) fn exchange(&mut self, gateway: &mut Gateway) {
        self.exchange_narrow(gateway, usize::MAX);
    }

    /// The same, over a path that larger packets from the gateway do not pass.
    pub(crate) fn exchange_narrow(&mut self, gateway: &mut Gateway, mtu: usize) {
        for _ in 0..200 {
            let now = Instant(gateway.now_ns / 1000);
            if self.stack.poll_timeout().is_some_and(|at| at <= now) {
                self.stack.handle_timeout(now);
            }
            let mut out = Packets::default();
            self.stack.poll_transmit(now, &mut out);
            for packet in &mut out.0 {
                if self.device {
                    fill_checksum(packet);
                }
                if self.congested {
                    mark_congestion(packet);
                }
                gateway.outer_packet_to(self.worker, packet);
            }
            gateway.turn();
            let mut packets = gateway.outer_packets();
            for packet in packets.iter_mut().filter(|packet| packet.len() <= mtu) {
                if self.device {
                    fill_checksum(packet);
                }
                self.longest = self.longest.max(packet.len());
                self.stack.handle_segment(now, packet, RxChecksum::Unknown, &mut |_, _| 0);
            }
            self.events.extend(std::iter::from_fn(|| self.stack.poll_event()));
            if out.0.is_empty() && packets.is_empty() {
                break;
            }
            // Delayed acknowledgements fall due.
            gateway.now_ns += 1_000_000;
        }
    }

    /// Opens a connection to the gateway.
    pub(crate) fn connect(&mut self, gateway: &mut Gateway, port: u16) -> ConnId {
        self.connect_from(gateway, PEER_V4, OUTER_V4, port)
    }

    pub(crate) fn connect_from(
        &mut self,
        gateway: &mut Gateway,
        local: &str,
        remote: &str,
        port: u16,
    ) -> ConnId {
        let now = Instant(gateway.now_ns / 1000);
        let remote = (ip(remote), port).into();
        let id = self.stack.connect(now, ip(local), remote).unwrap();
        self.exchange(gateway);
        assert!(self.opened(id), "no connection to port {port}");
        id
    }

    fn opened(&self, id: ConnId) -> bool {
        self.events
            .iter()
            .any(|event| matches!(event, Event::Opened { id: other, .. } if *other == id))
    }

    /// Whether the gateway has closed a connection.
    pub(crate) fn closed(&self, id: ConnId) -> bool {
        self.events
            .iter()
            .any(|event| matches!(event, Event::Closed { id: other, .. } if *other == id))
    }

    /// Writes octets to a stream, in a segment of their own.
    pub(crate) fn send(&mut self, gateway: &mut Gateway, id: ConnId, octets: &[u8]) {
        let _ = self.stack.send_with(id, octets.len(), |out| {
            out.copy_from_slice(octets);
            octets.len()
        });
        self.exchange(gateway);
    }

    /// Everything that has come on a connection.
    pub(crate) fn read(&mut self, id: ConnId) -> Vec<u8> {
        let mut read = Vec::new();
        while let Ok(1..) = self.stack.recv(id, |octets| {
            read.extend_from_slice(octets);
            octets.len()
        }) {}
        read
    }

    /// A connection whose prefix has been sent, and what control was told of it.
    pub(crate) fn begin(&mut self, gateway: &mut Gateway) -> (ConnId, ConnRef) {
        let id = self.connect(gateway, 4500);
        self.send(gateway, id, &framing::PREFIX);
        let told = gateway.told();
        let Some(crate::fixture::Told::Opened { conn, originator: false, .. }) = told.last() else {
            panic!("control was not told of the connection: {told:?}");
        };
        (id, *conn)
    }
}

/// What a device does for a TCP packet.
fn fill_checksum(packet: &mut [u8]) {
    let header = ip_format::parse(packet).unwrap();
    checksum::fill(header.pseudo(), header.upper_mut(packet), 16, false);
}

/// An ESP packet in its frame.
pub(crate) fn esp_frame(packet: &[u8]) -> Vec<u8> {
    [&framing::esp_header(packet.len()).unwrap()[..], packet].concat()
}

/// An IKE message in its frame.
pub(crate) fn ike_frame(message: &[u8]) -> Vec<u8> {
    [&framing::ike_header(message.len()).unwrap()[..], message].concat()
}

/// An IKE message of `len` octets, as far as a worker looks into it.
pub(crate) fn ike_message(len: usize) -> Vec<u8> {
    let mut message = vec![0x55; len];
    message[24..28].copy_from_slice(&(len as u32).to_be_bytes());
    message
}

/// Frames of a responder's stream.
pub(crate) fn frames(stream: &[u8]) -> Vec<Vec<u8>> {
    let mut stream = stream.to_vec();
    let (mut decoder, mut gathering) = (Decoder::for_originator(), Gathering::new());
    let mut rest = &mut stream[..];
    let mut frames = Vec::new();
    while let Some(frame) = decoder.next_frame(&mut gathering, &mut rest).unwrap() {
        frames.push(match frame {
            Frame::Ike(message) | Frame::Esp(message) => message.to_vec(),
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(decoder.partial_bytes(), 0);
    frames
}

/// The peer's end of an SA pair.
pub(crate) struct Sa {
    pub(crate) slot: SlotRef,
    pub(crate) peer: SlotRef,
    pub(crate) policy: SlotRef,
    out: OutboundSa,
    into: InboundSa,
    next: u64,
    top: AtomicU64,
    bits: [AtomicU64; 1],
}

const KEY_IN: [u8; 20] = [0x11; 20];
const KEY_OUT: [u8; 20] = [0x22; 20];
const SPI_OUT: u32 = 0xdead_beef;

/// What an SA of a test protects: everything between the two networks, both families.
pub(crate) struct Wanted {
    pub(crate) path: Path,
    pub(crate) owner: u16,
    pub(crate) esn: bool,
    pub(crate) deadline_ns: u64,
    /// Not the networks, but what the two ends say to each other.
    pub(crate) transport: Option<TransportEnds>,
    /// Service level of the peer's packets.
    pub(crate) dscp: Option<Dscp>,
    /// All addresses on both sides, not the networks.
    pub(crate) anything: bool,
}

impl Wanted {
    pub(crate) fn by(path: Path) -> Self {
        let (deadline_ns, transport, dscp) = (u64::MAX, None, None);
        Self { path, owner: 0, esn: true, deadline_ns, transport, dscp, anything: false }
    }

    /// In transport mode between the ends of `path`.
    pub(crate) fn between_ends(path: Path) -> Self {
        let (local, remote) = (path.local.ip(), path.remote.ip());
        let ends = TransportEnds { local, remote, local_at_peer: local, remote_at_peer: remote };
        Self { transport: Some(ends), ..Self::by(path) }
    }
}

/// A path between the usual addresses.
pub(crate) fn path(transport: Transport, conn: Option<ConnRef>) -> Path {
    let port = if transport == Transport::Native { 0 } else { 4500 };
    Path {
        transport,
        local: (ip(OUTER_V4), port).into(),
        remote: (ip(PEER_V4), port).into(),
        conn,
        pinned: false,
    }
}

impl Sa {
    /// Installs a peer, an SA pair and its policies as control does.
    pub(crate) fn install(gateway: &mut Gateway, wanted: Wanted) -> Self {
        let Wanted { path, owner, esn, deadline_ns, transport, dscp, anything } = wanted;
        let control = &mut gateway.control;
        let peer = PeerConfig {
            connection: Name::new("branch"),
            remote_id: Name::new("branch.example"),
            owner,
            path,
            dscp,
        };
        let peer = control.install_peer(&peer).unwrap();
        let (slot, spi_in) = control.reserve_sa(0x1234_5600).unwrap();
        let net = |v4: bool, first: &str, last: &str| {
            assert_eq!(ip(first).is_ipv4(), v4);
            if anything {
                return if v4 { Selector::ANY_V4 } else { Selector::ANY_V6 };
            }
            Selector::new(ip(first), ip(last), 0, (0, u16::MAX)).unwrap()
        };
        let local = [net(true, "10.1.0.0", "10.1.0.255"), net(false, "fd00:1::", "fd00:1::ffff")];
        let remote = [net(true, "10.2.0.0", "10.2.0.255"), net(false, "fd00:2::", "fd00:2::ffff")];
        let config = SaConfig {
            peer,
            owner,
            algorithm: ShmAlgorithm::Aes128Gcm16,
            esn,
            mode: transport.map_or(Mode::Tunnel, Mode::Transport),
            replay_window: 64,
            spi_in,
            spi_out: SPI_OUT,
            keymat_in: KeyMaterial::new(&KEY_IN).unwrap(),
            keymat_out: KeyMaterial::new(&KEY_OUT).unwrap(),
            name: Name::new("net"),
            created_ns: 0,
            deadline_ns,
            local: SelectorList::new(&one_or(&local, transport.map(|ends| ends.local))).unwrap(),
            remote: SelectorList::new(&one_or(&remote, transport.map(|ends| ends.remote))).unwrap(),
        };
        control.install_sa(slot, &config).unwrap();
        let policy = |local: Selector, remote: &str, length: u8| Policy {
            remote: Prefix::new(ip(remote), length).unwrap(),
            remote_ports: (0, u16::MAX),
            local,
            sa: slot,
            owner,
            priority: 0,
        };
        let first = if let Some(TransportEnds { local: own, remote, .. }) = transport {
            let length = if own.is_ipv4() { 32 } else { 128 };
            let own = one_or(&local, Some(own))[0];
            control.install_policy(&policy(own, &remote.to_string(), length)).unwrap()
        } else {
            control.install_policy(&policy(local[1], "fd00:2::", 112)).unwrap();
            control.install_policy(&policy(local[0], "10.2.0.0", 24)).unwrap()
        };
        gateway.turn();
        let (provider, algorithm) = (Provider::AesGcm, Algorithm::Aes128Gcm16);
        Self {
            slot,
            peer,
            policy: first,
            out: OutboundSa::new(provider, algorithm, spi_in, &KEY_IN, esn).unwrap(),
            into: InboundSa::new(provider, algorithm, SPI_OUT, &KEY_OUT, esn).unwrap(),
            next: 1,
            top: AtomicU64::new(0),
            bits: [AtomicU64::new(0)],
        }
    }

    /// Seals an inner packet with the next sequence number.
    pub(crate) fn seal(&mut self, inner: &[u8]) -> Vec<u8> {
        self.next += 1;
        self.seal_as(self.next - 1, inner)
    }

    /// Seals an inner packet with this sequence number.
    pub(crate) fn seal_as(&self, sequence: u64, inner: &[u8]) -> Vec<u8> {
        let next_header = if inner[0] >> 4 == 4 { 4 } else { 41 };
        self.seal_data(sequence, next_header, inner)
    }

    /// Seals data of this protocol with this sequence number.
    pub(crate) fn seal_data(&self, sequence: u64, next_header: u8, data: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; OutboundSa::sealed_len(data.len())];
        self.out.seal(sequence, next_header, data, &mut packet).unwrap();
        packet
    }

    /// Opens a packet of the gateway's in transport mode: protocol and data.
    pub(crate) fn open_data(&self, packet: &[u8]) -> (u8, Vec<u8>) {
        let mut packet = packet.to_vec();
        let window = ReplayWindow::new(&self.top, &self.bits, 64).unwrap();
        let opened = self.into.open(&mut packet, &window).unwrap();
        (opened.next_header, packet[opened.inner].to_vec())
    }

    /// Opens a packet of the gateway's: sequence number and inner packet.
    pub(crate) fn open(&self, packet: &[u8]) -> Result<(u64, Vec<u8>), OpenError> {
        let mut packet = packet.to_vec();
        let window = ReplayWindow::new(&self.top, &self.bits, 64).unwrap();
        let opened = self.into.open(&mut packet, &window)?;
        Ok((opened.sequence, packet[opened.inner].to_vec()))
    }
}

/// A selector of one address, or those given.
fn one_or(networks: &[Selector], address: Option<IpAddr>) -> Vec<Selector> {
    address.map_or(networks.to_vec(), |address| {
        vec![Selector::new(address, address, 0, (0, u16::MAX)).unwrap()]
    })
}

/// The path of an address pair other than the usual one.
pub(crate) fn path_between(transport: Transport, local: IpAddr, remote: IpAddr) -> Path {
    let port = if transport == Transport::Native { 0 } else { 4500 };
    Path {
        transport,
        local: (local, port).into(),
        remote: (remote, port).into(),
        conn: None,
        pinned: false,
    }
}
