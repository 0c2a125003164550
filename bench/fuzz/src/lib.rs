//! What several fuzz targets need.

use std::net::IpAddr;
use std::sync::Arc;

use culvert_ike::{
    ChildClaim, ChildId, ChildPath, ChildSa, ConnectionConfig, Host, Identity, IkeSaId,
    InstallError, Instant, Secret,
};

/// A gateway with one connection, whose random octets follow from nothing.
pub struct Gateway {
    connection: Arc<ConnectionConfig>,
    /// Whether a peer may have the key: then CHILD SAs are installed, and claimed if their SPI is
    /// even. Otherwise an SA is a fault.
    trusting: bool,
    random: u8,
}

impl Gateway {
    /// A gateway for `connection`.
    #[must_use]
    pub fn new(connection: ConnectionConfig, trusting: bool) -> Self {
        Self { connection: Arc::new(connection), trusting, random: 1 }
    }
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
        Some(Secret::new(b"a secret that no fuzzer has".to_vec()))
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
        self.trusting && claim.spi_in & 1 == 0
    }

    fn install_child(&mut self, _: &ChildSa) -> Result<(), InstallError> {
        assert!(self.trusting, "an SA for somebody without the key");
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
