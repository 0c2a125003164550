//! RFC 9329, 6.8 and 9.3: a connection has one service level, and all of its packets bear it.

use culvert_dataplane::net::ip as ip_format;
use culvert_shm::{Congestion, Down, Dscp, Transport};

use crate::fixture::{FAR_V6, Gateway, HOST_V6, OUTER_V4, OUTER_V6, PEER_V4, PEER_V6};
use crate::packets::{ip, ping};
use crate::peer::{Peer, Sa, Wanted, ike_message, path, path_between};

/// Expedited forwarding (RFC 3246).
const EF: Option<Dscp> = Dscp::new(46);

/// The traffic classes of the packets that have left.
fn classes(gateway: &mut Gateway) -> Vec<u8> {
    let packets = gateway.outer_packets();
    packets.iter().map(|packet| ip_format::parse(packet).unwrap().traffic_class).collect()
}

// Without a service level of its own the outer packet has the inner one's (RFC 4301, 5.1.2.1); ECN is
// the inner one's in any case (RFC 6040, 4.1).
#[test]
fn esp_in_udp_and_native_bears_what_the_peer_is_to_have() {
    let (inner, ect) = (0x28, 0x02);
    for transport in [Transport::Udp, Transport::Native] {
        for (own, other) in [(OUTER_V4, PEER_V4), (OUTER_V6, PEER_V6)] {
            for (dscp, expected) in [(None, inner), (EF, 46 << 2), (Dscp::new(0), 0)] {
                let mut gateway = Gateway::new();
                let path = path_between(transport, ip(own), ip(other));
                Sa::install(&mut gateway, Wanted { dscp, ..Wanted::by(path) });
                let mut packet = ping(HOST_V6, FAR_V6, &[2; 100]);
                (packet[0], packet[1]) = (0x60 | (inner | ect) >> 4, (inner | ect) << 4);
                gateway.inner_packet(&packet);
                gateway.turn();
                assert_eq!(classes(&mut gateway), [expected | ect], "{transport:?} {dscp:?}");
            }
        }
    }
}

#[test]
fn ike_in_udp_bears_what_control_says() {
    let mut gateway = Gateway::new();
    let dscp = EF.unwrap();
    // In one packet, and in fragments.
    for octets in [200, 2000] {
        let (path, payload) = (path(Transport::Udp, None), ike_message(octets));
        gateway.control.send(0, &Down::IkeSend { path, dscp, payload: &payload }).unwrap();
        gateway.turn();
        let classes = classes(&mut gateway);
        assert_eq!(classes.len(), 1 + octets / 1500);
        assert!(classes.iter().all(|class| *class == 46 << 2), "{classes:x?}");
    }
}

#[test]
fn tcp_segments_bear_what_control_says() {
    let mut gateway = Gateway::new();
    let (congestion, dscp) = (Congestion::Bbr, EF.unwrap());
    let remote = (ip(PEER_V6), 4500).into();
    let connect =
        Down::TcpConnect { token: 1, local: None, remote, congestion, flow_label: 0, dscp };
    gateway.control.send(0, &connect).unwrap();
    gateway.turn();
    assert_eq!(classes(&mut gateway), [46 << 2], "the SYN");

    // Whose a connection is that a peer has opened is known when the peer is authenticated.
    let mut peer = Peer::new(1);
    let (_, conn) = peer.begin(&mut gateway);
    assert!(classes(&mut gateway).iter().all(|class| *class == 0));
    gateway.control.send(0, &Down::TcpProven { conn, congestion, dscp }).unwrap();
    let (path, payload) = (path(Transport::Tcp, Some(conn)), ike_message(300));
    gateway.send_ike(path, &payload);
    gateway.turn();
    assert_eq!(classes(&mut gateway), [46 << 2]);
}
