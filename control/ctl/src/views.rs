//! Rows as tables.

use std::io::{self, Write};

use culvert_api::{
    ChildSa, Connection, Counter, Event, IkeSa, IkeState, LogLevel, Outcome, Row, Status,
    TcpConnection,
};

use crate::table::{Align, Table, printable};
use crate::units;

/// Stands for what there is none of.
const NONE: &str = "-";

/// Prints the rows of an answer, each kind as its own table.
pub(crate) fn rows(rows: &[Row], out: &mut dyn Write) -> io::Result<()> {
    macro_rules! of_kind {
        ($kind:ident) => {
            rows.iter().filter_map(|row| if let Row::$kind(row) = row { Some(row) } else { None })
        };
    }
    if rows.is_empty() {
        return writeln!(out, "none");
    }
    of_kind!(Status).try_for_each(|row| status(row, out))?;
    of_kind!(Outcome).try_for_each(|row| outcome(row, out))?;
    let tables = [
        connections(of_kind!(Connection)),
        ike_sas(of_kind!(IkeSa)),
        child_sas(of_kind!(IkeSa)),
        tcp(of_kind!(Tcp)),
        counters(of_kind!(Counter)),
        log_levels(of_kind!(LogLevel)),
    ];
    let mut first = true;
    for table in tables.iter().filter(|table| !table.is_empty()) {
        if !first {
            writeln!(out)?;
        }
        first = false;
        table.print(out)?;
    }
    Ok(())
}

/// Prints an event as a line.
pub(crate) fn event(event: &Event, out: &mut dyn Write) -> io::Result<()> {
    let connection = event.connection.as_deref().unwrap_or(NONE);
    let ike = event.ike.map_or(String::new(), |ike| format!("#{ike}"));
    let peer = event.peer.as_ref().map_or(String::new(), |peer| format!(" {peer}"));
    let happening = event.happening.to_string();
    let line = format!("{}  {connection}{ike}{peer}  {happening}", units::time(event.time_ms));
    writeln!(out, "{}", printable(&line))
}

fn outcome(row: &Outcome, out: &mut dyn Write) -> io::Result<()> {
    let failed = if row.failed { "failed: " } else { "" };
    writeln!(out, "{failed}{}", printable(&row.message))
}

fn status(row: &Status, out: &mut dyn Write) -> io::Result<()> {
    let dataplane = if row.dataplane.up {
        format!(
            "up for {}, {} worker(s), start {}",
            units::span(row.dataplane.since_s),
            row.dataplane.workers,
            row.dataplane.starts
        )
    } else {
        format!(
            "down for {}: start culvert-dataplane with the same configuration",
            units::span(row.dataplane.since_s)
        )
    };
    let orphaned = match row.child_sas_orphaned {
        0 => String::new(),
        count => format!(", {count} of an earlier control process"),
    };
    let lines = [
        ("Culvert", format!("{}, up for {}", row.version, units::span(row.uptime_s))),
        ("Configuration", row.config.clone()),
        ("Dataplane", dataplane),
        ("Connections", row.connections.to_string()),
        ("IKE SAs", format!("{}, {} being set up", row.ike_sas, row.ike_sas_half_open)),
        ("CHILD SAs", format!("{} of {}{orphaned}", row.child_sas, row.child_sas_max)),
        ("TCP connections", row.tcp_connections.to_string()),
        (
            "Traffic",
            format!("in {}, out {}", units::octets(row.octets_in), units::octets(row.octets_out)),
        ),
    ];
    for (name, value) in lines {
        writeln!(out, "{name:<16} {}", printable(&value))?;
    }
    Ok(())
}

