//! Another configuration while the gateway runs.

#![allow(clippy::panic, reason = "helpers of tests fail the test")]

mod support;

use culvert_api::{Code, Command, Confidential, Unloaded};
use support::pair::{LEFT, Pair, RIGHT, ask, config, initiate, pair, told, with};
use support::{Gateway, eventually};

fn usual() -> String {
    config(&LEFT, "udp", "shared")
}

fn up() -> Pair {
    let pair = pair("udp", true, ["shared", "shared"]);
    initiate(&mut pair.left.client()).expect("up");
    eventually("the responder shows it", || (pair.right.status().child_sas == 1).then_some(()));
    pair
}

fn reload(gateway: &Gateway, config: &str) -> Result<Vec<String>, (Code, String)> {
    gateway.configure(config);
    ask(gateway, Command::Reload)
}

fn load(gateway: &Gateway, text: &str) -> Result<Vec<String>, (Code, String)> {
    let text = Confidential::new(text.to_owned());
    ask(gateway, Command::Load { name: "more.toml".into(), text })
}

fn connection(name: &str, remote_id: &str) -> String {
    format!(
        "[connections.{name}]\nlocal = {{ auth = \"psk\", id = \"a.example\" }}\n\
         remote = {{ auth = \"psk\", id = \"{remote_id}\" }}\n\
         [connections.{name}.children.net]\nlocal_ts = [\"10.1.0.0/24\"]\n\
         remote_ts = [\"10.9.0.0/24\"]\n"
    )
}

fn names(gateway: &Gateway) -> Vec<String> {
    let rows = gateway.client().rows(Command::Connections).expect("connections");
    let name = |row| match row {
        culvert_api::Row::Connection(connection) => connection.name,
        other => panic!("not a connection: {other:?}"),
    };
    rows.into_iter().map(name).collect()
}

#[test]
fn an_unchanged_file_changes_nothing() {
    let pair = up();
    let before = pair.left.sas();
    assert_eq!(reload(&pair.left, &usual()).expect("reloaded"), ["nothing changed"]);
    let after = pair.left.sas();
    assert_eq!(after.len(), 1);
    assert_eq!((after[0].id, &after[0].spi_initiator), (before[0].id, &before[0].spi_initiator));
}

#[test]
fn connections_come_and_go_and_the_others_stay() {
    let pair = up();
    let both = usual() + &connection("branch", "c.example");
    assert_eq!(reload(&pair.left, &both).expect("reloaded"), ["connection branch added"]);
    assert_eq!(names(&pair.left), ["branch", "other"]);
    let one = both.replace("[connections.other", "[connections.renamed");
    let said = reload(&pair.left, &one).expect("reloaded");
    let gone = "connection other removed; 1 IKE SAs of it are being deleted";
    assert_eq!(said, [gone, "connection renamed added"]);
    told(&pair.left, "configuration: 1 connections added, 1 removed, 0 changed; 0 secrets differ");
    for gateway in [&pair.left, &pair.right] {
        eventually("its SAs are gone", || gateway.sas().is_empty().then_some(()));
    }
    let events = pair.left.events();
    assert!(!events.iter().any(|event| event.starts_with("next attempt")), "{events:#?}");
}

#[test]
fn a_connection_that_is_to_stand_is_set_up_when_it_is_added() {
    let pair = pair("udp", true, ["shared", "shared"]);
    let standing = with(&usual(), "", "start_action = \"start\"");
    assert_eq!(reload(&pair.left, &standing).expect("reloaded"), ["connection other changed"]);
    eventually("it is up", || (pair.right.status().child_sas == 1).then_some(()));
}

