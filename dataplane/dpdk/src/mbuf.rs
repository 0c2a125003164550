//! One packet buffer, owned.
//!
//! Fields are read and written in place: a call into C for each of them would cost as much as the
//! work. A packet is one mbuf or a chain of segments; [`Mbuf::data`] is the first segment, and
//! those who need all of a packet in one piece call [`Mbuf::linearize`] first.

use crate::{ChecksumStatus, TxOffload, pool::HEADROOM};
use std::{fmt, marker::PhantomData, mem, ptr::NonNull, slice};

/// Flags that say whose the buffer is (some drivers attach their own), not what the packet is:
/// without them it would be freed the wrong way.
const BUFFER_FLAGS: u64 =
    dpdk_sys::CULVERT_RTE_MBUF_F_EXTERNAL | dpdk_sys::CULVERT_RTE_MBUF_F_INDIRECT;

/// A packet buffer that has one owner; dropping it returns it to its pool.
///
/// It may be sent to other threads (rings between workers), and freed on any.
#[repr(transparent)]
pub struct Mbuf(NonNull<dpdk_sys::rte_mbuf>);

// SAFETY: an Mbuf is the only owner of its buffer, and pools take buffers back from any thread.
unsafe impl Send for Mbuf {}
// SAFETY: `&Mbuf` only reads, and nobody writes while it is borrowed.
unsafe impl Sync for Mbuf {}

impl Mbuf {
    /// # Safety
    /// `raw` is a valid mbuf with a reference count of one whose owner gives it up.
    #[inline]
    pub(crate) unsafe fn from_raw(raw: NonNull<dpdk_sys::rte_mbuf>) -> Self {
        Self(raw)
    }

    #[inline]
    fn raw(&self) -> &dpdk_sys::rte_mbuf {
        // SAFETY: valid and ours for as long as `self` lives.
        unsafe { self.0.as_ref() }
    }

    #[inline]
    fn raw_mut(&mut self) -> &mut dpdk_sys::rte_mbuf {
        // SAFETY: valid, and ours alone.
        unsafe { self.0.as_mut() }
    }

