//! Segments as a script means them, put into IP packets and taken out of them by code that shares
//! nothing with the stack.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The family of the addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The stack's address.
    pub(crate) fn us(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(192, 0, 2, 1).into(),
            Self::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 1).into(),
        }
    }

    /// The hand-made peer's address.
    pub(crate) fn peer(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(198, 51, 100, 7).into(),
            Self::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, 0, 7).into(),
        }
    }

    /// Octets of the IP header.
    pub(crate) fn header(self) -> usize {
        match self {
            Self::V4 => 20,
            Self::V6 => 40,
        }
    }

    /// What must hold for the IP header of every packet of the stack: IPv4 with DF and a checksum,
    /// either family Not-ECT, no flow label unless the caller gave one.
    fn check_header(self, packet: &[u8]) {
        match self {
            Self::V4 => {
                assert_eq!(packet[0], 0x45);
                assert_eq!(packet[1] & 3, 0, "never ECN-capable: RFC 9329, 9.5");
                assert_eq!(packet[6], 0x40, "DF");
                assert_eq!(checksum(&packet[..20]), 0, "IPv4 header checksum");
            }
            Self::V6 => {
                assert_eq!(packet[0] >> 4, 6);
                assert_eq!(packet[1] & 0x30, 0, "never ECN-capable: RFC 9329, 9.5");
                let payload = usize::from(u16::from_be_bytes([packet[4], packet[5]]));
                assert_eq!(packet.len(), 40 + payload);
                assert_eq!(packet[6], 6, "no extension header");
            }
        }
    }

    /// The packet from the peer to the stack.
    fn wrap(self, tcp: &[u8]) -> Vec<u8> {
        let mut ip = match self {
            Self::V4 => vec![0x45, 0],
            Self::V6 => vec![0x60, 0, 0, 0],
        };
        match self {
            Self::V4 => {
                ip.extend((20 + tcp.len() as u16).to_be_bytes());
                ip.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
            }
            Self::V6 => {
                ip.extend((tcp.len() as u16).to_be_bytes());
                ip.extend([6, 64]);
            }
        }
        ip.extend(octets(self.peer()));
        ip.extend(octets(self.us()));
        if self == Self::V4 {
            let sum = checksum(&ip);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        ip.extend(tcp);
        ip
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// A TCP segment with absolute numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    /// CWR ECE URG ACK PSH RST SYN FIN.
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) mss: Option<u16>,
    pub(crate) scale: Option<u8>,
    pub(crate) sack_permitted: bool,
    pub(crate) timestamps: Option<(u32, u32)>,
    pub(crate) sack: Vec<(u32, u32)>,
    pub(crate) data: Vec<u8>,
    /// The device is to cut it into segments of so many octets.
    pub(crate) cut: Option<u16>,
}

impl Segment {
    fn options(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if let Some(mss) = self.mss {
            out.extend([2, 4]);
            out.extend(mss.to_be_bytes());
        }
        if let Some(scale) = self.scale {
            out.extend([3, 3, scale]);
        }
        if self.sack_permitted {
            out.extend([4, 2]);
        }
        if let Some((value, echo)) = self.timestamps {
            out.extend([8, 10]);
            out.extend(value.to_be_bytes());
            out.extend(echo.to_be_bytes());
        }
        if !self.sack.is_empty() {
            out.extend([5, 2 + 8 * self.sack.len() as u8]);
            for (left, right) in &self.sack {
                out.extend(left.to_be_bytes());
                out.extend(right.to_be_bytes());
            }
        }
        out.resize(out.len().next_multiple_of(4), 1);
        out
    }

    /// The packet from the peer to the stack.
    pub(crate) fn packet(&self, family: Family) -> Vec<u8> {
        let options = self.options();
        let mut tcp = Vec::new();
        tcp.extend(self.source_port.to_be_bytes());
        tcp.extend(self.destination_port.to_be_bytes());
        tcp.extend(self.seq.to_be_bytes());
        tcp.extend(self.ack.to_be_bytes());
        tcp.extend([(5 + options.len() as u8 / 4) << 4, self.flags]);
        tcp.extend(self.window.to_be_bytes());
        tcp.extend([0, 0, 0, 7]); // An urgent pointer, which means something only with URG.
        tcp.extend(options);
        tcp.extend(&self.data);
        let sum = pseudo_checksum(family.peer(), family.us(), &tcp);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        family.wrap(&tcp)
    }

    /// Does what is the device's to do for a packet that it cuts later, and parses it.
    pub(crate) fn parse_for_device(mut packet: Vec<u8>, family: Family, cut: Option<u16>) -> Self {
        let tcp = &mut packet[family.header()..];
        assert_eq!(tcp[16..18], [0, 0], "left to the device");
        let sum = pseudo_checksum(family.us(), family.peer(), tcp);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        Self { cut, ..Self::parse(&packet, family) }
    }

    /// A packet of the stack, with what must hold for each of them.
    pub(crate) fn parse(packet: &[u8], family: Family) -> Self {
        family.check_header(packet);
        let tcp = &packet[family.header()..];
        assert_eq!(pseudo_checksum(family.us(), family.peer(), tcp), 0, "TCP checksum");
        assert_eq!(tcp[13] & 0xc0, 0, "neither ECE nor CWR");
        let word = |at: usize| u32::from_be_bytes(tcp[at..at + 4].try_into().unwrap());
        let half = |at: usize| u16::from_be_bytes(tcp[at..at + 2].try_into().unwrap());
        let header = usize::from(tcp[12] >> 4) * 4;
        let mut segment = Self {
            source_port: half(0),
            destination_port: half(2),
            seq: word(4),
            ack: word(8),
            flags: tcp[13],
            window: half(14),
            data: tcp[header..].to_vec(),
            ..Self::default()
        };
        segment.take_options(&tcp[20..header]);
        segment
    }

    fn take_options(&mut self, mut octets: &[u8]) {
        while let [kind, rest @ ..] = octets {
            octets = match *kind {
                0 => return,
                1 => rest,
                _ => {
                    let (option, after) = octets.split_at(usize::from(rest[0]));
                    self.take_option(*kind, &option[2..]);
                    after
                }
            };
        }
    }

    fn take_option(&mut self, kind: u8, body: &[u8]) {
        let word = |at: usize| u32::from_be_bytes(body[at..at + 4].try_into().unwrap());
        match kind {
            2 => self.mss = Some(u16::from_be_bytes([body[0], body[1]])),
            3 => self.scale = Some(body[0]),
            4 => self.sack_permitted = true,
            5 => {
                self.sack = (0..body.len()).step_by(8).map(|at| (word(at), word(at + 4))).collect();
            }
            8 => self.timestamps = Some((word(0), word(4))),
            other => panic!("an option of kind {other} is never sent"),
        }
    }
}

fn pseudo_checksum(source: IpAddr, destination: IpAddr, tcp: &[u8]) -> u16 {
    let mut all = [octets(source), octets(destination)].concat();
    // IPv6 has 32 bits for the length and 24 more of zeros: to the sum it is the same.
    all.extend([0, 6]);
    all.extend((tcp.len() as u16).to_be_bytes());
    all.extend(tcp);
    checksum(&all)
}

/// The Internet checksum (RFC 1071).
fn checksum(octets: &[u8]) -> u16 {
    let mut sum: u32 = octets
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
