//! Where the two processes meet: a Unix seqpacket socket over which the memory is handed on.
//!
//! Control listens, the dataplane connects, and connects again whenever the link is lost. It says
//! what it is and what sizes it expects, and hands its region over if it has one. Control answers
//! with a verdict:
//!
//! | dataplane has | control has | |
//! |---|---|---|
//! | none | none | control makes one and hands it over |
//! | none | one | control hands it over: a restarted dataplane goes on with the SAs |
//! | one | none | control adopts it: a restarted control finds the SAs |
//! | one | the same | the link was lost, nothing else |
//! | one | another | refused |
//!
//! The link then stays open and silent; that it closes tells each side that the other is gone.
//! Only processes of the same user or root are spoken to, and the socket's mode is 0600.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use num_enum::TryFromPrimitive;
use rustix::io::{Errno, IoSlice, IoSliceMut};
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use crate::bell::Bell;
use crate::layout::{LAYOUT_WORDS, Layout, MAGIC, abi};
use crate::region::{Region, RegionError};

/// How long each side waits for the other's hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(2);

/// Dataplanes waiting to be accepted at most.
const BACKLOG: i32 = 4;

/// Descriptors handed over at once: the memory and the bell.
const FDS: usize = 2;

/// Why the two did not come together.
#[derive(Debug, thiserror::Error)]
pub enum RendezvousError {
    /// The socket itself.
    #[error("the rendezvous socket {path}: {error}")]
    Socket {
        /// Its path.
        path: PathBuf,
        /// What went wrong.
        error: io::Error,
    },
    /// Another control process listens there.
    #[error("another control process is running on {0}: stop it first")]
    InUse(PathBuf),
    /// The other side's user may not.
    #[error("a process of user {0} asked for the shared memory: only the same user or root may")]
    Stranger(u32),
    /// The other side did not speak, or not this protocol.
    #[error("the other side of the rendezvous did not say a proper hello")]
    NoHello,
    /// The other process was built differently.
    #[error(
        "the other process has another version of the shared memory: install both programs from \
         the same build and restart them"
    )]
    Version,
    /// The sizes that the two were configured with differ.
    #[error(
        "the other process has the shared memory laid out as {theirs:?}, here the configuration \
         says {ours:?}: restart both processes with the same configuration"
    )]
    Layout {
        /// The sizes on this side.
        ours: Layout,
        /// The sizes on the other side.
        theirs: Layout,
    },
    /// The control process has a dataplane already.
    #[error("the control process has a dataplane already: stop it first")]
    Busy,
    /// Both sides have a region, and not the same.
    #[error("control and dataplane hold different shared memories: restart the dataplane")]
    Different,
    /// The region could not be made or adopted.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// The kernel refused a step.
    #[error("the rendezvous failed: {0}")]
    System(#[from] Errno),
}

/// What both processes hold: the memory and the bell.
#[derive(Clone)]
pub struct Bundle {
    /// The memory.
    pub region: Arc<Region>,
    /// The bell from the dataplane to control.
    pub bell: Arc<Bell>,
}

impl Bundle {
    /// A new region with its bell.
    ///
    /// # Errors
    /// [`RegionError`], or [`RendezvousError::System`] without a descriptor for the bell.
    pub fn create(layout: &Layout) -> Result<Bundle, RendezvousError> {
        let region = Arc::new(Region::create(layout)?);
        Ok(Bundle { region, bell: Arc::new(Bell::new()?) })
    }

    fn adopt(fds: [OwnedFd; FDS]) -> Result<Bundle, RendezvousError> {
        let [memory, bell] = fds;
        let region = Arc::new(Region::adopt(memory)?);
        Ok(Bundle { region, bell: Arc::new(Bell::from_fd(bell)) })
    }

