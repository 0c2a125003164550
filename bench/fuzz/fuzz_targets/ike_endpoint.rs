//! A whole IKE endpoint that strangers send messages to: no panic, no growth beyond its limits, and
//! no SA without the pre-shared key.
#![no_main]

use std::net::SocketAddr;
use std::time::Duration;

use culvert_fuzz::Gateway;
use culvert_ike::{ConnToken, ConnectionConfig, Endpoint, EndpointConfig, Identity, Instant, Path};
use libfuzzer_sys::fuzz_target;

const IKE_SAS_MAX: usize = 16;

fn gateway() -> Gateway {
    let id: Identity = "gw.example".parse().expect("an identity");
    let remote = "%any".parse().expect("any identity");
    Gateway::new(ConnectionConfig::new("fuzz", id, remote), false)
}

/// Takes one message: flags, two octets of length, and so many octets.
fn take<'a>(data: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let (&[flags, high, low], rest) = data.split_first_chunk()?;
    let length = usize::from(u16::from_be_bytes([high, low])).min(rest.len());
    let (message, rest) = rest.split_at(length);
    *data = rest;
    Some((flags, message))
}

fuzz_target!(|data: &[u8]| {
    let mut data = data;
    let mut host = gateway();
    let config = EndpointConfig { ike_sas_max: IKE_SAS_MAX, ..EndpointConfig::default() };
    let mut endpoint = Endpoint::new(config);
    let local = SocketAddr::from(([192, 0, 2, 1], 4500));
    let remote = SocketAddr::from(([198, 51, 100, 7], 4500));
    let mut now = Instant::from_micros(1);
    let mut learnt = [0; 8];
    while let Some((flags, message)) = take(&mut data) {
        let path = if flags & 1 == 0 {
            Path::udp(local, remote)
        } else {
            Path::tcp(local, remote, ConnToken(u64::from(flags >> 4)))
        };
        let mut message = message.to_vec();
        // The responder's SPI cannot be guessed: a message may ask for the one last seen.
        if flags & 2 != 0
            && let Some(spi) = message.get_mut(8..16)
        {
            spi.copy_from_slice(&learnt);
        }
        endpoint.handle_message(now, &path, &message, &mut host);
        while let Some(transmit) = endpoint.poll_transmit() {
            if let culvert_ike::Transmit::Message { octets, .. } = transmit
                && let Some(spi) = octets.get(8..16)
            {
                learnt.copy_from_slice(spi);
            }
        }
        while endpoint.poll_event().is_some() {}
        assert!(endpoint.len() <= IKE_SAS_MAX);
        if flags & 4 != 0 {
            now = now + Duration::from_secs(10);
            endpoint.handle_timeout(now, &mut host);
        }
    }
});
