//! Prints the DER of a distinguished name (X.501 `Name`) for people.

/// Attributes that one name may have; more are not printed.
const ATTRIBUTES_MAX: usize = 32;

const TAG_SEQUENCE: u8 = 0x30;
const TAG_SET: u8 = 0x31;
const TAG_OID: u8 = 0x06;

/// `C=…, O=…, CN=…` in the order of the encoding; `None` if this is no DER of a name.
pub(super) fn display(der: &[u8]) -> Option<String> {
    let (mut names, rest) = element(der, TAG_SEQUENCE)?;
    if !rest.is_empty() {
        return None;
    }
    let mut parts = Vec::new();
    while !names.is_empty() {
        let (mut set, after) = element(names, TAG_SET)?;
        names = after;
        while !set.is_empty() {
            let (attribute, after) = element(set, TAG_SEQUENCE)?;
            set = after;
            if parts.len() == ATTRIBUTES_MAX {
                return None;
            }
            parts.push(attribute_text(attribute)?);
        }
    }
    Some(parts.join(", "))
}

fn attribute_text(attribute: &[u8]) -> Option<String> {
    let (oid, rest) = element(attribute, TAG_OID)?;
    let (_tag, value, rest) = any_element(rest)?;
    if !rest.is_empty() {
        return None;
    }
    let value: String = String::from_utf8_lossy(value)
        .chars()
        .map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c })
        .collect();
    Some(match attribute_name(oid) {
        Some(name) => format!("{name}={value}"),
        None => {
            let digits: String = oid.iter().map(|o| format!("{o:02x}")).collect();
            format!("#{digits}={value}")
        }
    })
}

/// The usual short names (RFC 4519; PKCS #9 for `E`).
fn attribute_name(oid: &[u8]) -> Option<&'static str> {
    Some(match oid {
        [0x55, 0x04, 3] => "CN",
        [0x55, 0x04, 4] => "SN",
        [0x55, 0x04, 5] => "serialNumber",
        [0x55, 0x04, 6] => "C",
        [0x55, 0x04, 7] => "L",
        [0x55, 0x04, 8] => "ST",
        [0x55, 0x04, 9] => "STREET",
        [0x55, 0x04, 10] => "O",
        [0x55, 0x04, 11] => "OU",
        [0x55, 0x04, 12] => "T",
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 1] => "E",
        [0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 25] => "DC",
        [0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 1] => "UID",
        _ => return None,
    })
}

/// The contents of the first element, which must have this tag, and what follows it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, contents, rest) = any_element(der)?;
    (found == tag).then_some((contents, rest))
}

fn any_element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (len, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81 => (usize::from(*rest.first()?), rest.get(1..)?),
        0x82 => (usize::from(u16::from_be_bytes([*rest.first()?, *rest.get(1)?])), rest.get(2..)?),
        _ => return None,
    };
    Some((tag, rest.get(..len)?, rest.get(len..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_printed_in_the_order_of_its_encoding() {
        let der = [
            0x30, 0x1a, 0x31, 0x0b, 0x30, 0x09, 0x06, 0x03, 0x55, 0x04, 0x06, 0x13, 0x02, b'C',
            b'H', 0x31, 0x0b, 0x30, 0x09, 0x06, 0x03, 0x55, 0x04, 0x03, 0x0c, 0x02, b'g', b'w',
        ];
        assert_eq!(display(&der).as_deref(), Some("C=CH, CN=gw"));
        assert_eq!(display(&der[..27]), None, "cut short");
        assert_eq!(display(&[&der[..], &[0]].concat()), None, "something follows");
    }
}
