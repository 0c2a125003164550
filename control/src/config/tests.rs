//! Each mistake is reported on its line with its reason; a good file comes out as written.

use std::path::Path;

use culvert_ike::{Fragmentation, Lifetime, Uniqueness, Volume};
use proptest::prelude::*;

use super::*;

/// A whole configuration; tests change one piece of it.
const GOOD: &str = r#"[dataplane.outer]
device = "net_null0"
addresses = ["192.0.2.1/24", "2001:db8::1/64"]
[dataplane.inner]
addresses = ["10.1.0.1/24"]
[control]
runtime_dir = "/run/culvert"
socket_mode = "0660"
[connections.branch]
local_addrs = ["192.0.2.1"]
remote_addrs = ["198.51.100.7"]
transport = "auto"
fallback_after = 3
proposals = ["aes128gcm16-prfsha256-x25519", "aes256gcm16-prfsha384-ecp384"]
local = { auth = "psk", id = "gw.example" }
remote = { auth = "psk", id = "branch.example" }
[connections.branch.children.net]
local_ts = ["10.1.0.0/24"]
remote_ts = ["10.2.0.0/24", "10.3.0.0-10.3.0.9[tcp/80]"]
esp_proposals = ["aes128gcm16-esn", "aes128gcm16"]
start_action = "start"
[connections.road]
local = { auth = "psk", id = "gw.example" }
remote = { auth = "psk", id = "*.road.example" }
[connections.road.children.all]
local_ts = ["0.0.0.0/0"]
remote_ts = ["10.9.0.0/16"]
life_time = "1h"
[secrets.ike-branch]
id = ["branch.example"]
secret = "0x0011223344556677"
[secrets.ike-road]
id = ["*.road.example"]
secret = "0sZm9vYmFy"
"#;

fn load(text: String) -> Result<Config, ConfigError> {
    Config::from_source(&Source::new(Path::new("/nowhere/culvert.toml"), text))
}

#[test]
fn a_good_file_comes_out_as_written() {
    let config = load(GOOD.into()).map_err(|error| error.to_string()).expect("good");
    assert_eq!(config.socket_mode, 0o660);
    let branch = config.connection("branch").expect("configured");
    assert_eq!(branch.ike.proposals.len(), 2);
    assert_eq!(branch.ike.children[0].proposals[0].esn, [true]);
    assert_eq!(branch.ike.children[0].remote_ts[1].to_string(), "10.3.0.0-10.3.0.9[tcp/80]");
    assert_eq!(branch.children[0].start, Action::Start);
    let road = config.connection("road").expect("configured");
    assert_eq!(road.children[0].life_time, Some(Duration::from_secs(3600)));
    let local = "gw.example".parse().expect("an identity");
    let find = |remote: &str| {
        let secret = config.secrets.find(&local, &remote.parse().expect("an identity"));
        secret.map(|secret| secret.expose().to_vec())
    };
    assert_eq!(find("branch.example"), Some(vec![0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77]));
    assert_eq!(find("car7.road.example"), Some(b"foobar".to_vec()));
    assert_eq!(find("stranger.example"), None);
}

/// What the file says in place of `fallback_after`, and of the second child's `life_time`.
fn with(connection: &str, child: &str) -> Config {
    let text = GOOD.replace("fallback_after = 3", connection).replace("life_time = \"1h\"", child);
    load(text).map_err(|error| error.to_string()).expect("good")
}

#[test]
fn congestion_control_is_the_connections_or_the_dataplanes() {
    let of = |text: &str, name| {
        let text = GOOD.replace("fallback_after = 3", text);
        let text = text.replace(
            "[dataplane.outer]",
            "[dataplane]\ntcp_congestion = \"cubic\"\n[dataplane.outer]",
        );
        load(text).map_err(|error| error.to_string()).expect("good").tcp_congestion(name)
    };
    assert_eq!(of("tcp_congestion = \"bbr\"", "branch"), shm::Congestion::Bbr);
    assert_eq!(of("", "branch"), shm::Congestion::Cubic);
    assert_eq!(of("tcp_congestion = \"bbr\"", "road"), shm::Congestion::Cubic);
    assert_eq!(of("tcp_congestion = \"bbr\"", ""), shm::Congestion::Cubic, "half-open");
    let refused = |text: &str| {
        let text = GOOD.replace("fallback_after = 3", text);
        load(text).err().expect("wrong").to_string()
    };
    let line = 1 + GOOD.lines().position(|line| line == "fallback_after = 3").expect("there");
    let error = refused("tcp_congestion = \"reno\"");
    assert!(error.starts_with(&format!("/nowhere/culvert.toml:{line}: ")), "{error}");
    assert!(error.contains("`reno`, expected `bbr` or `cubic`"), "{error}");
}

const fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(minutes * 60)
}

#[test]
fn lifetimes_follow_from_each_other_as_in_swanctl() {
    let ike = |text| with(text, "").connection("branch").expect("there").ike.lifetime;
    let lifetime = |rekey_time, over_time, rand_time| Lifetime { rekey_time, over_time, rand_time };
    assert_eq!(ike(""), lifetime(Some(minutes(240)), minutes(24), minutes(24)));
    assert_eq!(
        ike("rekey_time = \"100m\""),
        lifetime(Some(minutes(100)), minutes(10), minutes(10))
    );
    let both = "rekey_time = \"100m\"\nreauth_time = \"300m\"\nrand_time = 0";
    assert_eq!(ike(both), lifetime(Some(minutes(100)), minutes(30), Duration::ZERO));
    assert_eq!(ike("rekey_time = 0").rekey_time, None);
    let child = |text| {
        let config = with("", text);
        let road = config.connection("road").expect("there");
        (road.ike.children[0].lifetime, road.children[0].life_time)
    };
    let hour = lifetime(Some(minutes(60)), minutes(6), minutes(6));
    assert_eq!(child(""), (hour, Some(minutes(66))));
    assert_eq!(child("rekey_time = \"60m\""), (hour, Some(minutes(66))));
    assert_eq!(child("life_time = \"66m\""), (hour, Some(minutes(66))));
    let apart = lifetime(Some(minutes(10)), minutes(20), minutes(1));
    let text = "rekey_time = \"10m\"\nlife_time = \"30m\"\nrand_time = \"1m\"";
    assert_eq!(child(text), (apart, Some(minutes(30))));
    assert_eq!(child("rekey_time = 0"), (Lifetime::UNLIMITED, None));
    assert_eq!(child("rekey_time = 0\nlife_time = 60"), (Lifetime::UNLIMITED, Some(minutes(1))));
}

#[test]
fn volumes_are_amounts_and_end_a_tenth_later() {
    let volumes = |text| {
        let config = with("", text);
        let child = Arc::clone(&config.connection("road").expect("there").ike.children[0]);
        (child.octets, child.packets)
    };
    let volume = |rekey, life| Volume { rekey, life };
    assert_eq!(volumes(""), (Volume::default(), Volume::default()));
    let octets = volume(Some(1 << 30), Some((1 << 30) + (1 << 30) / 10));
    let packets = volume(Some(1000), Some(5000));
    let text = "rekey_bytes = \"1G\"\nrekey_packets = 1000\nlife_packets = 5000";
    assert_eq!(volumes(text), (octets, packets));
    assert_eq!(volumes("rekey_bytes = 0\nlife_bytes = 7").0, volume(None, Some(7)));
}

#[test]
fn what_is_done_about_an_end_is_what_is_done_at_the_start_unless_said_otherwise() {
    let text = "start_action = \"trap\"\ndpd_action = \"clear\"";
    let text = GOOD.replace("start_action = \"start\"", text);
    let config = load(text).map_err(|error| error.to_string()).expect("good");
    let child = config.connection("branch").expect("there").children[0];
    assert_eq!((child.start, child.close, child.dpd), (Action::Trap, Action::Trap, Action::None));
}

