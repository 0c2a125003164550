//! Snapshots of IKE SAs that say anything: reading one ends in an error or in an IKE SA that can be
//! driven, saved again and ended.
#![no_main]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use culvert_ike::{
    ChildClaim, ChildConfig, ChildId, ChildPath, ChildSa, ConnectionConfig, Endpoint,
    EndpointConfig, Host, Identity, IdentityPattern, IkeSaId, InstallError, Instant, Path, Secret,
    Snapshot,
};
use libfuzzer_sys::fuzz_target;

/// Hours that an IKE SA is driven.
const HOURS: u32 = 3;

/// A host that has whatever is asked for.
struct Gateway {
    connection: Arc<ConnectionConfig>,
    random: u8,
}

impl Host for Gateway {
    fn random(&mut self, out: &mut [u8]) {
        for octet in out {
            self.random = self.random.wrapping_mul(5).wrapping_add(1);
            *octet = self.random;
        }
    }

    fn connections(&mut self, _: IpAddr, _: IpAddr) -> Vec<Arc<ConnectionConfig>> {
        vec![Arc::clone(&self.connection)]
    }

    fn connection(&mut self, name: &str) -> Option<Arc<ConnectionConfig>> {
        (name == self.connection.name).then(|| Arc::clone(&self.connection))
    }

    fn psk(&mut self, _: &Identity, _: &Identity) -> Option<Secret> {
        Some(Secret::new(b"shared".to_vec()))
    }

    fn source_address(&mut self, _: IpAddr) -> Option<IpAddr> {
        Some(IpAddr::from([192, 0, 2, 1]))
    }

    fn allocate_child(&mut self, _: IkeSaId) -> Option<u32> {
        Some(0x1000)
    }

    fn release_child(&mut self, _: u32) {}

    fn claim_spi(&mut self, _: IkeSaId, _: u32) {}

    fn claim_child(&mut self, claim: &ChildClaim<'_>) -> bool {
        claim.spi_in & 1 == 0
    }

    fn install_child(&mut self, _: &ChildSa) -> Result<(), InstallError> {
        Ok(())
    }

    fn enable_outbound(&mut self, _: ChildId, _: u32) {}

    fn remove_child(&mut self, _: ChildId, _: u32) {}

    fn set_path(&mut self, _: IkeSaId, _: &ChildPath) {}

    fn last_inbound(&mut self, _: IkeSaId) -> Option<Instant> {
        None
    }

    fn last_outbound(&mut self, _: IkeSaId) -> Option<Instant> {
        None
    }
}

fn gateway() -> Gateway {
    let id: Identity = "a.test".parse().expect("an identity");
    let mut connection = ConnectionConfig::new("ab", id, IdentityPattern::Any);
    let all = vec!["0.0.0.0/0".parse().expect("a selector")];
    connection.children = vec![Arc::new(ChildConfig::new("net", all.clone(), all))];
    Gateway { connection: Arc::new(connection), random: 1 }
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
