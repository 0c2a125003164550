//! strongSwan's configuration: what a test asks of it, written as the two files that charon and
//! `swanctl` read.

use std::fmt::Write as _;
use std::net::IpAddr;

const PLUGINS: &str = "random nonce openssl aes sha1 sha2 hmac kdf gcm curve25519";

/// Who carries ESP for charon.
#[derive(Debug, Clone, Copy)]
pub(super) enum Esp {
    /// charon itself, on a TUN device.
    Userspace,
    /// Linux.
    Kernel,
}

impl Esp {
    /// The plugins for it: the first that offers ESP is taken.
    fn plugins(self) -> &'static str {
        match self {
            Self::Userspace => "kernel-libipsec kernel-netlink",
            Self::Kernel => "kernel-netlink",
        }
    }
}

/// One connection, in swanctl's terms.
#[derive(Debug, Clone)]
pub struct Connection {
    /// Our address; `None` for any.
    pub local: Option<IpAddr>,
    /// The peer's address; `None` for any, as a responder does.
    pub remote: Option<IpAddr>,
    /// The peer's UDP port, where it is not 500: then ours is 4500, and each IKE message carries the
    /// non-ESP marker from the first one on, as a stream needs it.
    pub remote_port: Option<u16>,
    /// Our identity.
    pub local_id: String,
    /// The peer's identity.
    pub remote_id: String,
    /// The pre-shared key.
    pub secret: String,
    /// The IKE proposal.
    pub proposal: String,
    /// Whether to ask for ESP in UDP even without a NAT; charon's own ESP knows nothing else.
    pub encap: bool,
    /// Further settings of the connection, such as `rekey_time = 1s`. Without any, nothing is
    /// rekeyed in a test's time and MOBIKE is off.
    pub options: Vec<String>,
    /// Its CHILD SAs.
    pub children: Vec<Child>,
    /// Further settings of charon itself, such as `cookie_threshold = 0`.
    pub charon: Vec<String>,
}

/// One kind of CHILD SA.
#[derive(Debug, Clone)]
pub struct Child {
    /// Its name.
    pub name: String,
    /// The ESP proposal; with a key exchange method, that is used in CREATE_CHILD_SA (PFS).
    pub esp_proposal: String,
    /// Our traffic selectors.
    pub local_ts: Vec<String>,
    /// The peer's traffic selectors.
    pub remote_ts: Vec<String>,
    /// Further settings, such as `rekey_time = 1s`.
    pub options: Vec<String>,
}

/// `strongswan.conf`, with vici on `socket`.
pub(super) fn strongswan_conf(socket: &str, esp: Esp, connection: &Connection) -> String {
    format!(
        "charon {{
    load = {PLUGINS} {} socket-default vici
    retransmit_timeout = 1.0
    retransmit_tries = 4
    plugins {{
        vici {{
            socket = {socket}
        }}
    }}
    filelog {{
        stderr {{
            default = 1
            ike = 2
            flush_line = yes
        }}
    }}
{}}}
swanctl {{
    load = random nonce openssl pem pkcs1 x509
}}
",
        esp.plugins(),
        lines(4, &connection.charon)
    )
}

/// `swanctl.conf`.
pub(super) fn swanctl_conf(connection: &Connection) -> String {
    let Connection { local_id, remote_id, secret, proposal, .. } = connection;
    let mut endpoints = String::new();
    if let Some(local) = connection.local {
        let _ = writeln!(endpoints, "        local_addrs = {local}");
    }
    if let Some(remote) = connection.remote {
        let _ = writeln!(endpoints, "        remote_addrs = {remote}");
    }
    if let Some(port) = connection.remote_port {
        let _ = writeln!(endpoints, "        local_port = 4500\n        remote_port = {port}");
    }
    let encap = if connection.encap { "yes" } else { "no" };
    let children: String = connection.children.iter().zip(1..).map(child_conf).collect();
    format!(
        "connections {{
    lab {{
        version = 2
{endpoints}        proposals = {proposal}
        mobike = no
        encap = {encap}
{options}        local {{
            auth = psk
            id = {local_id}
        }}
        remote {{
            auth = psk
            id = {remote_id}
        }}
        children {{
{children}        }}
    }}
}}
secrets {{
    ike-lab {{
        secret = \"{secret}\"
    }}
}}
",
        options = lines(8, &connection.options),
    )
}

/// A child and its number. The latter is its fixed request id: strongSwan 5.9.8 may give two children
/// the same one when it reauthenticates, and then sends packets of one through the other.
fn child_conf((child, reqid): (&Child, u32)) -> String {
    let Child { name, esp_proposal, local_ts, remote_ts, options } = child;
    let (local_ts, remote_ts) = (local_ts.join(","), remote_ts.join(","));
    format!(
        "            {name} {{
                local_ts = {local_ts}
                remote_ts = {remote_ts}
                esp_proposals = {esp_proposal}
                reqid = {reqid}
{options}            }}
",
        options = lines(16, options),
    )
}

/// Settings, one a line. Of two with the same name the later one counts.
fn lines(indent: usize, settings: &[String]) -> String {
    settings.iter().map(|setting| format!("{:indent$}{setting}\n", "")).collect()
}
