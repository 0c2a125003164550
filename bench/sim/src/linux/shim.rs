//! The shim: links between the legs, in real time.

use std::time::Duration;

use culvert_tcpstack::Instant;

use super::Addresses;
use super::leg::Leg;
use crate::link::{Link, LinkConfig, LinkStats};
use crate::packet;
use crate::random::Random;

/// Left legs by their host's addresses, one right leg, and a link each way that all share.
pub struct Shim {
    left: Vec<(Addresses, Leg)>,
    right: Leg,
    there: Link,
    back: Link,
}

/// Puts TCP on a link. What else hosts have to say, most of it when they come up, would shift which
/// of the segments are lost.
fn push(link: &mut Link, now: Instant, packet: &[u8]) {
    if packet::is_tcp(packet) {
        link.push(now, packet.to_vec());
    }
}

impl Shim {
    pub(super) fn new(left: Vec<(Addresses, Leg)>, right: Leg) -> Self {
        let idle = LinkConfig::clean(1, Duration::ZERO);
        let link = || Link::new(idle, Random::new(0));
        Self { left, right, there: link(), back: link() }
    }

    /// Other links from now on, with nothing on them.
    pub fn set_links(&mut self, there: LinkConfig, back: LinkConfig, seed: u64) {
        let mut random = Random::new(seed);
        self.there = Link::new(there, random.fork()).with_acks_apart();
        self.back = Link::new(back, random.fork());
    }

    /// What became of packets to the right and back.
    #[must_use]
    pub fn stats(&self) -> [LinkStats; 2] {
        [self.there.stats(), self.back.stats()]
    }

    /// Moves what has come and what is due; whether there was anything.
    pub fn turn(&mut self, now: Instant) -> bool {
        let (there, back) = (&mut self.there, &mut self.back);
        let mut busy = false;
        for (_, leg) in &mut self.left {
            busy |= leg.receive(|packet, _| push(there, now, packet));
        }
        busy |= self.right.receive(|packet, _| push(back, now, packet));
        while let Some(packet) = there.pop(now) {
            self.right.send(&packet);
            busy = true;
        }
        while let Some(packet) = back.pop(now) {
            let to = packet::addresses(&packet).map(|(_, to)| to);
            let is_to = |host: &Addresses| to.is_some_and(|to| host.like(to) == to);
            if let Some((_, leg)) = self.left.iter_mut().find(|(host, _)| is_to(host)) {
                leg.send(&packet);
            }
            busy = true;
        }
        self.left.iter_mut().for_each(|(_, leg)| leg.flush());
        self.right.flush();
        busy
    }
}
