//! Two gateways that are each other's peer.

use culvert_api::{Client, ClientError, Code, Command, Row};

use super::{Dataplane, Gateway, Network, PATIENCE, dataplane_section, eventually};

/// One end of the two.
pub(crate) struct Site {
    pub(crate) outer: &'static str,
    pub(crate) peer: &'static str,
    pub(crate) inner: &'static str,
    pub(crate) id: &'static str,
    pub(crate) peer_id: &'static str,
    pub(crate) local_ts: &'static str,
    pub(crate) remote_ts: &'static str,
}

pub(crate) const LEFT: Site = Site {
    outer: "192.0.2.1/24",
    peer: "192.0.2.2",
    inner: "10.1.0.1/24",
    id: "a.example",
    peer_id: "b.example",
    local_ts: "10.1.0.0/24",
    remote_ts: "10.2.0.0/24",
};
pub(crate) const RIGHT: Site = Site {
    outer: "192.0.2.2/24",
    peer: "192.0.2.1",
    inner: "10.2.0.1/24",
    id: "b.example",
    peer_id: "a.example",
    local_ts: "10.2.0.0/24",
    remote_ts: "10.1.0.0/24",
};

/// The configuration of an end: one connection, `other`, with one child, `net`.
pub(crate) fn config(site: &Site, transport: &str, secret: &str) -> String {
    let Site { outer, peer, inner, id, peer_id, local_ts, remote_ts } = site;
    dataplane_section(outer, inner)
        + &format!(
            r#"
[connections.other]
remote_addrs = ["{peer}"]
transport = "{transport}"
fallback_after = 2
retransmit_timeout_ms = 200
retransmit_tries = 3
proposals = ["aes128gcm16-prfsha256-x25519"]
local = {{ auth = "psk", id = "{id}" }}
remote = {{ auth = "psk", id = "{peer_id}" }}
[connections.other.children.net]
local_ts = ["{local_ts}"]
remote_ts = ["{remote_ts}"]
esp_proposals = ["aes256gcm16-esn"]
[secrets.ike]
secret = "{secret}"
"#
        )
}

/// Two gateways and what lies between them.
pub(crate) struct Pair {
    pub(crate) left: Gateway,
    pub(crate) right: Gateway,
    pub(crate) network: Network,
}

/// Two gateways with the usual configurations.
pub(crate) fn pair(transport: &str, passes_udp: bool, secrets: [&str; 2]) -> Pair {
    let left = config(&LEFT, transport, secrets[0]);
    pair_of(&left, &config(&RIGHT, "auto", secrets[1]), passes_udp)
}

/// Two gateways with these configurations, whose dataplanes are at work.
pub(crate) fn pair_of(left: &str, right: &str, passes_udp: bool) -> Pair {
    let (left, right) = (Gateway::start(left), Gateway::start(right));
    let ends = (Dataplane::connect(&left), Dataplane::connect(&right));
    let network = Network::join(ends.0, ends.1, passes_udp);
    for gateway in [&left, &right] {
        eventually("the dataplane is seen", || gateway.status().dataplane.up.then_some(()));
    }
    Pair { left, right, network }
}

/// Sets `other` up and says what came of it.
pub(crate) fn initiate(client: &mut Client) -> Result<String, (Code, String)> {
    client.patience(Some(PATIENCE * 2)).expect("set");
    let command = Command::Initiate { connection: "other".into(), child: None, wait_s: 15 };
    match client.rows(command) {
        Ok(rows) => match rows.as_slice() {
            [Row::Outcome(outcome)] => Ok(outcome.message.clone()),
            other => panic!("not an outcome: {other:?}"),
        },
        Err(ClientError::Refused(refusal)) => Err((refusal.code, refusal.message)),
        Err(other) => panic!("no answer: {other}"),
    }
}

/// Asks for something, and gives what came of each SA that it was about.
pub(crate) fn ask(gateway: &Gateway, command: Command) -> Result<Vec<String>, (Code, String)> {
    let mut client = gateway.client();
    client.patience(Some(PATIENCE * 2)).expect("set");
    match client.rows(command) {
        Ok(rows) => Ok(rows
            .into_iter()
            .map(|row| match row {
                Row::Outcome(outcome) => outcome.message,
                other => panic!("not an outcome: {other:?}"),
            })
            .collect()),
        Err(ClientError::Refused(refusal)) => Err((refusal.code, refusal.message)),
        Err(other) => panic!("no answer: {other}"),
    }
}

/// A configuration of [`config`] with more settings of the connection and of its child.
pub(crate) fn with(config: &str, connection: &str, child: &str) -> String {
    let config = config.replace("fallback_after = 2", &format!("fallback_after = 2\n{connection}"));
    let proposals = "esp_proposals = [\"aes256gcm16-esn\"]";
    config.replace(proposals, &format!("{proposals}\n{child}"))
}

/// Waits for an event that begins so.
pub(crate) fn told(gateway: &Gateway, beginning: &str) -> String {
    eventually(beginning, || {
        gateway.events().into_iter().find(|event| event.starts_with(beginning))
    })
}