    /// As the dataplane, which has no business in control's store.
    fn adopt_without_store(fds: [OwnedFd; FDS]) -> Result<Bundle, RendezvousError> {
        let [memory, bell] = fds;
        let mut region = Region::adopt(memory)?;
        region.hide_store()?;
        Ok(Bundle { region: Arc::new(region), bell: Arc::new(Bell::from_fd(bell)) })
    }

    fn fds(&self) -> [BorrowedFd<'_>; FDS] {
        [self.region.fd(), self.bell.fd()]
    }
}

/// An open link. It carries nothing more; it closes when the other process ends.
#[derive(Debug)]
pub struct Link {
    socket: OwnedFd,
}

impl Link {
    /// The socket, to wait for: it becomes readable when the other side is gone.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether the other side is gone. Does not block.
    pub fn is_gone(&self) -> bool {
        let mut octet = [0];
        let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK;
        match rustix::net::recv(&self.socket, &mut octet, flags) {
            Ok((_, octets)) => octets == 0,
            Err(Errno::AGAIN | Errno::INTR) => false,
            Err(_) => true,
        }
    }
}

/// Control's end of the rendezvous. Dropping it leaves the socket's name behind, which the next
/// control process takes over.
pub struct Listener {
    socket: OwnedFd,
    path: PathBuf,
}

impl Listener {
    /// Listens on `path`, mode 0600. A name that a dead process left behind is taken over.
    ///
    /// # Errors
    /// [`RendezvousError::InUse`] when another control process listens there;
    /// [`RendezvousError::Socket`] for the file system's reasons.
    pub fn bind(path: &Path) -> Result<Listener, RendezvousError> {
        let failed =
            |errno: Errno| RendezvousError::Socket { path: path.into(), error: errno.into() };
        let address = SocketAddrUnix::new(path).map_err(failed)?;
        let socket = seqpacket(SocketFlags::NONBLOCK)?;
        let bound = match rustix::net::bind(&socket, &address) {
            Err(Errno::ADDRINUSE) => {
                if rustix::net::connect(&seqpacket(SocketFlags::NONBLOCK)?, &address)
                    != Err(Errno::CONNREFUSED)
                {
                    return Err(RendezvousError::InUse(path.into()));
                }
                rustix::fs::unlink(path).map_err(failed)?;
                rustix::net::bind(&socket, &address)
            }
            bound => bound,
        };
        bound.map_err(failed)?;
        // Nobody can connect between bind and listen.
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::chmod(path, mode).map_err(failed)?;
        rustix::net::listen(&socket, BACKLOG).map_err(failed)?;
        Ok(Listener { socket, path: path.into() })
    }

    /// The socket, non-blocking, to wait for callers.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next dataplane that calls; `None` when none does. Waits up to two seconds for its hello.
    ///
    /// # Errors
    /// The caller was of another user or said no proper hello; it was hung up on.
    pub fn accept(&self) -> Result<Option<Caller>, RendezvousError> {
        let socket = match rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC) {
            Ok(socket) => socket,
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        check_user(&socket)?;
        set_timeouts(&socket)?;
        let (hello, fds) = receive(&socket)?;
        Ok(Some(Caller { socket, hello, fds }))
    }
}

/// A dataplane that has said hello and waits for the verdict.
pub struct Caller {
    socket: OwnedFd,
    hello: Hello,
    fds: Option<[OwnedFd; FDS]>,
}

impl Caller {
    /// Brings the two together. `own` is control's bundle, if it has one; `layout` is what
    /// control's configuration says. The bundle returned is the one to use from now on: `own`'s,
    /// the dataplane's, or a new one.
    ///
    /// # Errors
    /// [`RendezvousError`] says what does not fit; the dataplane was told the same.
    pub fn settle(
        self,
        own: Option<&Bundle>,
        layout: &Layout,
    ) -> Result<(Link, Bundle), RendezvousError> {
        match self.decide(own, layout) {
            Ok((verdict, bundle)) => {
                let region = bundle.region.layout();
                let hello = Hello::new(verdict, region, bundle.region.identity());
                let fds = (verdict == Verdict::Take).then(|| bundle.fds());
                send(&self.socket, &hello, fds.as_ref())?;
                Ok((Link { socket: self.socket }, bundle))
            }
            Err((verdict, error)) => {
                // A caller that is gone already needs no answer.
                let _ = send(&self.socket, &Hello::new(verdict, layout, 0), None);
                Err(error)
            }
        }
    }

