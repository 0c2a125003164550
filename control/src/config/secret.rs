//! Pre-shared keys: how they are written, and which of them two identities share.

use std::collections::{BTreeMap, HashSet};
use std::fmt::{self, Write as _};
use std::io;
use std::path::Path;

use culvert_ike::id::{IdError, IdKind};
use culvert_ike::{Identity, IdentityPattern, Secret};
use rustix::fs::{Mode, OFlags};
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

/// Longest key, in octets.
pub(super) const SECRET_OCTETS_MAX: usize = 1024;
/// Longest file of a key, in octets: hexadecimal, with its prefix and some line feeds.
const SECRET_FILE_OCTETS_MAX: u64 = 4096;

/// A secret's text as swanctl writes it, overwritten when dropped.
pub struct SecretText(Zeroizing<String>);

impl SecretText {
    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl From<&Secret> for SecretText {
    /// In hexadecimal digits.
    fn from(secret: &Secret) -> Self {
        let octets = secret.expose();
        let mut text = Zeroizing::new(String::with_capacity(2 + 2 * octets.len()));
        text.push_str("0x");
        for octet in octets {
            // A string takes everything.
            let _ = write!(text, "{octet:02x}");
        }
        Self(text)
    }
}

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_string(TextVisitor)
    }
}

/// Refuses values of a wrong type without telling them, as serde would: they may be the secret.
macro_rules! conceal {
    ($($visit:ident($type:ty)),+) => {
        $(fn $visit<E: serde::de::Error>(self, _: $type) -> Result<Self::Value, E> {
            let value = serde::de::Unexpected::Other("a value of another type");
            Err(E::invalid_type(value, &self))
        })+
    };
}
pub(super) use conceal;

struct TextVisitor;

impl Visitor<'_> for TextVisitor {
    type Value = SecretText;

    conceal!(visit_i64(i64), visit_u64(u64), visit_i128(i128), visit_u128(u128), visit_f64(f64));

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text in quotes")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<SecretText, E> {
        self.visit_string(text.to_owned())
    }

    fn visit_string<E: serde::de::Error>(self, text: String) -> Result<SecretText, E> {
        Ok(SecretText(Zeroizing::new(text)))
    }
}

impl Serialize for SecretText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// Every configured key, by name.
#[derive(Clone, Default)]
pub struct Secrets {
    list: BTreeMap<String, Owned>,
}

/// A key and the identities that it belongs to; none: it belongs to all.
#[derive(Clone)]
struct Owned {
    owners: Vec<IdentityPattern>,
    secret: Secret,
}

impl Secrets {
    /// Adds a key, in place of another of this name.
    pub(super) fn add(&mut self, name: &str, owners: Vec<IdentityPattern>, secret: Secret) {
        self.list.insert(name.to_owned(), Owned { owners, secret });
    }

    /// Adds a key that was loaded earlier, in place of another of this name.
    ///
    /// # Errors
    /// One of the texts is wrong.
    pub fn restore(
        &mut self,
        name: &str,
        owners: &[String],
        text: &SecretText,
    ) -> Result<(), SecretError> {
        let owners = owners.iter().map(|owner| owner.parse::<IdentityPattern>());
        let owners = owners.collect::<Result<_, _>>()?;
        self.add(name, owners, parse(text.expose())?);
        Ok(())
    }

    /// Removes a key, if it is there.
    pub fn remove(&mut self, name: &str) {
        self.list.remove(name);
    }

