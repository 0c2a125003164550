//! What the tests of the shared memory have in common.
#![allow(dead_code, reason = "not every test needs everything")]

use culvert_shm::sa::Algorithm;
use culvert_shm::{
    KeyMaterial, Layout, Mode, Name, Path, PeerConfig, SaConfig, Selector, SelectorList, SlotRef,
    Transport,
};

/// A region of two workers and small tables.
pub(crate) const LAYOUT: Layout = Layout {
    workers: 2,
    sa_slots: 16,
    policy_slots: 8,
    peer_slots: 8,
    conn_slots: 4,
    ring_bytes: 1 << 18,
};

/// An SA whose parts all follow from its SPI, so that a reader can tell whether it is whole.
pub(crate) fn sa(spi: u32, owner: u16) -> SaConfig {
    let keymat: Vec<u8> = (0..36).map(|at| (spi >> (at % 4 * 8)) as u8 ^ at as u8).collect();
    let material = || KeyMaterial::new(&keymat).expect("36 octets");
    SaConfig {
        peer: SlotRef { index: 1, generation: spi },
        owner,
        algorithm: Algorithm::Aes256Gcm16,
        esn: true,
        mode: Mode::Tunnel,
        replay_window: 1024,
        spi_in: spi,
        spi_out: !spi,
        keymat_in: material(),
        keymat_out: material(),
        name: Name::new(&format!("child {spi}")),
        created_ns: u64::from(spi),
        deadline_ns: u64::MAX,
        local: SelectorList::new(&[Selector::ANY_V4]).expect("one selector"),
        remote: SelectorList::new(&[Selector::ANY_V4, Selector::ANY_V6]).expect("two selectors"),
    }
}

/// Whether an SA is whole, as [`sa`] makes it.
pub(crate) fn is_whole(config: &SaConfig) -> bool {
    let want = sa(config.spi_in, config.owner);
    config.spi_out == want.spi_out
        && config.peer == want.peer
        && config.name == want.name
        && config.created_ns == want.created_ns
        && config.keymat_in.as_bytes() == want.keymat_in.as_bytes()
        && config.keymat_out.as_bytes() == want.keymat_out.as_bytes()
        && (config.local, config.remote) == (want.local, want.remote)
}

/// A peer over UDP, whose port tells its path apart.
pub(crate) fn peer(owner: u16) -> PeerConfig {
    let (connection, remote_id) = (Name::new("branch"), Name::new("branch.example"));
    PeerConfig { connection, remote_id, owner, path: path(4500), dscp: None }
}

/// A path that a port tells apart from others.
pub(crate) fn path(port: u16) -> Path {
    let local = "192.0.2.1:4500".parse().expect("an address");
    let remote = std::net::SocketAddr::from(([198, 51, 100, 7], port));
    Path { transport: Transport::Udp, local, remote, conn: None, pinned: false }
}