fn connections<'a>(rows: impl Iterator<Item = &'a Connection>) -> Table {
    let mut table = Table::new(&[
        ("CONNECTION", Align::Left),
        ("LOCAL", Align::Left),
        ("REMOTE", Align::Left),
        ("TRANSPORT", Align::Left),
        ("CHILD", Align::Left),
        ("TRAFFIC", Align::Left),
        ("START", Align::Left),
        ("IKE SAS", Align::Right),
        ("NOW", Align::Left),
        ("WHY", Align::Left),
    ]);
    let end = |id: &str, addresses: &[String]| format!("{id} at {}", any(addresses));
    for row in sorted(rows, |row| row.name.clone()) {
        for (index, child) in row.children.iter().enumerate() {
            let head = [
                row.name.clone(),
                end(&row.local_id, &row.local_addrs),
                end(&row.remote_id, &row.remote_addrs),
                row.transport.clone(),
            ];
            // The connection is told once, with its first child.
            let head = head.map(|cell| if index == 0 { cell } else { String::new() });
            let traffic = format!("{} === {}", child.local_ts.join(" "), child.remote_ts.join(" "));
            let sas = if index == 0 { row.ike_sas.to_string() } else { String::new() };
            let now = match child.retry_s {
                Some(seconds) => format!("again in {}", units::span(seconds)),
                None => child.now.to_string(),
            };
            let why = child.reason.clone().unwrap_or_else(|| NONE.into());
            let start = child.start_action.clone();
            let tail = [child.name.clone(), traffic, start, sas, now, why];
            table.row(head.into_iter().chain(tail));
        }
    }
    table
}

fn any(addresses: &[String]) -> String {
    if addresses.is_empty() { "%any".into() } else { addresses.join(" ") }
}

fn ike_sas<'a>(rows: impl Iterator<Item = &'a IkeSa>) -> Table {
    let mut table = Table::new(&[
        ("IKE SA", Align::Right),
        ("CONNECTION", Align::Left),
        ("STATE", Align::Left),
        ("ROLE", Align::Left),
        ("LOCAL", Align::Left),
        ("REMOTE", Align::Left),
        ("REMOTE ID", Align::Left),
        ("VIA", Align::Left),
        ("ALGORITHMS", Align::Left),
        ("SPIS", Align::Left),
        ("MOBIKE", Align::Left),
        ("NAT", Align::Left),
        ("AGE", Align::Right),
        ("REKEY", Align::Right),
        ("REAUTH", Align::Right),
    ]);
    for row in sorted(rows, |row| (row.connection.clone(), row.id)) {
        let via = match &row.tcp {
            Some(tcp) => format!("{} {tcp}", row.transport),
            None => row.transport.to_string(),
        };
        let spis = match row.state {
            IkeState::Orphaned => NONE.into(),
            _ => format!("{} {}", row.spi_initiator, row.spi_responder),
        };
        table.row([
            number(row.id),
            text(&row.connection),
            row.state.to_string(),
            row.role.map_or(NONE.into(), |role| role.to_string()),
            row.local.clone(),
            row.remote.clone(),
            text(&row.remote_id),
            via,
            text(&row.proposal),
            spis,
            if row.mobike { "yes" } else { "no" }.into(),
            nat(row).into(),
            units::span(row.age_s),
            span(row.rekey_s),
            span(row.reauth_s),
        ]);
    }
    table
}

/// At which ends a NAT sits.
fn nat(row: &IkeSa) -> &'static str {
    match (row.nat_local, row.nat_remote) {
        (false, false) => NONE,
        (true, false) => "here",
        (false, true) => "peer",
        (true, true) => "both",
    }
}

fn span(seconds: Option<u64>) -> String {
    seconds.map_or(NONE.into(), units::span)
}