#[test]
fn the_protocol_gets_what_the_connection_says() {
    let text = "dpd_delay = 0\nmobike = false\nudp_probe = 0\nfragmentation = \"accept\"\n\
                fragment_size = 1400\nkeyingtries = 3\ntcp_response_timeout = \"20s\"\n\
                additional_addrs = [\"2001:db8::1\"]\nunique = \"no\"";
    let config = with(text, "");
    let branch = config.connection("branch").expect("there");
    let ike = &branch.ike;
    assert_eq!((ike.dpd_delay, ike.udp_probe), (None, None));
    assert_eq!((ike.mobike, ike.fragmentation), (false, Fragmentation::Accept));
    assert_eq!(ike.unique, Uniqueness::No);
    assert_eq!((ike.fragment_size, branch.keyingtries), (1400, Some(3)));
    assert_eq!(ike.tcp_response_timeout, Duration::from_secs(20));
    assert_eq!(ike.additional_addrs, ["2001:db8::1".parse::<std::net::IpAddr>().expect("one")]);
    let defaults = with("", "");
    let defaults = defaults.connection("branch").expect("there");
    assert_eq!(defaults.ike.dpd_delay, Some(Duration::from_secs(30)));
    assert_eq!((defaults.ike.mobike, defaults.keyingtries), (true, None));
    let of_ike = (defaults.ike.fragmentation, defaults.ike.unique);
    assert_eq!(of_ike, (Fragmentation::Yes, Uniqueness::Replace));
}

/// Whoever wants fewer repetitions does not want to be without TCP.
#[test]
fn tcp_is_tried_before_an_attempt_ends() {
    let fallback_after =
        |text| with(text, "").connection("branch").expect("there").ike.fallback_after;
    assert_eq!(fallback_after(""), 3);
    assert_eq!(fallback_after("retransmit_tries = 1"), 2);
    assert_eq!(fallback_after("retransmit_tries = 2\nfallback_after = 3"), 3);
}

#[test]
fn limits_of_half_open_ike_sas_can_be_set() {
    let text = "socket_mode = \"0660\"\nhalf_open_max = 100\ncookie_threshold = 0\n\
                puzzle_threshold = 50\npuzzle_bits = 20\nhalf_open_timeout = \"5s\"";
    let config = load(GOOD.replace("socket_mode = \"0660\"", text));
    let limits = config.map_err(|error| error.to_string()).expect("good").limits;
    assert_eq!((limits.half_open_max, limits.half_open_per_source_max), (100, 100));
    assert_eq!((limits.cookie_threshold, limits.puzzle_threshold), (0, 50));
    assert_eq!((limits.puzzle_bits, limits.half_open_timeout), (20, Duration::from_secs(5)));
}