    /// Octets of the whole packet, over all segments.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.raw().pkt_len as usize
    }

    /// Whether the packet has no octets.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.raw().pkt_len == 0
    }

    /// Whether [`Mbuf::data`] is the whole packet.
    #[inline]
    #[must_use]
    pub fn is_contiguous(&self) -> bool {
        self.raw().nb_segs == 1
    }

    /// The octets of the first segment.
    #[inline]
    #[must_use]
    pub fn data(&self) -> &[u8] {
        segment_data(self.raw())
    }

    /// The octets of the first segment, to be changed in place.
    #[inline]
    #[must_use]
    pub fn data_mut(&mut self) -> &mut [u8] {
        let raw = self.raw_mut();
        // SAFETY: `data_off` and `data_len` lie within the buffer, which is initialised (it was
        // mapped as zeroes) and ours alone.
        unsafe { slice::from_raw_parts_mut(data_start(raw), raw.data_len as usize) }
    }

    /// Free octets in front of the data: what [`Mbuf::prepend`] can take.
    #[inline]
    #[must_use]
    pub fn headroom(&self) -> usize {
        self.raw().data_off as usize
    }

    /// Free octets behind the data of the last segment: what [`Mbuf::append`] can take.
    #[inline]
    #[must_use]
    pub fn tailroom(&self) -> usize {
        tailroom(self.last_segment())
    }

    /// Grows the packet by `count` octets in front and returns them, or `None` when the headroom
    /// is too small. They hold what an earlier packet left there: write all of them.
    #[inline]
    pub fn prepend(&mut self, count: usize) -> Option<&mut [u8]> {
        if count > self.headroom() {
            return None;
        }
        let raw = self.raw_mut();
        raw.data_off -= count as u16;
        raw.data_len += count as u16;
        raw.pkt_len += count as u32;
        self.data_mut().get_mut(..count)
    }

    /// Grows the packet by `count` octets behind and returns them, or `None` when the tailroom of
    /// the last segment is too small. They hold what an earlier packet left there: write all of
    /// them.
    #[inline]
    pub fn append(&mut self, count: usize) -> Option<&mut [u8]> {
        let mut last = self.last_segment_ptr();
        // SAFETY: a segment of this packet, ours alone.
        let segment = unsafe { last.as_mut() };
        if count > tailroom(segment) {
            return None;
        }
        let old_len = segment.data_len as usize;
        segment.data_len += count as u16;
        // SAFETY: `count` octets behind the old data lie within the buffer, checked above.
        let added = unsafe { slice::from_raw_parts_mut(data_start(segment).add(old_len), count) };
        self.raw_mut().pkt_len += count as u32;
        Some(added)
    }

    /// Appends a copy of `octets`; `false`, and nothing changed, when the tailroom is too small.
    #[inline]
    #[must_use]
    pub fn extend_from_slice(&mut self, octets: &[u8]) -> bool {
        match self.append(octets.len()) {
            Some(added) => {
                added.copy_from_slice(octets);
                true
            }
            None => false,
        }
    }

    /// Removes `count` octets in front; `false`, and nothing changed, when the first segment has
    /// fewer.
    #[inline]
    #[must_use]
    pub fn adj(&mut self, count: usize) -> bool {
        let raw = self.raw_mut();
        if count > raw.data_len as usize {
            return false;
        }
        raw.data_off += count as u16;
        raw.data_len -= count as u16;
        raw.pkt_len -= count as u32;
        true
    }

    /// Removes `count` octets behind; `false`, and nothing changed, when the last segment has
    /// fewer.
    #[inline]
    #[must_use]
    pub fn trim(&mut self, count: usize) -> bool {
        let mut last = self.last_segment_ptr();
        // SAFETY: a segment of this packet, ours alone.
        let segment = unsafe { last.as_mut() };
        if count > segment.data_len as usize {
            return false;
        }
        segment.data_len -= count as u16;
        self.raw_mut().pkt_len -= count as u32;
        true
    }

    /// Empties a packet of one segment and restores its headroom, for use with other contents;
    /// further segments are freed.
    pub fn reset(&mut self) {
        let raw = self.raw_mut();
        let rest = NonNull::new(mem::replace(&mut raw.next, std::ptr::null_mut()));
        raw.nb_segs = 1;
        raw.data_off = HEADROOM.min(raw.buf_len);
        raw.data_len = 0;
        raw.pkt_len = 0;
        raw.ol_flags &= BUFFER_FLAGS;
        // SAFETY: the rest of the chain was this packet's, and is cut off now.
        drop(rest.map(|rest| unsafe { Self::from_raw(rest) }));
    }

    /// Brings the whole packet into the first segment. `false`, and nothing changed, when its
    /// buffer is too small.
    #[inline]
    #[must_use]
    pub fn linearize(&mut self) -> bool {
        // SAFETY: a valid mbuf of ours.
        self.is_contiguous()
            || unsafe { dpdk_sys::culvert_rte_pktmbuf_linearize(self.0.as_ptr()) == 0 }
    }

    /// Puts another packet behind this one as further segments. Send it only through ports with
    /// [`crate::Offloads::tx_segments`].
    ///
    /// # Errors
    /// Gives `tail` back when there would be more segments than DPDK allows (65,535).
    pub fn chain(&mut self, tail: Self) -> Result<(), Self> {
        // SAFETY: both are valid and ours; on success the chain owns the tail.
        let status =
            unsafe { dpdk_sys::culvert_rte_pktmbuf_chain(self.0.as_ptr(), tail.0.as_ptr()) };
        if status != 0 {
            return Err(tail);
        }
        mem::forget(tail);
        Ok(())
    }

    /// The octets of each segment, first to last.
    #[inline]
    #[must_use]
    pub fn segments(&self) -> Segments<'_> {
        Segments { next: self.0.as_ptr(), packet: PhantomData }
    }

    /// Copies octets of the packet from `offset` on into `out`, over segment borders, and returns
    /// how many there were.
    #[must_use]
    pub fn read(&self, offset: usize, out: &mut [u8]) -> usize {
        let mut skip = offset;
        let mut copied = 0;
        for segment in self.segments() {
            let octets = segment.get(skip..).unwrap_or_default();
            skip = skip.saturating_sub(segment.len());
            let count = octets.len().min(out.len() - copied);
            out[copied..copied + count].copy_from_slice(&octets[..count]);
            copied += count;
            if copied == out.len() {
                break;
            }
        }
        copied
    }

    /// The port that received it, by [`crate::Port::id`].
    #[inline]
    #[must_use]
    pub fn port(&self) -> u16 {
        self.raw().port
    }

    /// What the NIC says of the IPv4 header's checksum.
    #[inline]
    #[must_use]
    pub fn ip_checksum(&self) -> ChecksumStatus {
        ChecksumStatus::of_ip(self.raw().ol_flags)
    }

    /// What the NIC says of the TCP or UDP checksum.
    #[inline]
    #[must_use]
    pub fn l4_checksum(&self) -> ChecksumStatus {
        ChecksumStatus::of_l4(self.raw().ol_flags)
    }

    /// The hash by which the NIC chose the queue, where it says so.
    #[inline]
    #[must_use]
    pub fn rss_hash(&self) -> Option<u32> {
        let raw = self.raw();
        let valid = raw.ol_flags & dpdk_sys::CULVERT_RTE_MBUF_F_RX_RSS_HASH != 0;
        // SAFETY: every view of this union is plain integers; the flag says which one is meant.
        let hash = unsafe { raw.__bindgen_anon_2.hash.rss };
        valid.then_some(hash)
    }

    /// Forgets what a NIC said on receive and what was asked for on transmit.
    #[inline]
    pub fn clear_offloads(&mut self) {
        self.raw_mut().ol_flags &= BUFFER_FLAGS;
    }

    /// Asks the NIC for checksums or segmentation, in place of anything asked before.
    #[inline]
    pub fn request(&mut self, offload: &TxOffload) {
        let raw = self.raw_mut();
        raw.ol_flags = (raw.ol_flags & BUFFER_FLAGS) | offload.flags();
        raw.__bindgen_anon_3.tx_offload = offload.lengths();
    }

    #[inline]
    fn last_segment_ptr(&self) -> NonNull<dpdk_sys::rte_mbuf> {
        let mut last = self.0;
        // SAFETY: `next` of a valid segment is null or the next valid segment.
        while let Some(next) = NonNull::new(unsafe { last.as_ref() }.next) {
            last = next;
        }
        last
    }

    #[inline]
    fn last_segment(&self) -> &dpdk_sys::rte_mbuf {
        // SAFETY: a segment of this packet, valid as long as it.
        unsafe { self.last_segment_ptr().as_ref() }
    }
}

