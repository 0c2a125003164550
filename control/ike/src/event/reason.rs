//! Why something ended, failed or was begun, in words for who runs the gateway.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::SocketAddr;

use crate::host::InstallError;
use crate::id::Identity;
use crate::message::NotifyType;
use crate::path::Transport;

/// Why this gateway rekeys an SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RekeyCause {
    /// It has lived for [`crate::Lifetime::rekey_time`].
    Age,
    /// It has carried what [`crate::Volume::rekey`] allows.
    Volume,
    /// The host asked for it.
    Asked,
}

impl fmt::Display for RekeyCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Age => "its time had come",
            Self::Volume => "it had carried enough",
            Self::Asked => "asked for",
        })
    }
}

/// Why an IKE SA was not moved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MoveFailure {
    /// Nothing came back over UDP.
    #[error("no answer over UDP; check that the network lets UDP port 4500 through")]
    NoAnswer,
    /// The peer does not want to be moved there.
    #[error("the peer refused with {0}; {hint}", hint = notify_hint(*.0))]
    PeerRefused(NotifyType),
    /// No TCP connection could be opened.
    #[error(
        "no TCP connection: {0}; check that the peer listens there (RFC 9329, usually port 4500)"
    )]
    TcpFailed(String),
    /// Each answer came another way than its request went.
    #[error(
        "the peer's answers come from elsewhere each time; look for a load balancer or a NAT that changes its mapping with each packet"
    )]
    AnsweredFromElsewhere,
}

/// Why an SA went away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum DownReason {
    /// Somebody asked this gateway to.
    #[error("terminated here")]
    TerminatedLocally,
    /// The peer sent a Delete payload.
    #[error("deleted by the peer")]
    DeletedByPeer,
    /// The peer did not answer.
    #[error(
        "the peer does not answer any more; check that it runs and that the network lets it be reached"
    )]
    PeerDead,
    /// The same peer set up another IKE SA.
    #[error("replaced by a newer IKE SA of the same peer")]
    Replaced,
    /// The peer asked for something that the protocol forbids.
    #[error("the peer broke the protocol: {0}")]
    ProtocolError(#[serde(skip, default = "untold")] &'static str),
    /// The peer reported an error that ends the SA.
    #[error("the peer ended it with {0}; see its log")]
    PeerRefused(NotifyType),
    /// Its lifetime ended and no rekey had succeeded.
    #[error("its lifetime is over and no rekey succeeded; see the log for why")]
    Expired,
    /// A newly authenticated IKE SA has taken its place.
    #[error("reauthenticated")]
    Reauthenticated,
    /// A control process that follows another finds it in its configuration no more.
    #[error("it is not configured any more")]
    Unconfigured,
    /// A control process that follows another finds it in the data plane no more.
    #[error("the data plane has lost it")]
    LostByDataplane,
    /// Replaced by a rekey.
    #[error("rekeyed")]
    Rekeyed,
    /// The IKE SA that the CHILD SA belongs to is gone.
    #[error("its IKE SA is gone")]
    IkeGone,
    /// The peer, which had begun it, has not authenticated anew in the time that this gateway allows
    /// (RFC 4478).
    #[error(
        "the peer did not authenticate anew within `reauth_time`; check that it heeds RFC 4478"
    )]
    AuthExpired,
}

/// What a control process does not know of how its predecessor judged.
const fn untold() -> &'static str {
    "see the log before the restart"
}

