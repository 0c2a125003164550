//! Algorithms and proposals, in swanctl's spelling.
//!
//! `aes128gcm16-prfsha256-x25519` names one choice; several words of one kind let the peer choose:
//! `aes256gcm16-aes128gcm16-prfsha512-x25519-ecp256`. ESP takes `esn` and `noesn`, both to offer
//! both, neither for `noesn`, and a key exchange method for rekeys with perfect forward secrecy.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Most proposals of one SA payload, and of a configuration.
pub const PROPOSALS_MAX: usize = 32;
/// Most transforms of one proposal.
pub const TRANSFORMS_MAX: usize = 64;

/// ENCR_AES_GCM_16 (RFC 5282, RFC 4106) with its key length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Encryption {
    /// 128 bits.
    Aes128Gcm16,
    /// 256 bits.
    Aes256Gcm16,
}

impl Encryption {
    /// Transform ID of ENCR_AES_GCM_16.
    pub const TRANSFORM_ID: u16 = 20;
    /// Octets of salt behind the key.
    pub const SALT_LEN: usize = 4;

    /// Octets of key.
    pub const fn key_len(self) -> usize {
        match self {
            Self::Aes128Gcm16 => 16,
            Self::Aes256Gcm16 => 32,
        }
    }

    /// Octets of key and salt.
    pub const fn keymat_len(self) -> usize {
        self.key_len() + Self::SALT_LEN
    }

    pub(crate) const fn from_key_bits(bits: u16) -> Option<Self> {
        match bits {
            128 => Some(Self::Aes128Gcm16),
            256 => Some(Self::Aes256Gcm16),
            _ => None,
        }
    }

    pub(crate) const fn key_bits(self) -> u16 {
        match self {
            Self::Aes128Gcm16 => 128,
            Self::Aes256Gcm16 => 256,
        }
    }
}

impl fmt::Display for Encryption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Aes128Gcm16 => "aes128gcm16",
            Self::Aes256Gcm16 => "aes256gcm16",
        })
    }
}

/// Pseudorandom function of an IKE SA (RFC 4868).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Prf {
    /// PRF_HMAC_SHA2_256.
    HmacSha256,
    /// PRF_HMAC_SHA2_384.
    HmacSha384,
    /// PRF_HMAC_SHA2_512.
    HmacSha512,
}

impl Prf {
    /// Transform ID.
    pub const fn transform_id(self) -> u16 {
        match self {
            Self::HmacSha256 => 5,
            Self::HmacSha384 => 6,
            Self::HmacSha512 => 7,
        }
    }

    pub(crate) const fn from_transform_id(id: u16) -> Option<Self> {
        match id {
            5 => Some(Self::HmacSha256),
            6 => Some(Self::HmacSha384),
            7 => Some(Self::HmacSha512),
            _ => None,
        }
    }

    /// Octets of output, and the preferred length of its key.
    pub const fn output_len(self) -> usize {
        match self {
            Self::HmacSha256 => 32,
            Self::HmacSha384 => 48,
            Self::HmacSha512 => 64,
        }
    }
}

impl fmt::Display for Prf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HmacSha256 => "prfsha256",
            Self::HmacSha384 => "prfsha384",
            Self::HmacSha512 => "prfsha512",
        })
    }
}

/// Key exchange method (Diffie-Hellman group).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum KeyExchange {
    /// 2048-bit MODP group (RFC 3526, 3).
    Modp2048,
    /// 256-bit random ECP group (RFC 5903).
    Ecp256,
    /// 384-bit random ECP group (RFC 5903).
    Ecp384,
    /// Curve25519 (RFC 8031).
    X25519,
}

impl KeyExchange {
    /// Transform ID, which a KE payload carries too.
    pub const fn transform_id(self) -> u16 {
        match self {
            Self::Modp2048 => 14,
            Self::Ecp256 => 19,
            Self::Ecp384 => 20,
            Self::X25519 => 31,
        }
    }

    pub(crate) const fn from_transform_id(id: u16) -> Option<Self> {
        match id {
            14 => Some(Self::Modp2048),
            19 => Some(Self::Ecp256),
            20 => Some(Self::Ecp384),
            31 => Some(Self::X25519),
            _ => None,
        }
    }

    /// Octets of Key Exchange Data.
    pub const fn public_len(self) -> usize {
        match self {
            Self::Modp2048 => 256,
            Self::Ecp256 => 64,
            Self::Ecp384 => 96,
            Self::X25519 => 32,
        }
    }
}

impl fmt::Display for KeyExchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Modp2048 => "modp2048",
            Self::Ecp256 => "ecp256",
            Self::Ecp384 => "ecp384",
            Self::X25519 => "x25519",
        })
    }
}

/// A proposal for an IKE SA; each list is in order of preference and never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IkeProposal {
    /// Encryption.
    pub encryption: Vec<Encryption>,
    /// Pseudorandom function.
    pub prf: Vec<Prf>,
    /// Key exchange method.
    pub key_exchange: Vec<KeyExchange>,
}