impl Drop for Mbuf {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: ours, and given up here.
        unsafe { dpdk_sys::culvert_rte_pktmbuf_free(self.0.as_ptr()) };
    }
}

/// Lengths only: packets do not belong into logs.
impl fmt::Debug for Mbuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let raw = self.raw();
        f.debug_struct("Mbuf")
            .field("len", &raw.pkt_len)
            .field("segments", &raw.nb_segs)
            .field("port", &raw.port)
            .finish_non_exhaustive()
    }
}

/// The segments of a packet: see [`Mbuf::segments`].
#[derive(Debug)]
pub struct Segments<'a> {
    next: *const dpdk_sys::rte_mbuf,
    packet: PhantomData<&'a Mbuf>,
}

impl<'a> Iterator for Segments<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        // SAFETY: null or a segment of the packet that is borrowed for 'a.
        let segment = unsafe { self.next.as_ref() }?;
        self.next = segment.next;
        Some(segment_data(segment))
    }
}

#[inline]
fn data_start(segment: &dpdk_sys::rte_mbuf) -> *mut u8 {
    // SAFETY: `data_off` lies within the buffer, an invariant of mbufs that all writers here keep.
    unsafe { segment.buf_addr.cast::<u8>().add(segment.data_off as usize) }
}

#[inline]
fn segment_data(segment: &dpdk_sys::rte_mbuf) -> &[u8] {
    // SAFETY: `data_off` and `data_len` lie within the buffer, which is initialised (it was mapped
    // as zeroes) and, like the segment, borrowed from its owner.
    unsafe { slice::from_raw_parts(data_start(segment), segment.data_len as usize) }
}

#[inline]
fn tailroom(segment: &dpdk_sys::rte_mbuf) -> usize {
    let used = segment.data_off as usize + segment.data_len as usize;
    (segment.buf_len as usize).saturating_sub(used)
}