/// swanctl's rule: what is agreed on stays until it is renewed.
#[test]
fn sas_of_a_changed_connection_stay_and_take_it_up_when_they_are_rekeyed() {
    let pair = up();
    let before = pair.left.sas().remove(0);
    assert_eq!(before.children[0].proposal, "aes256gcm16-esn");
    let proposals = "esp_proposals = [\"aes128gcm16-esn\"]";
    let change = |text: String| text.replace("esp_proposals = [\"aes256gcm16-esn\"]", proposals);
    let said = reload(&pair.right, &change(config(&RIGHT, "auto", "shared"))).expect("reloaded");
    let stays = "connection other changed; 1 IKE SAs stay and take it up when they are renewed";
    assert_eq!(said, [stays]);
    assert_eq!(reload(&pair.left, &change(usual())).expect("reloaded"), [stays]);
    let after = pair.left.sas().remove(0);
    assert_eq!(after.children[0].spi_in, before.children[0].spi_in, "it stays");
    let target = culvert_api::Target::Child(before.children[0].spi_in.clone());
    ask(&pair.left, Command::Rekey { target, wait_s: 15 }).expect("rekeyed");
    eventually("it has the new proposal", || {
        let children = pair.left.sas().remove(0).children;
        (children.len() == 1 && children[0].proposal == "aes128gcm16-esn").then_some(())
    });
}

#[test]
fn sas_whose_identity_fits_no_more_end() {
    let pair = up();
    let other = usual().replace("id = \"b.example\"", "id = \"c.example\"");
    let said = reload(&pair.left, &other).expect("reloaded");
    let ends =
        "connection other changed; 1 IKE SAs are being deleted: their identities fit no more";
    assert_eq!(said, [ends]);
    eventually("it is gone", || pair.left.sas().is_empty().then_some(()));
}

/// Names of the DNS ignore case.
#[test]
fn sas_stay_when_an_identity_is_only_written_in_another_way() {
    let pair = up();
    let other = usual().replace("id = \"a.example\"", "id = \"A.Example\"");
    let other = other.replace("id = \"b.example\"", "id = \"B.Example\"");
    let said = reload(&pair.left, &other).expect("reloaded");
    let stays = "connection other changed; 1 IKE SAs stay and take it up when they are renewed";
    assert_eq!(said, [stays]);
}

#[test]
fn a_child_that_is_gone_from_the_file_goes_with_its_sa() {
    let pair = up();
    let renamed = usual().replace("children.net]", "children.lan]");
    let said = reload(&pair.left, &renamed).expect("reloaded");
    let stays = "connection other changed; 1 IKE SAs stay and take it up when they are renewed";
    assert_eq!(said, [stays, "child net of other removed, with its SAs"]);
    eventually("the IKE SA has no child", || {
        let sas = pair.left.sas();
        (sas.len() == 1 && sas[0].children.is_empty()).then_some(())
    });
    let up = initiate(&mut pair.left.client()).expect("the new one");
    assert!(up.contains("CHILD SA lan"), "{up}");
}

#[test]
fn a_bad_file_is_refused_whole() {
    let pair = up();
    let bad = connection("branch", "c.example") + &usual().replace("transport = ", "transprot = ");
    let (code, message) = reload(&pair.left, &bad).expect_err("refused");
    assert_eq!(code, Code::Failed);
    let file = pair.left.dir.path().join("culvert.toml");
    let line = 1 + bad.lines().position(|line| line.starts_with("transprot")).expect("there");
    let expected = format!("{}:{line}: unknown field `transprot`", file.display());
    assert!(message.starts_with(&expected), "{message}");
    assert_eq!(names(&pair.left), ["other"], "nothing of it is there");
    assert_eq!(pair.left.sas().len(), 1);
    told(&pair.left, "configuration refused: ");
}

fn line_of(text: &str, beginning: &str) -> usize {
    1 + text.lines().position(|line| line.starts_with(beginning)).expect("there")
}

#[test]
fn what_needs_control_to_be_restarted_is_named_with_its_line_and_refused() {
    let pair = up();
    let more = usual().replace("sas = 64", "sas = 128").replace("192.0.2.1/24", "192.0.2.7/24");
    let more = more + &connection("branch", "c.example");
    let (_, message) = reload(&pair.left, &more).expect_err("refused");
    let file = pair.left.dir.path().join("culvert.toml");
    let todo = "takes effect with systemctl restart culvert-control culvert-dataplane (all SAs end); \
                nothing was applied";
    let lines = [("sas", "[dataplane] sas"), ("[dataplane.outer]", "[dataplane.outer]")].map(
        |(beginning, name)| {
            format!("{}:{}: {name} {todo}", file.display(), line_of(&more, beginning))
        },
    );
    assert_eq!(message, lines.join("\n"));
    assert_eq!(names(&pair.left), ["other"]);
}

