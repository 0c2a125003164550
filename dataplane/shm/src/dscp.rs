//! Service levels.

/// A differentiated services code point, six bits (RFC 2474, 3). One TCP connection has one for all
/// of its packets (RFC 9329, 9.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Dscp(u8);

impl Dscp {
    /// Default forwarding (RFC 2474, 4.1).
    pub const DEFAULT: Dscp = Dscp(0);

    /// The code point of these bits; `None` if they are more than six.
    #[must_use]
    pub const fn new(bits: u8) -> Option<Dscp> {
        if bits < 1 << 6 { Some(Dscp(bits)) } else { None }
    }

    /// The six bits.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }
}

impl TryFrom<u16> for Dscp {
    type Error = ();

    fn try_from(number: u16) -> Result<Dscp, ()> {
        u8::try_from(number).ok().and_then(Dscp::new).ok_or(())
    }
}