impl Default for IkeProposal {
    fn default() -> Self {
        Self {
            encryption: vec![Encryption::Aes128Gcm16, Encryption::Aes256Gcm16],
            prf: vec![Prf::HmacSha256, Prf::HmacSha384, Prf::HmacSha512],
            key_exchange: vec![KeyExchange::X25519, KeyExchange::Ecp256, KeyExchange::Ecp384],
        }
    }
}

/// A proposal for a CHILD SA with ESP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EspProposal {
    /// Encryption; never empty.
    pub encryption: Vec<Encryption>,
    /// Key exchange methods of CREATE_CHILD_SA; empty: keys come from the IKE SA's. IKE_AUTH never
    /// carries them.
    pub key_exchange: Vec<KeyExchange>,
    /// Extended sequence numbers (`true`) or none, best first; never empty.
    pub esn: Vec<bool>,
}

impl Default for EspProposal {
    fn default() -> Self {
        Self {
            encryption: vec![Encryption::Aes128Gcm16, Encryption::Aes256Gcm16],
            key_exchange: Vec::new(),
            esn: vec![true, false],
        }
    }
}

/// The algorithms of an IKE SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct IkeSuite {
    /// Encryption.
    pub encryption: Encryption,
    /// Pseudorandom function.
    pub prf: Prf,
    /// Key exchange method.
    pub key_exchange: KeyExchange,
}

impl fmt::Display for IkeSuite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.encryption, self.prf, self.key_exchange)
    }
}

/// The algorithms of a CHILD SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EspSuite {
    /// Encryption.
    pub encryption: Encryption,
    /// Key exchange method, where CREATE_CHILD_SA had one.
    pub key_exchange: Option<KeyExchange>,
    /// Extended sequence numbers (RFC 4303, 2.2.1).
    pub esn: bool,
}

impl fmt::Display for EspSuite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.encryption)?;
        if let Some(ke) = self.key_exchange {
            write!(f, "-{ke}")?;
        }
        f.write_str(if self.esn { "-esn" } else { "-noesn" })
    }
}

/// Why a spelling is no proposal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposalError {
    /// A word that names nothing.
    #[error(
        "`{word}` in `{proposal}` is no known algorithm; encryption: aes128gcm16, aes256gcm16; PRF: prfsha256, prfsha384, prfsha512; key exchange: x25519, ecp256, ecp384, modp2048; ESP only: esn, noesn"
    )]
    UnknownWord {
        /// The word.
        word: String,
        /// The whole.
        proposal: String,
    },
    /// A word that does not belong to this kind of proposal.
    #[error("`{word}` in `{proposal}` does not belong into {kind} proposal")]
    WrongPlace {
        /// The word.
        word: String,
        /// The whole.
        proposal: String,
        /// `an IKE` or `an ESP`.
        kind: &'static str,
    },
    /// The same word twice.
    #[error("`{word}` stands twice in `{proposal}`")]
    Twice {
        /// The word.
        word: String,
        /// The whole.
        proposal: String,
    },
    /// A kind of algorithm is missing.
    #[error("`{proposal}` names no {missing}")]
    Missing {
        /// The whole.
        proposal: String,
        /// What is missing, with an example.
        missing: &'static str,
    },
}

/// One word of a proposal.
enum Word {
    Encryption(Encryption),
    Prf(Prf),
    KeyExchange(KeyExchange),
    Esn(bool),
}

fn word(word: &str, proposal: &str) -> Result<Word, ProposalError> {
    Ok(match word {
        "aes128gcm16" | "aes128gcm128" => Word::Encryption(Encryption::Aes128Gcm16),
        "aes256gcm16" | "aes256gcm128" => Word::Encryption(Encryption::Aes256Gcm16),
        "prfsha256" => Word::Prf(Prf::HmacSha256),
        "prfsha384" => Word::Prf(Prf::HmacSha384),
        "prfsha512" => Word::Prf(Prf::HmacSha512),
        "x25519" | "curve25519" => Word::KeyExchange(KeyExchange::X25519),
        "ecp256" => Word::KeyExchange(KeyExchange::Ecp256),
        "ecp384" => Word::KeyExchange(KeyExchange::Ecp384),
        "modp2048" => Word::KeyExchange(KeyExchange::Modp2048),
        "esn" => Word::Esn(true),
        "noesn" => Word::Esn(false),
        _ => {
            return Err(ProposalError::UnknownWord {
                word: word.to_owned(),
                proposal: proposal.to_owned(),
            });
        }
    })
}

fn push<T: PartialEq>(
    list: &mut Vec<T>,
    value: T,
    word: &str,
    proposal: &str,
) -> Result<(), ProposalError> {
    if list.contains(&value) {
        return Err(ProposalError::Twice { word: word.to_owned(), proposal: proposal.to_owned() });
    }
    list.push(value);
    Ok(())
}

fn wrong_place(word: &str, proposal: &str, kind: &'static str) -> ProposalError {
    ProposalError::WrongPlace { word: word.to_owned(), proposal: proposal.to_owned(), kind }
}