fn child_sas<'a>(rows: impl Iterator<Item = &'a IkeSa>) -> Table {
    let mut table = Table::new(&[
        ("CHILD SA", Align::Left),
        ("SPI IN", Align::Left),
        ("SPI OUT", Align::Left),
        ("IKE SA", Align::Right),
        ("STATE", Align::Left),
        ("MODE", Align::Left),
        ("ALGORITHM", Align::Left),
        ("TRAFFIC", Align::Left),
        ("PACKETS IN", Align::Right),
        ("IN", Align::Right),
        ("PACKETS OUT", Align::Right),
        ("OUT", Align::Right),
        ("DROPPED", Align::Right),
        ("IDLE", Align::Right),
        ("AGE", Align::Right),
        ("REKEY", Align::Right),
        ("EXPIRES", Align::Right),
    ]);
    for ike in sorted(rows, |row| (row.connection.clone(), row.id)) {
        for child in sorted(ike.children.iter(), |child| (child.name.clone(), child.spi_in.clone()))
        {
            table.row(child_sa(ike, child));
        }
    }
    table
}

fn child_sa(ike: &IkeSa, child: &ChildSa) -> [String; 17] {
    [
        child.name.clone(),
        child.spi_in.clone(),
        child.spi_out.clone(),
        number(ike.id),
        child.state.to_string(),
        child.mode.to_string(),
        child.proposal.clone(),
        format!("{} === {}", child.local_ts.join(" "), child.remote_ts.join(" ")),
        child.packets_in.to_string(),
        units::octets(child.octets_in),
        child.packets_out.to_string(),
        units::octets(child.octets_out),
        child.drops_in.saturating_add(child.drops_out).to_string(),
        span(child.idle_s),
        units::span(child.age_s),
        span(child.rekey_s),
        span(child.expires_s),
    ]
}

fn tcp<'a>(rows: impl Iterator<Item = &'a TcpConnection>) -> Table {
    let mut table = Table::new(&[
        ("TCP", Align::Left),
        ("LOCAL", Align::Left),
        ("REMOTE", Align::Left),
        ("ORIGINATOR", Align::Left),
        ("CONNECTION", Align::Left),
        ("CONTROL", Align::Left),
        ("IN", Align::Right),
        ("OUT", Align::Right),
        ("IDLE", Align::Right),
        ("AGE", Align::Right),
    ]);
    for row in sorted(rows, |row| (row.remote.clone(), row.id.clone())) {
        table.row([
            row.id.clone(),
            row.local.clone(),
            row.remote.clone(),
            if row.originator { "here" } else { "peer" }.into(),
            row.connection.clone().unwrap_or_else(|| NONE.into()),
            row.congestion.clone().unwrap_or_else(|| NONE.into()),
            units::octets(row.octets_in),
            units::octets(row.octets_out),
            row.idle_s.map_or(NONE.into(), units::span),
            units::span(row.age_s),
        ]);
    }
    table
}

fn counters<'a>(rows: impl Iterator<Item = &'a Counter>) -> Table {
    let mut table = Table::new(&[
        ("COUNTER", Align::Left),
        ("TOTAL", Align::Right),
        ("WHAT IT COUNTS", Align::Left),
    ]);
    // In the order of the gateway, which keeps together what belongs together.
    for row in rows {
        table.row([row.name.clone(), row.total.to_string(), row.help.clone()]);
    }
    table
}

fn log_levels<'a>(rows: impl Iterator<Item = &'a LogLevel>) -> Table {
    let mut table =
        Table::new(&[("LOG OF", Align::Left), ("NAME", Align::Left), ("LEVEL", Align::Left)]);
    for row in rows {
        table.row([row.scope.clone(), text(&row.name), row.level.clone()]);
    }
    table
}

fn sorted<'a, T, K: Ord>(rows: impl Iterator<Item = &'a T>, key: impl Fn(&T) -> K) -> Vec<&'a T> {
    let mut rows: Vec<&T> = rows.collect();
    rows.sort_by_cached_key(|row| key(row));
    rows
}

fn number(number: Option<u64>) -> String {
    number.map_or(NONE.into(), |number| number.to_string())
}

fn text(text: &str) -> String {
    if text.is_empty() { NONE.into() } else { text.to_owned() }
}

#[cfg(test)]
mod tests;