    /// Turns the caller away because a dataplane is attached already.
    pub fn refuse(self, layout: &Layout) {
        let _ = send(&self.socket, &Hello::new(Verdict::Busy, layout, 0), None);
    }

    fn decide(
        &self,
        own: Option<&Bundle>,
        layout: &Layout,
    ) -> Result<(Verdict, Bundle), (Verdict, RendezvousError)> {
        if self.hello.abi != abi() {
            return Err((Verdict::Version, RendezvousError::Version));
        }
        let ours = own.map_or(*layout, |bundle| *bundle.region.layout());
        let theirs = self.hello.layout.ok_or((Verdict::Version, RendezvousError::NoHello))?;
        if ours != theirs {
            return Err((Verdict::Layout, RendezvousError::Layout { ours, theirs }));
        }
        let failed = |error| (Verdict::Failed, error);
        match (own, &self.fds) {
            (None, None) => Ok((Verdict::Take, Bundle::create(layout).map_err(failed)?)),
            (Some(own), None) => Ok((Verdict::Take, own.clone())),
            (Some(own), Some(_)) if own.region.identity() == self.hello.identity => {
                Ok((Verdict::Keep, own.clone()))
            }
            (Some(_), Some(_)) => Err((Verdict::Different, RendezvousError::Different)),
            (None, Some(fds)) => {
                let copies = copy(fds).map_err(|errno| failed(errno.into()))?;
                Ok((Verdict::Keep, Bundle::adopt(copies).map_err(failed)?))
            }
        }
    }
}

fn copy(fds: &[OwnedFd; FDS]) -> Result<[OwnedFd; FDS], Errno> {
    let copy = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, 3);
    Ok([copy(&fds[0])?, copy(&fds[1])?])
}

/// The dataplane's end: connects to control. `own` is the dataplane's bundle, if it has one;
/// `layout` is what its configuration says. The bundle returned is the one to use from now on.
///
/// # Errors
/// [`RendezvousError::Socket`] while no control process listens: try again later. The others say
/// what does not fit.
pub fn connect(
    path: &Path,
    own: Option<&Bundle>,
    layout: &Layout,
) -> Result<(Link, Bundle), RendezvousError> {
    let failed = |errno: Errno| RendezvousError::Socket { path: path.into(), error: errno.into() };
    let address = SocketAddrUnix::new(path).map_err(failed)?;
    let socket = seqpacket(SocketFlags::empty())?;
    set_timeouts(&socket)?;
    rustix::net::connect(&socket, &address).map_err(failed)?;
    check_user(&socket)?;
    let ours = own.map_or(*layout, |bundle| *bundle.region.layout());
    let identity = own.map_or(0, |bundle| bundle.region.identity());
    let fds = own.map(Bundle::fds);
    send(&socket, &Hello::new(Verdict::Keep, &ours, identity), fds.as_ref())?;
    let (answer, fds) = receive(&socket)?;
    let verdict = Verdict::try_from(answer.verdict).map_err(|_| RendezvousError::NoHello)?;
    let link = Link { socket };
    match (verdict, own, fds) {
        (Verdict::Keep, Some(own), _) => Ok((link, own.clone())),
        (Verdict::Take, None, Some(fds)) => Ok((link, Bundle::adopt_without_store(fds)?)),
        (Verdict::Version, ..) => Err(RendezvousError::Version),
        (Verdict::Layout, ..) => {
            let theirs = answer.layout.ok_or(RendezvousError::NoHello)?;
            Err(RendezvousError::Layout { ours, theirs })
        }
        (Verdict::Busy, ..) => Err(RendezvousError::Busy),
        (Verdict::Different, ..) => Err(RendezvousError::Different),
        _ => Err(RendezvousError::NoHello),
    }
}

