//! Each mistake is reported on its line with its reason, and a good section comes out as written.

use std::path::Path;

use proptest::prelude::*;

use super::*;

/// A section with every side filled; tests change one line of it.
const GOOD: &str = r#"[dataplane]
lcores = [1, 2]
tcp_ports = [443]
replay_window = 1024
sas = 16384
memory_mib = 256
[dataplane.outer]
device = "net_af_packet0,iface=outer0"
addresses = ["192.0.2.1/24", "2001:db8::1/64"]
gateways = ["192.0.2.254", "2001:db8::ff"]
mtu = 1500
[dataplane.inner]
device = "net_af_packet1,iface=inner0"
addresses = ["10.1.0.1/24", "fd00:1::1/64"]
routes = [
  { to = "10.9.0.0/16", via = "10.1.0.254" },
]
[connections.other]
anything = "is not the dataplane's business"
"#;

fn check(text: String) -> Result<Dataplane, ConfigError> {
    let source = Source::new(Path::new("culvert.toml"), text);
    let file: File = source.parse()?;
    let mut problems = Problems::new();
    let dataplane = file.dataplane.check(&source, &mut problems);
    source.finish(dataplane, problems)
}

#[test]
fn a_good_section_comes_out_as_written() {
    let dataplane = check(GOOD.into()).expect("good");
    assert_eq!(dataplane.workers(), 2);
    assert_eq!(dataplane.tcp_ports, [443, 4500], "4500 is always listened on");
    assert_eq!((dataplane.poll, dataplane.aead), (Poll::Busy, Aead::Auto));
    assert_eq!(dataplane.policies, 4 * 16384);
    assert_eq!(dataplane.inner_device.as_deref(), Some("net_af_packet1,iface=inner0"));
    let own = dataplane.outer.on_link("192.0.2.77".parse().unwrap()).expect("on-link");
    assert_eq!(own.to_string(), "192.0.2.1/24");
    assert_eq!(dataplane.outer.on_link("192.0.3.1".parse().unwrap()), None);
    assert_eq!(dataplane.inner.routes[0].to.to_string(), "10.9.0.0/16");
}

#[test]
fn both_sides_may_be_one_port() {
    let same = GOOD.replace("net_af_packet1,iface=inner0", "net_af_packet0,iface=outer0");
    assert_eq!(check(same).expect("good").inner_device, None);
    let absent = GOOD.replace("device = \"net_af_packet1,iface=inner0\"\n", "");
    assert_eq!(check(absent).expect("good").inner_device, None);
}

/// What to replace in [`GOOD`], by what, and what is said on which line.
const MISTAKES: &[(&str, &str, &str)] = &[
    ("lcores = [1, 2]", "lcores = [1, 1]", "2: lcore 1 is named twice"),
    ("lcores = [1, 2]", "lcores = [128]", "2: an lcore is at most 127"),
    ("[443]", "[443, 443]", "3: TCP port 443 is named twice"),
    ("[443]", "[0]", "3: a TCP port is between 1 and 65535"),
    ("[443]", "[70000]", "3: a TCP port is between 1 and 65535"),
    ("= 1024", "= 1000", "4: replay_window must be a multiple of 64"),
    ("= 1024", "= 8192", "4: replay_window must be between 64 and 4096"),
    ("= 16384", "= 10000", "5: sas must be a power of two: 8192 or 16384"),
    ("= 16384", "= 2097152", "5: sas must be between 16 and 1048576"),
    ("= 256", "= 1", "6: memory_mib must be between 64 and 1048576"),
    ("\"net_af_packet0,iface=outer0\"", "\"two words\"", "8: a device is one word of DPDK devargs"),
    (
        "\"192.0.2.1/24\"",
        "\"192.0.2.1\"",
        "9: \"192.0.2.1\" has no prefix length: write it as in 192.0.2.1/24",
    ),
    (
        "192.0.2.1/24",
        "192.0.2.1/33",
        "9: \"192.0.2.1/33\" has a prefix length that is not between 0 and 32",
    ),
    (
        "192.0.2.1/24",
        "192.0.2.1/+4",
        "9: \"192.0.2.1/+4\" has a prefix length that is not between 0 and 32",
    ),
    ("192.0.2.1/24", "192.0.2/24", "9: \"192.0.2/24\" is not an IPv4 or IPv6 address"),
    ("192.0.2.1/24", "224.0.0.1/24", "9: 224.0.0.1 is not an address of a host"),
    ("2001:db8::1/64", "192.0.2.1/28", "9: 192.0.2.1 is named twice"),
    ("192.0.2.254", "192.0.2.1", "10: 192.0.2.1 is this gateway's own address"),
    ("192.0.2.254", "192.0.9.1", "10: 192.0.9.1 is in no network of the outer side's addresses"),
    ("2001:db8::ff", "192.0.2.2", "10: more than one gateway of the same address family"),
    ("mtu = 1500", "mtu = 1279", "11: mtu must be between 1280 and 9000"),
    ("10.1.0.1/24", "192.0.2.1/24", "14: 192.0.2.1 is also an address of the outer side"),
    (
        "10.9.0.0/16",
        "10.9.0.1/16",
        "16: \"10.9.0.1/16\" has host bits set: the network is 10.9.0.0/16",
    ),
    (
        "\"10.1.0.254\"",
        "\"fd00:1::2\"",
        "16: 10.9.0.0/16 and fd00:1::2 are not of the same address family",
    ),
    (
        "lcores = [1, 2]",
        "poll = \"lazy\"",
        "2: unknown variant `lazy`, expected `busy` or `adaptive`",
    ),
    (
        "device = \"net_af_packet0,iface=outer0\"\n",
        "",
        "7: the outer side needs a device, as in device = \"net_af_packet0,iface=eth0\" or \"0000:03:00.0\"",
    ),
    ("mtu = 1500", "mtu = ", "11: string values must be quoted, expected literal string"),
];