/// What to replace in [`GOOD`], by what, and how the message begins, from the line on.
const MISTAKES: &[(&str, &str, &str)] = &[
    ("runtime_dir = \"/run", "runtime_dir = \"run", "7: runtime_dir must be an absolute path"),
    ("\"0660\"", "\"0999\"", "8: socket_mode is written in octal, as in \"0660\""),
    (
        "local_addrs = [\"192.0.2.1\"]",
        "local_addrs = [\"192.0.2.9\"]",
        "10: 192.0.2.9 is not one of the addresses in [dataplane.outer]",
    ),
    (
        "local_addrs = [\"192.0.2.1\"]",
        "local_addrs = [\"192.0.3.0/24\"]",
        "10: no address in [dataplane.outer] is in 192.0.3.0/24",
    ),
    ("198.51.100.7", "192.0.2.1", "11: 192.0.2.1 is this gateway's own address"),
    ("198.51.100.7", "0.0.0.0", "11: 0.0.0.0 is not an address of a host"),
    ("198.51.100.7", "224.0.0.5", "11: 224.0.0.5 is not an address of a host"),
    ("198.51.100.7", "255.255.255.255", "11: 255.255.255.255 is not an address of a host"),
    ("198.51.100.7", "::", "11: :: is not an address of a host"),
    (
        "198.51.100.7",
        "peer",
        "11: \"peer\" is not %any, an address or a network such as 192.0.2.0/24",
    ),
    (
        "198.51.100.7",
        "%any",
        "21: start_action = \"start\" needs the peer's address in remote_addrs",
    ),
    ("\"auto\"", "\"ah\"", "12: unknown variant `ah`, expected one of `udp`, `tcp`, `auto`"),
    (
        "fallback_after = 3",
        "fragmentation = \"maybe\"",
        "13: unknown variant `maybe`, expected one of `force`, `yes`, `accept`, `no`",
    ),
    (
        "fallback_after = 3",
        "unique = \"keep\"",
        "13: unknown variant `keep`, expected one of `never`, `no`, `replace`",
    ),
    ("fallback_after = 3", "fallback_after = 1", "13: fallback_after must be between 2 and 20"),
    (
        "prfsha256-x25519",
        "prfmd5-x25519",
        "14: `prfmd5` in `aes128gcm16-prfmd5-x25519` is no known",
    ),
    (
        "[\"aes128gcm16-prfsha256-x25519\", \"aes256gcm16-prfsha384-ecp384\"]",
        "[]",
        "14: proposals needs 1 to 32 entries",
    ),
    ("auth = \"psk\", id = \"gw", "auth = \"pubkey\", id = \"gw", "15: unknown variant `pubkey`"),
    (
        "id = \"branch.example\" }",
        "id = \"other.example\" }",
        "16: no pre-shared key belongs to other.example or gw.example: add a section \
         [secrets.<name>] with id = [\"other.example\"] and a secret",
    ),
    (
        "id = \"branch.example\" }",
        "idd = \"x\" }",
        "16: unknown field `idd`, expected `auth` or `id`",
    ),
    ("local_ts = [\"10.1.0.0/24\"]", "local_ts = []", "18: local_ts needs 1 to 16 entries"),
    (
        "local_ts = [\"10.1.0.0/24\"]",
        "local_ts = [\"fd00::/64\"]",
        "19: no entry of local_ts has the address family and protocol of one of remote_ts",
    ),
    ("10.2.0.0/24", "10.2.0.0/33", "19: `/33` is no prefix length of that address family"),
    ("aes128gcm16-esn", "aes128gcm16-prfsha256", "20: `prfsha256` in"),
    ("start_action = \"start\"", "start_action = \"hold\"", "21: unknown variant `hold`"),
    ("[connections.road.children.all]", "[connections.branch]", "25: duplicate key"),
    ("life_time = \"1h\"", "life_time = \"1w\"", "28: \"1w\" is not a time: seconds, or a text"),
    ("life_time = \"1h\"", "life_time = -1", "28: \"-1\" is not a time: seconds, or a text"),
    (
        "life_time = \"1h\"",
        "life_time = \"1h\"\nrekey_time = \"1h\"",
        "28: life_time must be longer than rekey_time",
    ),
    (
        "life_time = \"1h\"",
        "rekey_time = \"1h\"\nrand_time = \"2h\"",
        "29: rand_time must not be longer than rekey_time",
    ),
    (
        "life_time = \"1h\"",
        "rekey_bytes = \"1G\"\nlife_bytes = \"1024M\"",
        "29: life_bytes must be more than rekey_bytes",
    ),
    (
        "life_time = \"1h\"",
        "rekey_packets = \"1x\"",
        "28: \"1x\" is not an amount: a number, or a text",
    ),
    (
        "life_time = \"1h\"",
        "dpd_action = \"restart\"",
        "28: dpd_action = \"start\" needs the peer's address in remote_addrs",
    ),
    (
        "life_time = \"1h\"",
        "close_action = \"trap\"",
        "28: close_action = \"trap\" needs the peer's address in remote_addrs",
    ),
    (
        "fallback_after = 3",
        "additional_addrs = [\"192.0.2.77\"]",
        "13: 192.0.2.77 is not one of the addresses in [dataplane.outer]",
    ),
    (
        "start_action = \"start\"",
        "mode = \"transport\"\nstart_action = \"trap\"",
        "22: traffic cannot set up a child in transport mode: use \"start\"",
    ),
    (
        "fallback_after = 3",
        "dscp = \"46\"",
        "13: dscp is written in six binary digits, as in \"101110\"",
    ),
    (
        "fallback_after = 3",
        "fallback_after = 4\nretransmit_tries = 2",
        "13: fallback_after must be at most retransmit_tries + 1: the attempt would end before TCP \
         is tried",
    ),
    ("fallback_after = 3", "udp_probe = 1", "13: udp_probe must be between 10s and 1d"),
    ("fallback_after = 3", "dpd_delay = \"2d\"", "13: dpd_delay must be between 1s and 1d"),
    ("fallback_after = 3", "fragment_size = 100", "13: fragment_size must be between 576 and 9000"),
    (
        "fallback_after = 3",
        "mobike = \"yes\"",
        "13: invalid type: string \"yes\", expected a boolean",
    ),
    ("fallback_after = 3", "rekey_time = 31536001", "13: rekey_time must be between 1s and 365d"),
    (
        "fallback_after = 3",
        "over_time = 0",
        "13: over_time must not be 0: the IKE SA would end when it is to be rekeyed",
    ),
    ("socket_mode = \"0660\"", "puzzle_bits = 33", "8: puzzle_bits must be between 1 and 32"),
    (
        "socket_mode = \"0660\"",
        "half_open_max = 9\nhalf_open_per_source_max = 10",
        "9: half_open_per_source_max must be between 1 and 9",
    ),
    ("life_time = \"1h\"", "life_time = 1", "28: life_time must be between 2s and 730d"),
    ("life_time = \"1h\"", "lifetime = 3", "28: unknown field `lifetime`, expected one of"),
    ("0x0011", "0x011", "31: after 0x an even number of hexadecimal digits must follow"),
    ("\"0sZm9vYmFy\"", "\"\"", "34: the secret is empty"),
    (
        "secret = \"0sZm9vYmFy\"",
        "secret_file = \"/nonexistent\"",
        "34: the secret's file cannot be read: No such file",
    ),
    ("secret = \"0sZm9vYmFy\"\n", "", "32: a secret needs either secret or secret_file"),
    ("[secrets.ike-road]", "[pools]\nx = 1\n[secrets.ike-road]", "32: pools of virtual addresses"),
    ("[secrets.ike-road]", "[secret.ike-road]", "32: unknown field `secret`, expected one of"),
    ("device = \"net_null0\"", "device = \"\"", "2: a device is one word of DPDK devargs"),
];