/// The dataplane reads it when it starts, which is told; connections need not wait for that.
#[test]
fn what_needs_the_dataplane_to_be_restarted_is_told_and_the_rest_applied() {
    let pair = up();
    let more = usual().replace("[dataplane.outer]", "poll = \"adaptive\"\n[dataplane.outer]");
    let more = more.replace("10.1.0.1/24", "10.1.0.7/24") + &connection("branch", "c.example");
    let said = reload(&pair.left, &more).expect("reloaded");
    let file = pair.left.dir.path().join("culvert.toml");
    let todo =
        "takes effect with systemctl restart culvert-dataplane (SAs go on); the rest is applied";
    let line = |beginning, name| {
        format!("{}:{}: {name} {todo}", file.display(), line_of(&more, beginning))
    };
    let [poll, inner] =
        [line("poll", "[dataplane] poll"), line("[dataplane.inner]", "[dataplane.inner]")];
    assert_eq!(said, [poll, inner, "connection branch added".to_owned()]);
    assert_eq!(pair.left.sas().len(), 1);
    // A setting that is not in the file any more is shown at its section.
    let said = reload(&pair.left, &more.replace("poll = \"adaptive\"\n", "")).expect("reloaded");
    assert_eq!(said, [line("[dataplane]", "[dataplane] poll")]);
}

/// Nobody has to be restarted for these, but they did change.
#[test]
fn what_takes_effect_with_the_next_sa_or_connection_is_told() {
    let gateway = Gateway::start(&usual());
    let settings = "[dataplane]\nreplay_window = 128\ntcp_congestion = \"cubic\"\n";
    let changed = usual().replace("[dataplane]\n", settings);
    let told = [
        "[dataplane] tcp_congestion changed; new TCP connections take it up",
        "[dataplane] replay_window changed; new CHILD SAs take it up",
    ];
    assert_eq!(reload(&gateway, &changed).expect("reloaded"), told);
    assert_eq!(reload(&gateway, &changed).expect("reloaded"), ["nothing changed"]);
}

#[test]
fn secrets_are_added_changed_and_removed() {
    let pair = up();
    let more = usual() + "[secrets.branch]\nid = [\"c.example\"]\nsecret = \"another\"\n";
    assert_eq!(reload(&pair.left, &more).expect("reloaded"), ["secret branch added"]);
    let other = usual().replace("secret = \"shared\"", "secret = \"else\"");
    let said = reload(&pair.left, &other).expect("reloaded");
    assert_eq!(said, ["secret branch removed", "secret ike changed"]);
    assert_eq!(pair.left.sas().len(), 1, "what is authenticated stays");
    let command = Command::Reauthenticate { target: culvert_api::Target::All {}, wait_s: 15 };
    let (_, message) = ask(&pair.left, command).expect_err("another key");
    assert!(message.contains("AUTHENTICATION_FAILED"), "{message}");
}

#[test]
fn connections_and_secrets_are_loaded_and_unloaded_one_by_one() {
    let pair = pair("udp", true, ["shared", "shared"]);
    let fragment = connection("branch", "c.example")
        + "[secrets.branch]\nid = [\"c.example\"]\nsecret = \"another\"\n";
    let said = load(&pair.left, &fragment).expect("loaded");
    assert_eq!(said, ["secret branch added", "connection branch added"]);
    assert_eq!(names(&pair.left), ["branch", "other"]);
    let unload = |what| ask(&pair.left, Command::Unload { what });
    // The key without owner would do for branch; other has only that one.
    let (code, message) = unload(Unloaded::Secret("ike".into())).expect_err("needed");
    assert_eq!(code, Code::Failed);
    assert_eq!(message, "connection other has no other key than ike: unload it first");
    assert_eq!(unload(Unloaded::Secret("branch".into())).expect("gone"), ["secret branch removed"]);
    initiate(&mut pair.left.client()).expect("up");
    let said = unload(Unloaded::Connection("other".into())).expect("gone");
    assert_eq!(said, ["connection other removed; 1 IKE SAs of it are being deleted"]);
    eventually("its SAs are gone", || pair.left.sas().is_empty().then_some(()));
    for (what, expected) in [
        (Unloaded::Connection("other".into()), "no connection is called \"other\""),
        (Unloaded::Secret("branch".into()), "no secret is called \"branch\""),
    ] {
        assert_eq!(unload(what).expect_err("gone"), (Code::NotFound, expected.to_owned()));
    }
    let said = ask(&pair.left, Command::Reload).expect("reloaded");
    assert_eq!(said, ["connection branch removed", "connection other added"], "as the file says");
}

