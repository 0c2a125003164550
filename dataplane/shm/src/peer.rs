//! Peer slots: one for each IKE SA, with the path that the packets of its CHILD SAs take.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::cell::Cell;
use crate::dscp::Dscp;
use crate::slot::Slot;
use crate::types::{Name, Path};
use crate::words::{Record, WordReader, WordWriter};

/// What control says of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerConfig {
    /// The connection's name in the configuration.
    pub connection: Name,
    /// The peer's identity, as IKE authenticated it.
    pub remote_id: Name,
    /// The worker that owns the peer and all of its SAs: over TCP, the connection's.
    pub owner: u16,
    /// The path to begin with. The owner moves it as authentic packets arrive from elsewhere.
    pub path: Path,
    /// The service level of the packets to it, which in UDP and natively otherwise have that of the
    /// packet inside.
    pub dscp: Option<Dscp>,
}

/// In place of a DSCP where there is none.
const NO_DSCP: u16 = u16::MAX;

impl Record for PeerConfig {
    const WORDS: usize = 2 * Name::WORDS + 1 + Path::WORDS;

    fn encode(&self, out: &mut WordWriter<'_>) {
        self.connection.encode(out);
        self.remote_id.encode(out);
        let dscp = self.dscp.map_or(NO_DSCP, |dscp| dscp.bits().into());
        out.put_quad([self.owner, dscp, 0, 0]);
        self.path.encode(out);
    }

    fn decode(words: &mut WordReader<'_>) -> Option<PeerConfig> {
        let (connection, remote_id) = (Name::decode(words)?, Name::decode(words)?);
        let [owner, dscp, ..] = words.take_quad()?;
        let dscp = match dscp {
            NO_DSCP => None,
            bits => Some(Dscp::try_from(bits).ok()?),
        };
        Some(PeerConfig { connection, remote_id, owner, path: Path::decode(words)?, dscp })
    }
}

/// A path and the peer's generation that it is of.
struct MovingPath {
    generation: u64,
    path: Path,
}

impl Record for MovingPath {
    const WORDS: usize = 1 + Path::WORDS;

    fn encode(&self, out: &mut WordWriter<'_>) {
        out.put(self.generation);
        self.path.encode(out);
    }

    fn decode(words: &mut WordReader<'_>) -> Option<MovingPath> {
        Some(MovingPath { generation: words.take()?, path: Path::decode(words)? })
    }
}

/// The owner worker's half of a peer slot.
#[repr(C, align(64))]
pub(crate) struct PeerMoving {
    path: Cell<{ MovingPath::WORDS }>,
    last_authentic_ns: AtomicU64,
}

/// A peer slot: control's half, then the worker's.
#[repr(C, align(64))]
pub(crate) struct PeerSlot {
    pub(crate) config: Slot<{ PeerConfig::WORDS }>,
    pub(crate) moving: PeerMoving,
}

/// Where a peer is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerState {
    /// The path that its packets take.
    pub path: Path,
    /// When an authentic packet last came from it, [`crate::monotonic_ns`]; 0: none yet.
    pub last_authentic_ns: u64,
}

impl PeerMoving {
    /// Where the peer of this generation is; `None` before its owner has taken it up.
    pub(crate) fn state(&self, generation: u32) -> Option<PeerState> {
        let moving = MovingPath::decode(&mut WordReader::new(&self.path.read()?))?;
        (moving.generation == u64::from(generation)).then(|| PeerState {
            path: moving.path,
            last_authentic_ns: self.last_authentic_ns.load(Ordering::Relaxed),
        })
    }
}

/// The owner worker's hand on a peer slot. Not `Sync`: it belongs to its worker's thread.
#[derive(Clone, Copy)]
pub struct PeerWriter<'a> {
    moving: &'a PeerMoving,
    generation: u32,
    _one_thread: std::marker::PhantomData<&'a std::cell::Cell<()>>,
}

impl<'a> PeerWriter<'a> {
    pub(crate) fn new(moving: &'a PeerMoving, generation: u32) -> PeerWriter<'a> {
        PeerWriter { moving, generation, _one_thread: std::marker::PhantomData }
    }

    /// Begins with the configuration's path, unless a path of this generation is there already.
    pub(crate) fn take_up(&self, config: &PeerConfig) -> Path {
        if let Some(state) = self.moving.state(self.generation) {
            return state.path;
        }
        self.moving.last_authentic_ns.store(0, Ordering::Relaxed);
        self.set_path(config.path);
        config.path
    }

    /// Moves the peer to another path. Cheap enough for each move, too dear for each packet.
    pub fn set_path(&self, path: Path) {
        let mut words = [0; MovingPath::WORDS];
        let moving = MovingPath { generation: u64::from(self.generation), path };
        moving.encode(&mut WordWriter::new(&mut words));
        self.moving.path.write(&words);
    }

    /// Notes that an authentic packet came, [`crate::monotonic_ns`].
    #[inline]
    pub fn authentic(&self, now_ns: u64) {
        self.moving.last_authentic_ns.store(now_ns, Ordering::Relaxed);
    }
}