/// What control says to a hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq, TryFromPrimitive)]
#[repr(u64)]
enum Verdict {
    /// Go on with the region that you have. (Also what the dataplane's own hello carries.)
    Keep = 1,
    /// Take the region that comes with this.
    Take = 2,
    /// Another version.
    Version = 3,
    /// Other sizes.
    Layout = 4,
    /// There is a dataplane already.
    Busy = 5,
    /// Another region.
    Different = 6,
    /// Control could not make or adopt the region; its log says why.
    Failed = 7,
}

/// The one message, the same in both directions.
struct Hello {
    abi: u64,
    verdict: u64,
    identity: u64,
    layout: Option<Layout>,
}

/// Words of a hello: magic, version, verdict, identity, layout.
const HELLO_WORDS: usize = 4 + LAYOUT_WORDS;
const HELLO_OCTETS: usize = HELLO_WORDS * 8;

impl Hello {
    fn new(verdict: Verdict, layout: &Layout, identity: u64) -> Hello {
        Hello { abi: abi(), verdict: verdict as u64, identity, layout: Some(*layout) }
    }

    fn encode(&self) -> [u8; HELLO_OCTETS] {
        let layout = self.layout.map_or([0; LAYOUT_WORDS], Layout::to_words);
        let words = [MAGIC, self.abi, self.verdict, self.identity].into_iter().chain(layout);
        let mut octets = [0; HELLO_OCTETS];
        for (chunk, word) in octets.as_chunks_mut::<8>().0.iter_mut().zip(words) {
            *chunk = word.to_ne_bytes();
        }
        octets
    }

    fn decode(octets: &[u8]) -> Option<Hello> {
        let octets: &[u8; HELLO_OCTETS] = octets.try_into().ok()?;
        let mut words = [0; HELLO_WORDS];
        for (word, chunk) in words.iter_mut().zip(octets.as_chunks::<8>().0) {
            *word = u64::from_ne_bytes(*chunk);
        }
        let [magic, abi, verdict, identity, layout @ ..] = words;
        let layout = Layout::from_words(layout);
        (magic == MAGIC).then_some(Hello { abi, verdict, identity, layout })
    }
}

fn seqpacket(flags: SocketFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | SocketFlags::CLOEXEC;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

fn set_timeouts(socket: &OwnedFd) -> Result<(), Errno> {
    set_socket_timeout(socket, Timeout::Recv, Some(HELLO_TIMEOUT))?;
    set_socket_timeout(socket, Timeout::Send, Some(HELLO_TIMEOUT))
}

/// The other process must be of the same user, or root's.
fn check_user(socket: &OwnedFd) -> Result<(), RendezvousError> {
    let other = socket_peercred(socket)?.uid;
    if other.is_root() || other == rustix::process::geteuid() {
        Ok(())
    } else {
        Err(RendezvousError::Stranger(other.as_raw()))
    }
}

fn send(socket: &OwnedFd, hello: &Hello, fds: Option<&[BorrowedFd<'_>; FDS]>) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if let Some(fds) = fds {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    let octets = hello.encode();
    rustix::net::sendmsg(socket, &[IoSlice::new(&octets)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive(socket: &OwnedFd) -> Result<(Hello, Option<[OwnedFd; FDS]>), RendezvousError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut octets = [0; HELLO_OCTETS + 1];
    let read = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut octets)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )
    .map_err(|errno| match errno {
        Errno::AGAIN => RendezvousError::NoHello,
        errno => errno.into(),
    })?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    let hello = Hello::decode(&octets[..read.bytes]).ok_or(RendezvousError::NoHello)?;
    match fds.len() {
        0 => Ok((hello, None)),
        _ => Ok((hello, Some(fds.try_into().map_err(|_| RendezvousError::NoHello)?))),
    }
}