#[test]
fn each_mistake_is_reported_with_its_line() {
    for (old, new, expected) in MISTAKES {
        assert!(GOOD.contains(old), "{old:?} is not in the good section");
        let error = check(GOOD.replacen(old, new, 1)).expect_err(expected).to_string();
        let expected = format!("culvert.toml:{expected}");
        assert_eq!(error.lines().next(), Some(expected.as_str()), "{old} -> {new}: {error}");
    }
}

#[test]
fn unknown_keys_are_refused_where_they_stand() {
    let error = check(GOOD.replace("sas =", "sass =")).expect_err("unknown key").to_string();
    assert!(error.starts_with("culvert.toml:5: unknown field `sass`, expected one of"), "{error}");
}

#[test]
fn all_mistakes_come_at_once_in_the_order_of_lines() {
    let text = GOOD.replace("1500", "1").replace("= 16384", "= 3").replace("192.0.2.254", "x");
    let error = check(text).expect_err("three mistakes").to_string();
    let lines: Vec<&str> = error.lines().map(|line| line.split(':').nth(1).unwrap()).collect();
    assert_eq!(lines, ["5", "10", "11"]);
}

#[test]
fn a_flood_of_mistakes_is_cut() {
    let ports = vec!["0"; 500].join(", ");
    let error = check(GOOD.replace("[443]", &format!("[{ports}]"))).expect_err("flood").to_string();
    assert_eq!(error.lines().count(), 51);
    assert!(error.ends_with("and 450 more"), "{error}");
}

#[test]
fn what_only_follows_from_another_setting_is_no_difference_of_its_own() {
    let differences = |one: &str, other: &str| {
        let [one, other] = [one, other].map(|text| check(text.to_owned()).expect("good"));
        one.differences(&other).iter().map(|fixed| fixed.name).collect::<Vec<_>>()
    };
    let more = GOOD.replace("sas = 16384", "sas = 32768");
    assert_eq!(differences(GOOD, &more), ["[dataplane] sas"]);
    let said = more.replace("sas = 32768", "sas = 32768\npeers = 100\npolicies = 200");
    let all = ["[dataplane] sas", "[dataplane] policies", "[dataplane] peers"];
    assert_eq!(differences(GOOD, &said), all);
    assert_eq!(differences(&more, &said), all[1..]);
}

#[test]
fn networks_know_their_bounds() {
    for (network, last, inside, outside) in [
        ("10.0.0.0/8", "10.255.255.255", "10.1.2.3", "11.0.0.0"),
        ("0.0.0.0/0", "255.255.255.255", "255.255.255.255", "::"),
        ("192.0.2.7/32", "192.0.2.7", "192.0.2.7", "192.0.2.8"),
        ("2001:db8::/32", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db8::1", "2001:db9::"),
        ("::/0", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::1", "0.0.0.0"),
    ] {
        let parsed: Network = network.parse().expect(network);
        assert_eq!(parsed.to_string(), network);
        assert_eq!(parsed.last().to_string(), last);
        assert!(parsed.contains(inside.parse().unwrap()), "{inside} in {network}");
        assert!(!parsed.contains(outside.parse().unwrap()), "{outside} not in {network}");
    }
}

proptest! {
    /// Whatever is written in place of any piece of the file ends in settings or in an error.
    #[test]
    fn no_text_makes_the_check_panic(at in 0..GOOD.len(), length in 0usize..40, put in ".{0,20}") {
        let end = (at + length).min(GOOD.len());
        let _ = check(format!("{}{put}{}", &GOOD[..at], &GOOD[end..]));
    }
}