/// Why an IKE SA did not come up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InitiationError {
    /// Nothing came back.
    #[error(
        "{remote} did not answer over {transport}; check the address, that it runs IKEv2 there and that no firewall drops it"
    )]
    NoAnswer {
        /// Transport of the last attempt.
        transport: Transport,
        /// Who was asked.
        remote: SocketAddr,
    },
    /// No TCP connection could be opened.
    #[error(
        "no TCP connection to {remote}: {reason}; check that it listens there (RFC 9329, usually port 4500)"
    )]
    TcpFailed {
        /// Who was asked.
        remote: SocketAddr,
        /// What the host said.
        reason: String,
    },
    /// The TCP connection went away before the peer was authenticated.
    #[error("{remote} closed the TCP connection before the peer was authenticated; see its log")]
    TcpClosed {
        /// Who was asked.
        remote: SocketAddr,
    },
    /// The peer refused with an error notification.
    #[error("the peer refused with {0}; {hint}", hint = notify_hint(*.0))]
    PeerRefused(NotifyType),
    /// None of the peer's proposals is configured here.
    #[error(
        "none of the peer's IKE proposals is configured for it here; compare `proposals` on both sides"
    )]
    NoProposalChosen,
    /// Nothing in the configuration fits the peer's addresses and transport.
    #[error(
        "no connection is configured for this peer's address and transport; add one, or correct `remote_addrs` or `transport`"
    )]
    NoConnection,
    /// Nothing in the configuration fits the identities.
    #[error(
        "no connection of this address accepts the peer's identity {remote}; correct `remote.id`"
    )]
    IdentityNotAccepted {
        /// What the peer claims to be.
        remote: Identity,
    },
    /// The peer is another one than configured.
    #[error("the peer says it is {got}, which `remote.id` does not accept")]
    WrongIdentity {
        /// What the peer claims to be.
        got: Identity,
    },
    /// There is no key for these identities.
    #[error("no pre-shared key is configured for {remote}; add one under `secrets`")]
    NoSecret {
        /// The peer.
        remote: Identity,
    },
    /// The peer's AUTH payload is wrong.
    #[error(
        "{remote} could not be authenticated: its pre-shared key is another one than configured here"
    )]
    AuthenticationFailed {
        /// Who the peer claims to be.
        remote: Identity,
    },
    /// The peer wants another authentication method.
    #[error(
        "the peer uses authentication method {0}, here only pre-shared keys (2) are configured"
    )]
    AuthMethod(u8),
    /// The peer wants EAP.
    #[error("the peer wants to authenticate by EAP, here only pre-shared keys are configured")]
    EapWanted,
    /// The peer allows no NAT, and one is there.
    #[error(
        "the peer forbids NAT (RFC 4555), but its packets were translated; allow NAT traversal there"
    )]
    NatForbidden,
    /// The peer's messages break the protocol.
    #[error("the peer broke the protocol: {0}")]
    PeerMisbehaved(&'static str),
    /// A peer began, was answered, and did not go on.
    #[error(
        "the peer was answered and did not go on; see its log, and check that its IKE_AUTH gets here: UDP port 4500, and fragments if it is long"
    )]
    WentSilent,
    /// Terminated here before it came up.
    #[error("terminated here")]
    Terminated,
}

/// Why a CHILD SA was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChildFailure {
    /// The peer refused with an error notification.
    #[error("the peer refused with {0}; {hint}", hint = notify_hint(*.0))]
    PeerRefused(NotifyType),
    /// No configured child has the selectors that the peer wants.
    #[error(
        "the peer's traffic selectors fit no configured child; compare `local_ts` and `remote_ts` on both sides"
    )]
    TsUnacceptable,
    /// None of the peer's ESP proposals is configured.
    #[error(
        "none of the peer's ESP proposals is configured here; compare `esp_proposals` on both sides"
    )]
    NoProposalChosen,
    /// The peer makes a tunnel where transport mode was asked for.
    #[error(
        "the peer grants tunnel mode only; set `mode` to `transport` for this child there, too"
    )]
    TunnelOnly,
    /// Transport mode protects packets between the two ends of the IKE SA only.
    #[error(
        "in transport mode `local_ts` and `remote_ts` must hold this gateway's own address and the peer's"
    )]
    Elsewhere,
    /// The peer answered with something that was not asked for.
    #[error("the peer broke the protocol: {0}")]
    PeerMisbehaved(&'static str),
    /// No SPI is left.
    #[error("the table of SAs is full; raise `dataplane.sas`")]
    TableFull,
    /// The IKE SA cannot get its requests through.
    #[error("too many requests wait for the peer's answers; check that it can be reached")]
    TooManyWaiting,
    /// The data plane refused.
    #[error(transparent)]
    Install(#[from] InstallError),
}

/// What an operator can do about a peer's error notification.
fn notify_hint(notify: NotifyType) -> &'static str {
    match notify {
        NotifyType::NO_PROPOSAL_CHOSEN => "compare the proposals on both sides",
        NotifyType::AUTHENTICATION_FAILED => {
            "compare the identities and the pre-shared key on both sides, and see its log"
        }
        NotifyType::TS_UNACCEPTABLE => "compare the traffic selectors on both sides",
        NotifyType::SINGLE_PAIR_REQUIRED => "give one selector for each side",
        NotifyType::NO_ADDITIONAL_SAS => "it takes no further CHILD SA in this IKE SA",
        NotifyType::INVALID_KE_PAYLOAD => {
            "no key exchange method suits both; compare the proposals"
        }
        NotifyType::TEMPORARY_FAILURE => "it is busy with another exchange; try again",
        _ => "see its log",
    }
}
