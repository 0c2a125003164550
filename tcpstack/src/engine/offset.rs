//! Stream offsets: sequence numbers that never wrap.
//!
//! Inside the engine a position in a stream is a `u64`: 0 is the SYN, data starts at 1, the FIN
//! follows the last octet. Only at the edge, in [`SequenceSpace`], do offsets become the 32-bit
//! numbers of RFC 9293, 3.4, so that no comparison elsewhere has to think of wrapping.

/// The sequence space of one direction, fixed by its initial sequence number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SequenceSpace {
    isn: u32,
}

impl SequenceSpace {
    /// The space in which `isn` is offset 0.
    pub(crate) const fn new(isn: u32) -> Self {
        Self { isn }
    }

    /// The sequence number on the wire of `offset`.
    #[allow(clippy::cast_possible_truncation)] // Modulo 2^32 is the meaning (RFC 9293, 3.4).
    pub(crate) const fn wire(self, offset: u64) -> u32 {
        self.isn.wrapping_add(offset as u32)
    }

    /// The offset that `wire` names, taken as the one nearest to `near`; `None` before the SYN.
    pub(crate) fn offset(self, near: u64, wire: u32) -> Option<u64> {
        let distance = wire.wrapping_sub(self.wire(near)).cast_signed();
        near.checked_add_signed(i64::from(distance))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_offset_survives_the_wire(isn: u32, near in 0u64..1 << 40, distance in -0x7fff_0000i64..0x7fff_0000) {
            let space = SequenceSpace::new(isn);
            let Some(offset) = near.checked_add_signed(distance) else { return Ok(()) };
            prop_assert_eq!(space.offset(near, space.wire(offset)), Some(offset));
        }
    }

    #[test]
    fn nothing_lies_before_the_syn() {
        let space = SequenceSpace::new(1000);
        assert_eq!(space.offset(0, 999), None);
        assert_eq!(space.offset(0, 1000), Some(0));
        assert_eq!(space.offset(5, 1001), Some(1));
    }
}