fn need<T>(list: &[T], proposal: &str, missing: &'static str) -> Result<(), ProposalError> {
    if list.is_empty() {
        return Err(ProposalError::Missing { proposal: proposal.to_owned(), missing });
    }
    Ok(())
}

impl FromStr for IkeProposal {
    type Err = ProposalError;

    fn from_str(text: &str) -> Result<Self, ProposalError> {
        let text = text.trim();
        let mut p = Self { encryption: Vec::new(), prf: Vec::new(), key_exchange: Vec::new() };
        for w in text.split('-') {
            match word(w, text)? {
                Word::Encryption(e) => push(&mut p.encryption, e, w, text)?,
                Word::Prf(f) => push(&mut p.prf, f, w, text)?,
                Word::KeyExchange(k) => push(&mut p.key_exchange, k, w, text)?,
                Word::Esn(_) => return Err(wrong_place(w, text, "an IKE")),
            }
        }
        need(&p.encryption, text, "encryption, such as aes128gcm16")?;
        need(&p.prf, text, "pseudorandom function, such as prfsha256")?;
        need(&p.key_exchange, text, "key exchange method, such as x25519")?;
        Ok(p)
    }
}

impl FromStr for EspProposal {
    type Err = ProposalError;

    fn from_str(text: &str) -> Result<Self, ProposalError> {
        let text = text.trim();
        let mut p = Self { encryption: Vec::new(), key_exchange: Vec::new(), esn: Vec::new() };
        for w in text.split('-') {
            match word(w, text)? {
                Word::Encryption(e) => push(&mut p.encryption, e, w, text)?,
                Word::KeyExchange(k) => push(&mut p.key_exchange, k, w, text)?,
                Word::Esn(esn) => push(&mut p.esn, esn, w, text)?,
                Word::Prf(_) => return Err(wrong_place(w, text, "an ESP")),
            }
        }
        need(&p.encryption, text, "encryption, such as aes128gcm16")?;
        if p.esn.is_empty() {
            p.esn.push(false);
        }
        Ok(p)
    }
}

fn join(f: &mut fmt::Formatter<'_>, words: Vec<String>) -> fmt::Result {
    f.write_str(&words.join("-"))
}

impl fmt::Display for IkeProposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words: Vec<String> = self.encryption.iter().map(ToString::to_string).collect();
        words.extend(self.prf.iter().map(ToString::to_string));
        words.extend(self.key_exchange.iter().map(ToString::to_string));
        join(f, words)
    }
}

impl fmt::Display for EspProposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words: Vec<String> = self.encryption.iter().map(ToString::to_string).collect();
        words.extend(self.key_exchange.iter().map(ToString::to_string));
        words.extend(self.esn.iter().map(|e| (if *e { "esn" } else { "noesn" }).to_owned()));
        join(f, words)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn swanctl_spellings_are_read() {
        let ike: IkeProposal = "aes256gcm16-aes128gcm16-prfsha512-ecp256-modp2048".parse().unwrap();
        assert_eq!(ike.encryption, [Encryption::Aes256Gcm16, Encryption::Aes128Gcm16]);
        assert_eq!(ike.prf, [Prf::HmacSha512]);
        assert_eq!(ike.key_exchange, [KeyExchange::Ecp256, KeyExchange::Modp2048]);
        let esp: EspProposal = "aes256gcm16-x25519".parse().unwrap();
        assert_eq!((esp.key_exchange, esp.esn), (vec![KeyExchange::X25519], vec![false]));
        let esp: EspProposal = "aes128gcm16-esn-noesn".parse().unwrap();
        assert_eq!(esp.esn, [true, false]);
    }

    #[test]
    fn errors_name_the_wrong_word() {
        let ike = |t: &str| t.parse::<IkeProposal>().unwrap_err().to_string();
        assert!(ike("aes128gcm16-prfsha1-x25519").starts_with("`prfsha1` in"));
        assert!(ike("aes128gcm16-prfsha256-x25519-esn").contains("`esn`"));
        assert!(ike("aes128gcm16-x25519").contains("names no pseudorandom function"));
        assert!(ike("aes128gcm16-aes128gcm16-prfsha256-x25519").contains("twice"));
        assert!("".parse::<EspProposal>().is_err());
        let esp = "aes128gcm16-prfsha256".parse::<EspProposal>().unwrap_err();
        assert!(esp.to_string().contains("an ESP proposal"));
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_is_read_is_printed_back(
            text in "((aes128gcm16|aes256gcm16|prfsha256|x25519|ecp384|esn|noesn|[a-z]{1,3})-?){0,6}"
        ) {
            if let Ok(p) = text.parse::<IkeProposal>() {
                prop_assert_eq!(p.to_string().parse(), Ok(p));
            }
            if let Ok(p) = text.parse::<EspProposal>() {
                prop_assert_eq!(p.to_string().parse(), Ok(p));
            }
        }
    }
}