    /// The names of all.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.list.keys().map(String::as_str)
    }

    /// The text of a key.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<SecretText> {
        self.list.get(name).map(|owned| SecretText::from(&owned.secret))
    }

    /// These, and others; of two of one name the other.
    #[must_use]
    pub fn with(&self, others: &Self) -> Self {
        let mut list = self.list.clone();
        list.extend(others.list.iter().map(|(name, owned)| (name.clone(), owned.clone())));
        Self { list }
    }

    /// These without one; `None` if there is no such.
    #[must_use]
    pub fn without(&self, name: &str) -> Option<Self> {
        let mut list = self.list.clone();
        list.remove(name)?;
        Some(Self { list })
    }

    /// The names of those that are here, with whether `others` lacks them (`None`) or has another
    /// key or other owners under this name (`Some(true)`).
    pub fn compared<'a>(
        &'a self,
        others: &'a Self,
    ) -> impl Iterator<Item = (&'a str, Option<bool>)> {
        self.list.iter().map(|(name, owned)| {
            let other = others.list.get(name);
            let differs = other.map(|other| {
                other.owners != owned.owners || other.secret.expose() != owned.secret.expose()
            });
            (name.as_str(), differs)
        })
    }

    /// The key that these two share: an owner must be the peer or, failing that, this gateway; a
    /// key without owners comes last. Among equals the narrowest owner wins.
    #[must_use]
    pub fn find(&self, local: &Identity, remote: &Identity) -> Option<Secret> {
        let rank = |owned: &Owned, id: &Identity| {
            let matching = owned.owners.iter().filter(|owner| owner.matches(id));
            matching.map(|owner| 1 + owner.rank()).max().unwrap_or(0)
        };
        let candidates = self.list.values().filter_map(|owned| {
            let ranks = (rank(owned, remote), rank(owned, local));
            (owned.owners.is_empty() || ranks != (0, 0)).then_some((ranks, owned))
        });
        candidates.max_by_key(|(ranks, _)| *ranks).map(|(_, owned)| owned.secret.clone())
    }

    /// Who has a key at all.
    #[must_use]
    pub fn holders(&self) -> Holders<'_> {
        let mut holders = Holders::default();
        for owned in self.list.values() {
            holders.all |= owned.owners.is_empty();
            for owner in &owned.owners {
                match owner.exact() {
                    Some(id) => drop(holders.exact.insert(folded(id))),
                    None => holders.patterns.push(owner),
                }
            }
        }
        holders
    }

    /// Whether there is a key that `local` may share with somebody who fits `remote`.
    #[must_use]
    pub fn covers(&self, local: &Identity, remote: &IdentityPattern) -> bool {
        match remote.exact() {
            Some(remote) => self.find(local, remote).is_some(),
            None => self.list.values().any(|owned| {
                let fits = |owner: &IdentityPattern| owner.matches(local) || meet(owner, remote);
                owned.owners.is_empty() || owned.owners.iter().any(fits)
            }),
        }
    }
}

/// Those who have a key, found without a look at each key: there may be as many as there are peers.
#[derive(Default)]
pub struct Holders<'a> {
    all: bool,
    exact: HashSet<(IdKind, Vec<u8>)>,
    patterns: Vec<&'a IdentityPattern>,
}

impl Holders<'_> {
    /// Whether [`Secrets::find`] would find a key for these two.
    #[must_use]
    pub fn have_key(&self, local: &Identity, remote: &Identity) -> bool {
        let has = |id: &Identity| {
            self.exact.contains(&folded(id)) || self.patterns.iter().any(|owner| owner.matches(id))
        };
        self.all || has(remote) || has(local)
    }
}

/// Equal for those that [`Identity::same_as`] holds for.
fn folded(id: &Identity) -> (IdKind, Vec<u8>) {
    let data = match id.kind() {
        IdKind::Fqdn | IdKind::Rfc822 => id.data().to_ascii_lowercase(),
        _ => id.data().to_vec(),
    };
    (id.kind(), data)
}

/// Whether there can be somebody who fits both.
fn meet(one: &IdentityPattern, other: &IdentityPattern) -> bool {
    use IdentityPattern::{Any, Exact, Suffix};
    let ends_with = |long: &str, short: &str| {
        let end = long.len().checked_sub(short.len()).and_then(|at| long.as_bytes().get(at..));
        end.is_some_and(|end| end.eq_ignore_ascii_case(short.as_bytes()))
    };
    match (one, other) {
        (Any, _) | (_, Any) => true,
        (Exact(id), pattern) | (pattern, Exact(id)) => pattern.matches(id),
        (Suffix(kind, one), Suffix(other_kind, other)) => {
            kind == other_kind && (ends_with(one, other) || ends_with(other, one))
        }
    }
}

