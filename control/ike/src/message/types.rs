//! Numbers of the protocol: open sets, since a peer may send any.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Exchange Type (RFC 7296, 3.1).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExchangeType(pub u8);

#[allow(missing_docs)] // The names are those of RFC 7296, 3.1.
impl ExchangeType {
    pub const IKE_SA_INIT: Self = Self(34);
    pub const IKE_AUTH: Self = Self(35);
    pub const CREATE_CHILD_SA: Self = Self(36);
    pub const INFORMATIONAL: Self = Self(37);
}

impl fmt::Debug for ExchangeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::IKE_SA_INIT => f.write_str("IKE_SA_INIT"),
            Self::IKE_AUTH => f.write_str("IKE_AUTH"),
            Self::CREATE_CHILD_SA => f.write_str("CREATE_CHILD_SA"),
            Self::INFORMATIONAL => f.write_str("INFORMATIONAL"),
            Self(number) => write!(f, "exchange {number}"),
        }
    }
}

/// Next Payload Type (RFC 7296, 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PayloadType(pub u8);

#[allow(missing_docs)] // The names are those of RFC 7296, 3.2.
impl PayloadType {
    pub const NONE: Self = Self(0);
    pub const SA: Self = Self(33);
    pub const KE: Self = Self(34);
    pub const ID_I: Self = Self(35);
    pub const ID_R: Self = Self(36);
    pub const CERT: Self = Self(37);
    pub const CERTREQ: Self = Self(38);
    pub const AUTH: Self = Self(39);
    pub const NONCE: Self = Self(40);
    pub const NOTIFY: Self = Self(41);
    pub const DELETE: Self = Self(42);
    pub const VENDOR: Self = Self(43);
    pub const TS_I: Self = Self(44);
    pub const TS_R: Self = Self(45);
    pub const SK: Self = Self(46);
    pub const CP: Self = Self(47);
    pub const EAP: Self = Self(48);
    pub const SKF: Self = Self(53);
    pub const PS: Self = Self(54);

    /// Whether it is known, so that its critical bit means nothing (RFC 7296, 2.5): those of RFC 7296
    /// and the Puzzle Solution of RFC 8019.
    pub const fn is_defined(self) -> bool {
        self.0 >= Self::SA.0 && self.0 <= Self::EAP.0 || self.0 == Self::PS.0
    }
}

/// Protocol ID of proposals, notifications and deletes (RFC 7296, 3.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Protocol(pub u8);

#[allow(missing_docs)] // The names are those of RFC 7296, 3.3.1.
impl Protocol {
    pub const NONE: Self = Self(0);
    pub const IKE: Self = Self(1);
    pub const AH: Self = Self(2);
    pub const ESP: Self = Self(3);
}

/// Notify Message Type (RFC 7296, 3.10.1). Below 16384 it reports an error.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NotifyType(pub u16);

macro_rules! notify_types {
    ($($name:ident = $number:literal),+ $(,)?) => {
        #[allow(missing_docs)] // The names are those of the IANA registry.
        impl NotifyType {
            $(pub const $name: Self = Self($number);)+

            fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some(stringify!($name)),)+
                    _ => None,
                }
            }
        }
    };
}

notify_types! {
    UNSUPPORTED_CRITICAL_PAYLOAD = 1,
    INVALID_IKE_SPI = 4,
    INVALID_MAJOR_VERSION = 5,
    INVALID_SYNTAX = 7,
    INVALID_MESSAGE_ID = 9,
    INVALID_SPI = 11,
    NO_PROPOSAL_CHOSEN = 14,
    INVALID_KE_PAYLOAD = 17,
    AUTHENTICATION_FAILED = 24,
    SINGLE_PAIR_REQUIRED = 34,
    NO_ADDITIONAL_SAS = 35,
    INTERNAL_ADDRESS_FAILURE = 36,
    FAILED_CP_REQUIRED = 37,
    TS_UNACCEPTABLE = 38,
    INVALID_SELECTORS = 39,
    TEMPORARY_FAILURE = 43,
    CHILD_SA_NOT_FOUND = 44,
    UNACCEPTABLE_ADDRESSES = 40,
    UNEXPECTED_NAT_DETECTED = 41,
    INITIAL_CONTACT = 16384,
    SET_WINDOW_SIZE = 16385,
    ADDITIONAL_TS_POSSIBLE = 16386,
    IPCOMP_SUPPORTED = 16387,
    NAT_DETECTION_SOURCE_IP = 16388,
    NAT_DETECTION_DESTINATION_IP = 16389,
    COOKIE = 16390,
    USE_TRANSPORT_MODE = 16391,
    HTTP_CERT_LOOKUP_SUPPORTED = 16392,
    REKEY_SA = 16393,
    ESP_TFC_PADDING_NOT_SUPPORTED = 16394,
    NON_FIRST_FRAGMENTS_ALSO = 16395,
    MOBIKE_SUPPORTED = 16396,
    ADDITIONAL_IP4_ADDRESS = 16397,
    ADDITIONAL_IP6_ADDRESS = 16398,
    NO_ADDITIONAL_ADDRESSES = 16399,
    UPDATE_SA_ADDRESSES = 16400,
    COOKIE2 = 16401,
    NO_NATS_ALLOWED = 16402,
    AUTH_LIFETIME = 16403,
    IKEV2_FRAGMENTATION_SUPPORTED = 16430,
    PUZZLE = 16434,
}

impl NotifyType {
    /// Whether it reports an error; the rest is status.
    pub const fn is_error(self) -> bool {
        self.0 < 16384
    }
}

impl fmt::Display for NotifyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "notification {}", self.0),
        }
    }
}

impl fmt::Debug for NotifyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