#[test]
fn each_mistake_is_reported_with_its_line() {
    for (old, new, expected) in MISTAKES {
        assert!(GOOD.contains(old), "{old:?} is not in the good file");
        let error = load(GOOD.replacen(old, new, 1)).err().expect(expected).to_string();
        let expected = format!("/nowhere/culvert.toml:{expected}");
        let found = error.lines().any(|line| line.starts_with(&expected));
        assert!(found, "{old} -> {new}\nexpected {expected}\nfound    {error}");
    }
}

/// A key of somebody else is none for whoever may come.
#[test]
fn a_pattern_needs_a_key_of_somebody_who_fits_it() {
    for (owner, is_covered) in [
        ("*.road.example", true),
        ("%any", true),
        ("car7.road.example", true),
        ("*.Example", true),
        ("*.east.road.example", true),
        ("gw.example", true),
        ("depot.example", false),
        ("*.rail.example", false),
        ("*@road.example", false),
    ] {
        let text = GOOD.replace("id = [\"*.road.example\"]", &format!("id = [\"{owner}\"]"));
        let error = load(text).err().map(|error| error.to_string());
        assert_eq!(error.is_none(), is_covered, "{owner}: {error:?}");
        if let Some(error) = error {
            let expected = "/nowhere/culvert.toml:24: no pre-shared key belongs to *.road.example";
            assert!(error.starts_with(expected), "{error}");
        }
    }
}

#[test]
fn a_connection_without_children_says_what_is_missing() {
    let start = GOOD.find("[connections.road.children.all]").expect("in the good file");
    let end = GOOD.find("[secrets.ike-branch]").expect("in the good file");
    let error = load(format!("{}{}", &GOOD[..start], &GOOD[end..])).err().expect("no children");
    assert_eq!(
        error.to_string(),
        "/nowhere/culvert.toml:22: a connection needs 1 to 64 children: add a section \
         [connections.road.children.<name>] with local_ts and remote_ts"
    );
}

#[test]
fn secrets_never_appear_in_errors() {
    for wrong in ["secret = \"0xtopsecret\"", "secret = \"0stopsecret!\"", "secret = topsecret"] {
        let text = GOOD.replace("secret = \"0sZm9vYmFy\"", wrong);
        let error = load(text).err().expect(wrong).to_string();
        assert!(!error.contains("topsecret"), "{error}");
    }
}

