//! Rows as they are printed.

use culvert_api::{Child, ChildState, Happening, Mode, Role, Standing, Transport};

use super::*;

fn printed(rows: &[Row]) -> String {
    let mut out = Vec::new();
    super::rows(rows, &mut out).expect("a vector takes all");
    String::from_utf8(out).expect("text")
}

fn ike(id: Option<u64>, connection: &str, children: Vec<ChildSa>) -> Row {
    Row::IkeSa(IkeSa {
        id,
        connection: connection.into(),
        state: if id.is_some() { IkeState::Established } else { IkeState::Orphaned },
        role: id.map(|_| Role::Initiator),
        transport: Transport::Tcp,
        local: "192.0.2.1:40000".into(),
        remote: "198.51.100.7:4500".into(),
        local_id: "gw.example".into(),
        remote_id: "branch.example".into(),
        spi_initiator: "1111111111111111".into(),
        spi_responder: "2222222222222222".into(),
        proposal: "aes128gcm16-prfsha256-x25519".into(),
        tcp: Some("0/12/3".into()),
        mobike: id.is_some(),
        nat_local: false,
        nat_remote: id.is_some(),
        age_s: 125,
        rekey_s: id.map(|_| 7000),
        reauth_s: None,
        expires_s: None,
        children,
    })
}

fn child(name: &str) -> ChildSa {
    ChildSa {
        name: name.into(),
        state: ChildState::Installed,
        mode: Mode::Transport,
        spi_in: "c0de0001".into(),
        spi_out: "beef0002".into(),
        proposal: "aes128gcm16-esn".into(),
        local_ts: vec!["10.1.0.0/24".into()],
        remote_ts: vec!["10.2.0.0/24".into()],
        packets_in: 10,
        octets_in: 14_000,
        packets_out: 20,
        octets_out: 2048,
        drops_in: 1,
        drops_out: 2,
        age_s: 124,
        idle_s: Some(0),
        rekey_s: Some(600),
        expires_s: None,
    }
}

#[test]
fn sas_are_two_tables_sorted_by_connection() {
    let text = printed(&[ike(Some(2), "z", vec![child("net")]), ike(None, "a", vec![])]);
    let expected = "\
IKE SA  CONNECTION  STATE        ROLE       LOCAL            REMOTE             REMOTE ID       VIA         ALGORITHMS                    SPIS                               MOBIKE  NAT     AGE  REKEY  REAUTH
     -  a           orphaned     -          192.0.2.1:40000  198.51.100.7:4500  branch.example  tcp 0/12/3  aes128gcm16-prfsha256-x25519  -                                  no      -     2m05s      -       -
     2  z           established  initiator  192.0.2.1:40000  198.51.100.7:4500  branch.example  tcp 0/12/3  aes128gcm16-prfsha256-x25519  1111111111111111 2222222222222222  yes     peer  2m05s  1h56m       -

CHILD SA  SPI IN    SPI OUT   IKE SA  STATE      MODE       ALGORITHM        TRAFFIC                      PACKETS IN        IN  PACKETS OUT       OUT  DROPPED  IDLE    AGE   REKEY  EXPIRES
net       c0de0001  beef0002       2  installed  transport  aes128gcm16-esn  10.1.0.0/24 === 10.2.0.0/24          10  13.6 KiB           20  2.00 KiB        3    0s  2m04s  10m00s        -
";
    assert_eq!(text, expected);
}

#[test]
fn a_connection_that_is_down_says_why_and_what_comes_next() {
    let child = |name: &str, now, retry_s| Child {
        name: name.into(),
        local_ts: vec!["10.1.0.0/24".into()],
        remote_ts: vec!["10.2.0.0/24".into()],
        start_action: "start".into(),
        close_action: "start".into(),
        dpd_action: "start".into(),
        now,
        retry_s,
        reason: (now != Standing::Up).then(|| "no answer".into()),
    };
    let row = Row::Connection(Connection {
        name: "branch".into(),
        local_addrs: vec![],
        remote_addrs: vec!["192.0.2.2".into()],
        transport: "auto".into(),
        local_id: "a".into(),
        remote_id: "b".into(),
        children: vec![
            child("net", Standing::Waiting, Some(34)),
            child("more", Standing::Held, None),
            child("up", Standing::Up, None),
        ],
        ike_sas: 1,
    });
    let expected = "\
CONNECTION  LOCAL      REMOTE          TRANSPORT  CHILD  TRAFFIC                      START  IKE SAS  NOW           WHY
branch      a at %any  b at 192.0.2.2  auto       net    10.1.0.0/24 === 10.2.0.0/24  start        1  again in 34s  no answer
                                                  more   10.1.0.0/24 === 10.2.0.0/24  start           terminated    no answer
                                                  up     10.1.0.0/24 === 10.2.0.0/24  start           up            -
";
    assert_eq!(printed(&[row]), expected);
}

#[test]
fn no_rows_say_so() {
    assert_eq!(printed(&[]), "none\n");
}

#[test]
fn events_are_lines() {
    let happening = Happening::IkeDown { reason: "terminated\u{7} here".into() };
    let event = Event {
        time_ms: 0,
        connection: Some("branch".into()),
        ike: Some(3),
        peer: Some("b.example".into()),
        happening,
    };
    let mut out = Vec::new();
    super::event(&event, &mut out).expect("a vector takes all");
    let expected =
        "1970-01-01 00:00:00.000  branch#3 b.example  IKE SA down: terminated\\u{7} here\n";
    assert_eq!(String::from_utf8(out).expect("text"), expected);
}
