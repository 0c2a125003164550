//! What lies between two dataplanes: it carries what one of them sends to the other.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use culvert_shm::{CloseReason, Path as EspPath, Transport, Up};

use super::{Dataplane, Out, take};

/// Two dataplanes and what lies between them.
pub(crate) struct Network {
    ends: Arc<Mutex<[Dataplane; 2]>>,
    udp_left: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Network {
    /// Joins two dataplanes. `passes_udp` says whether UDP gets through.
    pub(crate) fn join(left: Dataplane, right: Dataplane, passes_udp: bool) -> Self {
        let ends = Arc::new(Mutex::new([left, right]));
        let stop = Arc::new(AtomicBool::new(false));
        let udp_left = Arc::new(AtomicU32::new(datagrams(passes_udp)));
        let thread = std::thread::spawn({
            let (ends, stop) = (Arc::clone(&ends), Arc::clone(&stop));
            let udp_left = Arc::clone(&udp_left);
            move || {
                while !stop.load(Ordering::Relaxed) {
                    carry(&mut ends.lock().expect("no panic"), &udp_left);
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        Self { ends, udp_left, stop, thread: Some(thread) }
    }

    /// Lets UDP through from now on, or not.
    pub(crate) fn pass_udp(&self, passes: bool) {
        self.pass_datagrams(datagrams(passes));
    }

    /// Lets so many more datagrams through, those of both ends together.
    pub(crate) fn pass_datagrams(&self, count: u32) {
        self.udp_left.store(count, Ordering::Relaxed);
    }

    /// Both dataplanes, held still.
    pub(crate) fn ends(&self) -> MutexGuard<'_, [Dataplane; 2]> {
        self.ends.lock().expect("no panic in the network")
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in it has failed the test already.
            let _ = thread.join();
        }
    }
}

/// How many datagrams get through: more than a test sends, or none.
fn datagrams(passes_udp: bool) -> u32 {
    if passes_udp { u32::MAX } else { 0 }
}

fn carry(ends: &mut [Dataplane; 2], udp_left: &AtomicU32) {
    let [left, right] = ends;
    for out in take(left) {
        arrive(left, right, out, udp_left);
    }
    for out in take(right) {
        arrive(right, left, out, udp_left);
    }
}

/// The address of one of the two gateways.
fn outer_address(number: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, number])
}

fn arrive(from: &mut Dataplane, to: &mut Dataplane, out: Out, udp_left: &AtomicU32) {
    match out {
        Out::Message(path, payload) => {
            let conn = match path.conn {
                Some(conn) => match from.conns.get(&conn) {
                    Some(other) => Some(*other),
                    None => return,
                },
                None => None,
            };
            let one_less = |left: u32| left.checked_sub(1);
            if path.transport != Transport::Tcp
                && udp_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_err()
            {
                return;
            }
            let (local, remote) = (path.remote, path.local);
            let path = EspPath { transport: path.transport, local, remote, conn, pinned: false };
            to.send(&Up::IkeMessage { path, payload: &payload });
        }
        Out::Connect { token, local, remote, congestion } => {
            // Without one the worker takes the route's.
            let own =
                [outer_address(1), outer_address(2)].into_iter().find(|own| *own != remote.ip());
            let local = SocketAddr::new(
                local.or(own).expect("one of two"),
                40_000 + u16::try_from(from.next_conn).expect("few connections"),
            );
            let theirs = to.open(remote, local, None);
            let ours = from.open(local, remote, Some(token));
            from.govern(ours, congestion);
            from.conns.insert(ours, theirs);
            to.conns.insert(theirs, ours);
        }
        Out::Close(conn) => {
            from.closed.push(conn);
            from.close(conn, CloseReason::Local);
            if let Some(theirs) = from.conns.remove(&conn) {
                to.conns.remove(&theirs);
                to.close(theirs, CloseReason::Peer);
            }
        }
    }
}