/// What is told of a mistake goes to the log, and to everybody who may use the socket.
#[test]
fn secrets_of_a_wrong_type_never_appear_in_errors() {
    let begin = GOOD.find("[secrets.ike-road]").expect("in the good file");
    for (wrong, expected) in [
        ("[secrets.ike-road]\nsecret = 314159265\n", "33: invalid type: a value of another type"),
        ("[secrets.ike-road]\nsecret = -314159265\n", "33: invalid type: a value of another type"),
        ("[secrets.ike-road]\nsecret = 3.14159265\n", "33: invalid type: a value of another type"),
        ("[secrets]\nike-road = \"314159265\"\n", "33: invalid type: a value of another type"),
        ("[secrets]\nike-road = 314159265\n", "33: invalid type: a value of another type"),
        (
            "[secrets]\nike-road = [\"314159265\"]\n",
            "33: invalid type: sequence, expected a section",
        ),
        ("[secrets.ike-road]\nsecrett = \"314159265\"\n", "33: unknown field `secrett`, expected"),
    ] {
        let error = load(format!("{}{wrong}", &GOOD[..begin])).err().expect(wrong).to_string();
        let expected = format!("/nowhere/culvert.toml:{expected}");
        assert!(error.starts_with(&expected), "{wrong}: {error}");
        assert!(!error.contains("14159265"), "{wrong}: {error}");
    }
}

#[test]
fn secrets_in_files_are_read_and_loose_permissions_warned_of() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("key");
    std::fs::write(&path, "0x0102\n").expect("written");
    let text = format!("secret_file = \"{}\"", path.display());
    let text = GOOD.replace("secret = \"0sZm9vYmFy\"", &text);
    for (mode, warnings) in [(0o640, 0), (0o644, 1)] {
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("changed");
        let config = load(text.clone()).map_err(|error| error.to_string()).expect("good");
        assert_eq!(config.warnings.len(), warnings, "{mode:o}: {:?}", config.warnings);
        let ids = ("gw.example", "car7.road.example").to_owned();
        let secret = config.secrets.find(&ids.0.parse().unwrap(), &ids.1.parse().unwrap());
        assert_eq!(secret.expect("in the file").expose(), [1, 2]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever is written in place of any piece of the file ends in settings or in an error.
    #[test]
    fn no_text_makes_the_check_panic(at in 0..GOOD.len(), length in 0usize..40, put in ".{0,20}") {
        let end = (at + length).min(GOOD.len());
        let _ = load(format!("{}{put}{}", &GOOD[..at], &GOOD[end..]));
    }
}

#[test]
fn transport_mode_takes_selectors_or_none() {
    let selectors = |replacement: &str| {
        let text =
            GOOD.replace("local_ts = [\"0.0.0.0/0\"]\nremote_ts = [\"10.9.0.0/16\"]", replacement);
        load(text).map(|config| {
            let child = config.connection("road").expect("configured").ike.children[0].clone();
            let both = [&child.local_ts, &child.remote_ts];
            (child.mode, both.map(|list| list.iter().map(ToString::to_string).collect::<Vec<_>>()))
        })
    };
    let any = ["0.0.0.0/0", "::/0"];
    let (mode, all) = selectors("mode = \"transport\"").map_err(|e| e.to_string()).expect("good");
    assert_eq!(
        (mode, all),
        (
            culvert_ike::ChildMode::Transport,
            [any, any].map(Vec::from_iter).map(|l| l.into_iter().map(str::to_owned).collect())
        )
    );
    let gre =
        "mode = \"transport\"\nlocal_ts = [\"dynamic[47]\"]\nremote_ts = [\"198.51.100.0/24\"]";
    let (_, [local, remote]) = selectors(gre).map_err(|e| e.to_string()).expect("good");
    assert_eq!(local, ["0.0.0.0/0[47]", "::/0[47]"], "swanctl's word for the end itself");
    assert_eq!(remote, ["198.51.100.0/24"]);
    let error = selectors("").expect_err("a tunnel is between networks").to_string();
    assert!(
        error.contains("local_ts is missing") && error.contains("remote_ts is missing"),
        "{error}"
    );
    let error = selectors("local_ts = [\"dynamic\"]\nremote_ts = [\"10.9.0.0/16\"]");
    assert!(error.is_err(), "a tunnel's `dynamic` needs virtual addresses");
}
