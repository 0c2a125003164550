//! Which SAs a command is about.

use std::net::IpAddr;

use culvert_api::{Code, Refusal, Target};
use culvert_ike::{ChildId, IkeSaId, IkeSnapshot, IkeState};

use super::Engine;

/// A CHILD SA that a command names.
pub(super) struct NamedChild {
    pub(super) ike: IkeSaId,
    pub(super) child: ChildId,
    pub(super) spi_in: u32,
}

impl Engine {
    /// The IKE SAs that a command is about, oldest first; of a CHILD SA its own. Never none.
    ///
    /// # Errors
    /// Nothing fits.
    pub(super) fn targeted(&self, target: &Target) -> Result<Vec<IkeSnapshot>, Refusal> {
        let fits = |sa: &IkeSnapshot| match target {
            Target::Ike(ike) => sa.id.0 == *ike,
            Target::Child(_) | Target::Connection(_) => false,
            Target::Peer(peer) => is_peer(sa, peer),
            Target::All {} => true,
        };
        let found: Vec<IkeSnapshot> = match target {
            Target::Ike(ike) => self.endpoint.sa(IkeSaId(*ike)).into_iter().collect(),
            Target::Child(spi_in) => {
                let ike = self.named_child(spi_in)?.ike;
                self.endpoint.sa(ike).into_iter().collect()
            }
            Target::Connection(name) => self.endpoint.sas_of(name).collect(),
            _ => self.endpoint.sas().filter(fits).collect(),
        };
        if found.is_empty() { Err(self.nothing_fits(target)) } else { Ok(found) }
    }

    /// As [`Self::targeted`], those that stand.
    pub(super) fn established_of(&self, target: &Target) -> Result<Vec<IkeSnapshot>, Refusal> {
        let mut found = self.targeted(target)?;
        let first = found.first().map(|sa| (sa.id, sa.state));
        found.retain(|sa| sa.state == IkeState::Established);
        match first.filter(|_| found.is_empty()) {
            None => Ok(found),
            Some((ike, state)) => {
                let reason = format!("IKE SA {ike} does not stand, it is {state}");
                Err(Refusal::new(Code::Failed, reason))
            }
        }
    }

    /// The CHILD SA with this inbound SPI.
    pub(super) fn named_child(&self, spi_in: &str) -> Result<NamedChild, Refusal> {
        let spi = u32::from_str_radix(spi_in, 16).ok();
        let pair = spi.and_then(|spi| Some((spi, self.services.forwarding.installed(spi)?)));
        let (spi_in, pair) =
            pair.ok_or_else(|| self.nothing_fits(&Target::Child(spi_in.to_owned())))?;
        Ok(NamedChild { ike: pair.ike, child: pair.child, spi_in })
    }

    pub(super) fn nothing_fits(&self, target: &Target) -> Refusal {
        let reason = match target {
            Target::Ike(ike) => format!("there is no IKE SA {ike}; `culvert sas` lists them"),
            Target::Child(spi_in) => {
                format!("no CHILD SA has the inbound SPI {spi_in:?}; `culvert sas` lists them")
            }
            Target::Connection(name) => match self.services.config.connection(name) {
                Some(_) => {
                    format!("connection {name} has no SA; `culvert connections` says why")
                }
                None => {
                    format!("no connection is called {name:?}; `culvert connections` lists them")
                }
            },
            Target::Peer(peer) => {
                format!(
                    "no IKE SA is with {peer:?}, as identity or address; `culvert sas` lists them"
                )
            }
            Target::All {} => "there is no SA".to_owned(),
        };
        Refusal::new(Code::NotFound, reason)
    }
}

/// Whether this is the peer's identity or address.
fn is_peer(sa: &IkeSnapshot, peer: &str) -> bool {
    let address = peer.parse::<IpAddr>().ok();
    address == Some(sa.path.remote.ip())
        || sa.remote_id.as_ref().is_some_and(|id| id.to_string() == peer)
}