/// Why a text is no key. The text itself is never part of it.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// There is nothing.
    #[error("the secret is empty")]
    Empty,
    /// It is too long.
    #[error("the secret is longer than {SECRET_OCTETS_MAX} octets")]
    TooLong,
    /// `0x` and something else.
    #[error("after 0x an even number of hexadecimal digits must follow")]
    Hexadecimal,
    /// `0s` and something else.
    #[error("after 0s base64 must follow")]
    Base64,
    /// Its file.
    #[error("the secret's file cannot be read: {0}")]
    File(#[from] io::Error),
    /// Its file is none.
    #[error("the secret's file is no regular file")]
    NotAFile,
    /// One of its owners.
    #[error(transparent)]
    Owner(#[from] IdError),
}

/// Reads a key as swanctl writes it: `0x` hexadecimal, `0s` base64, else the text itself.
pub(super) fn parse(text: &str) -> Result<Secret, SecretError> {
    let octets = if let Some(digits) = text.strip_prefix("0x") {
        hexadecimal(digits).ok_or(SecretError::Hexadecimal)?
    } else if let Some(digits) = text.strip_prefix("0s") {
        base64(digits).ok_or(SecretError::Base64)?
    } else {
        Zeroizing::new(text.as_bytes().to_vec())
    };
    match octets.len() {
        0 => Err(SecretError::Empty),
        length if length > SECRET_OCTETS_MAX => Err(SecretError::TooLong),
        _ => Ok(Secret::new(octets.to_vec())),
    }
}

/// Reads a key from a file, without the line feeds at its end. A pipe or device would have the gateway
/// wait, for ever perhaps.
pub(super) fn read(path: &Path) -> Result<Secret, SecretError> {
    use io::Read;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(io::Error::from)?;
    let file = std::fs::File::from(file);
    if !file.metadata()?.is_file() {
        return Err(SecretError::NotAFile);
    }
    let mut text = Zeroizing::new(String::new());
    let mut file = file.take(SECRET_FILE_OCTETS_MAX + 1);
    if file.read_to_string(&mut text)? as u64 > SECRET_FILE_OCTETS_MAX {
        return Err(SecretError::TooLong);
    }
    parse(text.trim_end_matches(['\n', '\r']))
}

fn hexadecimal(digits: &str) -> Option<Zeroizing<Vec<u8>>> {
    // A sign would pass from_str_radix.
    let all_digits = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    let pairs = digits.as_bytes().chunks(2).map(|pair| match pair {
        [_, _] => u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok(),
        _ => None,
    });
    let octets = Zeroizing::new(pairs.collect::<Option<Vec<u8>>>()?);
    all_digits.then_some(octets)
}

/// RFC 4648, 4: groups of four digits, the last one padded.
fn base64(digits: &str) -> Option<Zeroizing<Vec<u8>>> {
    let data = digits.trim_end_matches('=');
    let padding = digits.len() - data.len();
    if !digits.len().is_multiple_of(4) || padding > 2 {
        return None;
    }
    let mut octets = Zeroizing::new(Vec::with_capacity(digits.len() / 4 * 3));
    for group in data.as_bytes().chunks(4) {
        let mut bits = 0u32;
        for digit in group {
            bits = bits << 6 | base64_digit(*digit)?;
        }
        let used = group.len() * 6 / 8;
        let left = bits << (32 - 6 * group.len());
        octets.extend(left.to_be_bytes().into_iter().take(used));
    }
    Some(octets)
}

fn base64_digit(digit: u8) -> Option<u32> {
    Some(u32::from(match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn octets(text: &str) -> Result<Vec<u8>, String> {
        parse(text).map(|secret| secret.expose().to_vec()).map_err(|error| error.to_string())
    }

    #[test]
    fn secrets_are_written_as_in_swanctl() {
        assert_eq!(octets("correct horse"), Ok(b"correct horse".to_vec()));
        assert_eq!(octets("0x00ff10"), Ok(vec![0, 0xff, 0x10]));
        assert_eq!(octets("0x0f1"), Err(SecretError::Hexadecimal.to_string()));
        assert_eq!(octets("0x+1-2"), Err(SecretError::Hexadecimal.to_string()));
        assert_eq!(octets("0xzz"), Err(SecretError::Hexadecimal.to_string()));
        assert_eq!(octets("0x"), Err(SecretError::Empty.to_string()));
        assert_eq!(octets(""), Err(SecretError::Empty.to_string()));
        assert_eq!(octets(&"x".repeat(1025)), Err(SecretError::TooLong.to_string()));
    }

    #[test]
    fn nothing_but_a_regular_file_is_read() {
        use rustix::fs::{CWD, FileType};
        let dir = tempfile::tempdir().expect("a directory");
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR, 0).expect("made");
        for path in [&pipe, Path::new("/dev/zero"), dir.path()] {
            let refused = read(path).err().expect("no file").to_string();
            assert_eq!(refused, SecretError::NotAFile.to_string(), "{}", path.display());
        }
    }

    // RFC 4648, 10.
    #[test]
    fn base64_reads_the_vectors_of_its_rfc() {
        for (text, plain) in [
            ("0sZg==", "f"),
            ("0sZm8=", "fo"),
            ("0sZm9v", "foo"),
            ("0sZm9vYg==", "foob"),
            ("0sZm9vYmE=", "fooba"),
            ("0sZm9vYmFy", "foobar"),
        ] {
            assert_eq!(octets(text), Ok(plain.as_bytes().to_vec()), "{text}");
        }
        for wrong in ["0sZg=", "0sZg", "0sZ===", "0sZm9$", "0s===="] {
            assert!(octets(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_narrowest_owner_wins_and_the_peer_comes_before_this_gateway() {
        let id = |text: &str| text.parse::<Identity>().unwrap();
        let mut secrets = Secrets::default();
        for (owners, key) in [
            (&[][..], "anyone"),
            (&["gw.example"][..], "gateway"),
            (&["*.branch.example"][..], "branches"),
            (&["one.branch.example", "gw.example"][..], "one"),
        ] {
            let owners = owners.iter().map(|owner| owner.parse().unwrap()).collect();
            secrets.add(key, owners, parse(key).unwrap());
        }
        let find = |local: &str, remote: &str| {
            let secret = secrets.find(&id(local), &id(remote)).unwrap();
            String::from_utf8(secret.expose().to_vec()).unwrap()
        };
        assert_eq!(find("gw.example", "one.branch.example"), "one");
        assert_eq!(find("gw.example", "two.branch.example"), "branches");
        assert_eq!(find("other.example", "elsewhere.example"), "anyone");
        assert!(["one", "gateway"].contains(&find("gw.example", "elsewhere.example").as_str()));
        assert!(Secrets::default().find(&id("a.example"), &id("b.example")).is_none());
        for without in ["", "anyone", "gateway", "branches", "one"] {
            let mut secrets = secrets.clone();
            for name in ["anyone", without] {
                secrets.remove(name);
            }
            let holders = secrets.holders();
            for local in ["gw.example", "GW.example", "other.example"] {
                for remote in ["one.branch.example", "Two.Branch.example", "elsewhere.example"] {
                    let (local, remote) = (id(local), id(remote));
                    let found = secrets.find(&local, &remote).is_some();
                    assert_eq!(holders.have_key(&local, &remote), found, "{local} {remote}");
                }
            }
        }
    }
}
