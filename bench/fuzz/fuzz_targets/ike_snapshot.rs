//! Snapshots of IKE SAs that say anything: reading one ends in an error or in an IKE SA that can be
//! driven, saved again and ended.
#![no_main]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use culvert_fuzz::Gateway;
use culvert_ike::{
    ChildConfig, ConnectionConfig, Endpoint, EndpointConfig, Identity, IdentityPattern, Instant,
    Path, Snapshot,
};
use libfuzzer_sys::fuzz_target;

/// Hours that an IKE SA is driven.
const HOURS: u32 = 3;

fn gateway() -> Gateway {
    let id: Identity = "a.test".parse().expect("an identity");
    let mut connection = ConnectionConfig::new("ab", id, IdentityPattern::Any);
    let all = vec!["0.0.0.0/0".parse().expect("a selector")];
    connection.children = vec![Arc::new(ChildConfig::new("net", all.clone(), all))];
    Gateway::new(connection, true)
}

fn drain(endpoint: &mut Endpoint, buffer: &mut [u8]) -> Option<Vec<u8>> {
    let mut last = None;
    while let Some(snapshot) = endpoint.poll_snapshot(buffer) {
        if let Snapshot::Of(_, octets) = snapshot {
            last = Some(octets.to_vec());
        }
    }
    while endpoint.poll_transmit().is_some() {}
    while endpoint.poll_event().is_some() {}
    last
}

fuzz_target!(|data: &[u8]| {
    let mut host = gateway();
    let mut buffer = vec![0; 1 << 17];
    let mut endpoint = Endpoint::new(EndpointConfig::default());
    let Ok(ike) = endpoint.restore(data, &mut host) else { return };
    // What was read can be written, and read again.
    let again = drain(&mut endpoint, &mut buffer).expect("its snapshot");
    let mut other = Endpoint::new(EndpointConfig::default());
    assert_eq!(other.restore(&again, &mut host), Ok(ike));
    let mut now = Instant::from_micros(1_000_000);
    endpoint.resume(now, &mut host);
    let path = Path::udp(
        SocketAddr::from(([192, 0, 2, 1], 4500)),
        SocketAddr::from(([198, 51, 100, 7], 4500)),
    );
    for _ in 0..HOURS {
        now = now + Duration::from_secs(3600);
        endpoint.handle_timeout(now, &mut host);
        endpoint.handle_message(now, &path, data, &mut host);
        drain(&mut endpoint, &mut buffer);
    }
    // It may be gone by itself.
    let _ = endpoint.terminate(now, ike, &mut host);
    drain(&mut endpoint, &mut buffer);
});
