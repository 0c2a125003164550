//! The `culvert` command against a running gateway, as people and programs use it.

use anyhow::{Context, Result, ensure};
use culvert_lab::command::wait_until;
use culvert_lab::gateway::{CONNECTION, Gateway, Settings};
use culvert_lab::topology::{Family, Lab, Owner};

use crate::{PING_TIMEOUT, exchange, with_gateways};

/// Every line of `--json` output is JSON.
fn json(gateway: &Gateway<'_>, line: &str) -> Result<Vec<serde_json::Value>> {
    let output = gateway.culvert(&format!("--json {line}"))?;
    ensure!(output.status.success(), "culvert {line}: {}{}", output.stdout, output.stderr);
    let values = serde_json::Deserializer::from_str(&output.stdout).into_iter();
    values.collect::<Result<_, _>>().with_context(|| format!("{line}: {}", output.stdout))
}

#[test]
fn tables_show_what_stands() -> Result<()> {
    with_gateways(Settings::between("tcp", Family::V4), |lab, a, _| {
        let initiate = a.culvert(&format!("initiate {CONNECTION}"))?;
        ensure!(initiate.status.success(), "{}{}", initiate.stdout, initiate.stderr);
        exchange(lab, Family::V4)?;
        for (line, words) in [
            ("status", &["Dataplane"][..]),
            ("connections", &[CONNECTION, "a.test", "b.test"]),
            ("sas", &["b.test", "tcp", "198.51.100.7", "aes128gcm16"]),
            ("tcp", &["198.51.100.7:4500"]),
            ("counters", &["esp"]),
            ("events", &["b.test"]),
        ] {
            let table = a.culvert(line)?;
            ensure!(table.status.success(), "culvert {line}: {}", table.stderr);
            for word in words {
                ensure!(
                    table.stdout.contains(word),
                    "culvert {line} lacks {word}:\n{}",
                    table.stdout
                );
            }
            ensure!(!json(a, line)?.is_empty(), "culvert --json {line} is empty");
        }
        let terminate = a.culvert(&format!("terminate --connection {CONNECTION}"))?;
        ensure!(terminate.status.success(), "{}{}", terminate.stdout, terminate.stderr);
        wait_until("nothing stands any more", PING_TIMEOUT, || Ok(a.sas()?.is_empty()))
    })
}

#[test]
fn mistakes_are_answered_with_what_to_do() -> Result<()> {
    let (settings, _) = Settings::between("tcp", Family::V4);
    Lab::run(Owner::Dpdk, Owner::Kernel, |lab| {
        let mut gateway = Gateway::start(lab, &lab.a, "gateway-a", &settings)?;
        let unknown = gateway.culvert("initiate nowhere")?;
        ensure!(unknown.status.code() == Some(1), "the gateway says no: {:?}", unknown.status);
        ensure!(unknown.stderr.contains("nowhere"), "{}", unknown.stderr);
        let usage = gateway.culvert("terminate")?;
        ensure!(usage.status.code() == Some(2), "wrong usage: {:?}", usage.status);
        gateway.kill_control()?;
        let gone = gateway.culvert("status")?;
        ensure!(gone.status.code() == Some(3), "cannot be reached: {:?}", gone.status);
        ensure!(gone.stderr.contains("culvert-control"), "says what to start: {}", gone.stderr);
        Ok(())
    })
}