#[test]
fn a_bad_fragment_is_refused_whole() {
    let pair = up();
    let wrong = connection("branch", "c.example") + "[dataplane]\nsas = 64\n";
    let (_, message) = load(&pair.left, &wrong).expect_err("refused");
    assert!(message.starts_with("more.toml:7: unknown field `dataplane`"), "{message}");
    let secret = "[secrets.x]\nsecret = \"0xtopsecret\"\n";
    let (_, message) = load(&pair.left, secret).expect_err("refused");
    assert!(message.starts_with("more.toml:2: after 0x an even number"), "{message}");
    assert!(!message.contains("topsecret"), "{message}");
    assert_eq!(names(&pair.left), ["other"]);
}

#[test]
fn a_hangup_signal_reloads() {
    let pair = pair("udp", true, ["shared", "shared"]);
    pair.left.configure(&(usual() + &connection("branch", "c.example")));
    pair.left.hang_up();
    told(&pair.left, "configuration: 1 connections added, 0 removed, 0 changed; 0 secrets differ");
    pair.left.configure("nonsense");
    pair.left.hang_up();
    told(&pair.left, "configuration refused: ");
    assert_eq!(names(&pair.left), ["branch", "other"]);
}

/// A file that takes long to read, here because it is a pipe, must not undo what was read after it.
#[test]
fn a_reload_that_another_one_has_overtaken_is_not_applied() {
    use rustix::fs::{CWD, FileType, Mode, OFlags};
    let gateway = Gateway::start(&usual());
    let (file, pipe) = (gateway.dir.path().join("culvert.toml"), gateway.dir.path().join("pipe"));
    gateway.configure(&(usual() + &connection("early", "c.example")));
    let early = std::fs::read(&file).expect("read");
    std::fs::remove_file(&file).expect("removed");
    rustix::fs::mknodat(CWD, &file, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("made");
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| ask(&gateway, Command::Reload));
        let writer = eventually("it is being read", || {
            rustix::fs::open(&file, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty()).ok()
        });
        std::fs::rename(&file, &pipe).expect("moved away");
        let late = usual() + &connection("late", "c.example");
        assert_eq!(reload(&gateway, &late).expect("reloaded"), ["connection late added"]);
        assert_eq!(rustix::io::write(&writer, &early).expect("written"), early.len());
        drop(writer);
        let (code, message) = slow.join().expect("an answer").expect_err("overtaken");
        assert_eq!(code, Code::Busy);
        assert!(message.contains("another reload has read the file meanwhile"), "{message}");
    });
    assert_eq!(names(&gateway), ["late", "other"]);
}

/// Whoever loads must not make the gateway wait.
#[test]
fn a_secret_in_a_pipe_is_refused() {
    use rustix::fs::{CWD, FileType, Mode};
    let gateway = Gateway::start(&usual());
    let pipe = gateway.dir.path().join("pipe");
    rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR, 0).expect("made");
    let text = format!("[secrets.slow]\nsecret_file = \"{}\"\n", pipe.display());
    let (code, message) = load(&gateway, &text).expect_err("refused");
    let expected = (Code::Failed, "more.toml:2: the secret's file is no regular file".to_owned());
    assert_eq!((code, message), expected);
}

/// Whoever stops the gateway does not wait for a file that nobody writes.
#[test]
fn a_stop_does_not_wait_for_what_is_being_read() {
    use rustix::fs::{CWD, FileType, Mode, OFlags};
    let mut gateway = Gateway::start(&usual());
    let file = gateway.dir.path().join("culvert.toml");
    std::fs::remove_file(&file).expect("removed");
    rustix::fs::mknodat(CWD, &file, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("made");
    gateway.hang_up();
    let writer = eventually("it is being read", || {
        rustix::fs::open(&file, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty()).ok()
    });
    assert!(gateway.stop().success());
    drop(writer);
}
