//! Binds the distribution's libdpdk.
//!
//! Three steps: find it with pkg-config, generate `bindings.rs` from `shim/shim.h` for the names
//! on the lists below and nothing else, compile `shim/shim.c`. Then the link directives, which
//! Cargo hands on to every binary that depends on this crate: DPDK's shared libraries in debug
//! builds, because they link in a blink and load every driver; its static ones with the chosen
//! drivers in release builds, because calls into them are cheaper. `CULVERT_DPDK_LINK=shared` or
//! `static` overrides the profile.

use std::{env, error::Error, fs, panic, panic::AssertUnwindSafe, path::Path, path::PathBuf};

const FUNCTIONS: &[&str] = &[
    "culvert_rte_.*",
    "rte_dev_probe",
    "rte_dev_remove",
    "rte_eal_init",
    "rte_eal_remote_launch",
    "rte_eal_wait_lcore",
    "rte_eth_allmulticast_enable",
    "rte_eth_dev_adjust_nb_rx_tx_desc",
    "rte_eth_dev_close",
    "rte_eth_dev_configure",
    "rte_eth_dev_info_get",
    "rte_eth_dev_socket_id",
    "rte_eth_dev_start",
    "rte_eth_dev_stop",
    "rte_eth_iterator_cleanup",
    "rte_eth_iterator_init",
    "rte_eth_iterator_next",
    "rte_eth_link_get_nowait",
    "rte_eth_macaddr_get",
    "rte_eth_promiscuous_enable",
    "rte_eth_rx_queue_setup",
    "rte_eth_stats_get",
    "rte_eth_tx_queue_setup",
    "rte_get_tsc_hz",
    "rte_lcore_to_socket_id",
    "rte_mempool_avail_count",
    "rte_pktmbuf_free_bulk",
    "rte_pktmbuf_pool_create",
    "rte_strerror",
];

const CONSTANTS: &[&str] = &[
    "CULVERT_.*",
    "RTE_ETHER_CRC_LEN",
    "RTE_ETHER_HDR_LEN",
    "RTE_MAX_ETHPORTS",
    "RTE_MAX_LCORE",
    "RTE_ETH_MQ_RX_RSS",
    "RTE_MEMPOOL_CACHE_MAX_SIZE",
    "RTE_PKTMBUF_HEADROOM",
];

/// Libraries below the drivers, each before those it needs.
const LIBRARIES: &[&str] = &[
    "vhost",
    "security",
    "cryptodev",
    "dmadev",
    "gso",
    "timer",
    "hash",
    "ethdev",
    "meter",
    "net",
    "pci",
    "mbuf",
    "mempool",
    "rcu",
    "ring",
    "eal",
    "telemetry",
    "kvargs",
];

/// What registers itself in a constructor: buses, mempool handlers, and the ports culvert runs on.
/// Virtual ones first, then those of hypervisors and clouds, then physical cards.
const DRIVERS: &[&str] = &[
    "bus_auxiliary",
    "bus_pci",
    "bus_vdev",
    "bus_vmbus",
    "common_iavf",
    "mempool_ring",
    "net_af_packet",
    "net_memif",
    "net_null",
    "net_ring",
    "net_tap",
    "net_vhost",
    "net_ena",
    "net_gve",
    "net_netvsc",
    "net_virtio",
    "net_vmxnet3",
    "net_bnxt",
    "net_e1000",
    "net_i40e",
    "net_iavf",
    "net_ice",
    "net_igc",
    "net_ixgbe",
];

/// Drivers that need libraries of others, linked where those are installed: the driver's archives
/// and the pkg-config names of what it needs.
const DRIVERS_WITH_LIBRARIES: &[(&[&str], &[&str])] = &[
    (&["net_af_xdp"], &["libxdp", "libbpf"]),
    (&["net_pcap"], &["libpcap"]),
    (&["common_mlx5", "net_mlx5"], &["libmlx5", "libibverbs"]),
];

const MISSING: &str = "DPDK 22.11 and libclang are needed to build culvert's dataplane. \
    On Debian 12: apt-get install libdpdk-dev libclang-dev clang pkg-config (scripts/setup does it)";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=shim/shim.h");
    println!("cargo::rerun-if-changed=shim/shim.c");
    println!("cargo::rerun-if-env-changed=CULVERT_DPDK_LINK");
    if let Err(reason) = build() {
        println!("cargo::error={reason}");
        std::process::exit(1);
    }
}

fn build() -> Result<(), Box<dyn Error>> {
    // pkg-config's own link directives name every library of DPDK; culvert's are chosen below.
    let dpdk = pkg_config::Config::new()
        .range_version("22.11".."23")
        .cargo_metadata(false)
        .env_metadata(true)
        .probe("libdpdk")
        .map_err(|reason| format!("{MISSING}\n{reason}"))?;
    watch_headers(&dpdk.include_paths);
    let flags = compiler_flags(&dpdk)?;
    compile_shim(&flags);
    generate_bindings(&flags)?;
    if link_statically()? {
        link_static(&dpdk.link_paths)
    } else {
        link_shared(&dpdk.link_paths);
        Ok(())
    }
}

/// Builds again when another DPDK is installed: its version and its configuration are in these.
fn watch_headers(include_paths: &[PathBuf]) {
    for name in ["rte_build_config.h", "rte_ethdev.h"] {
        for header in include_paths.iter().map(|path| path.join(name)).filter(|path| path.exists())
        {
            println!("cargo::rerun-if-changed={}", header.display());
        }
    }
}

/// What DPDK's headers must be read with: its include paths, its configuration, and the processor
/// this build is for.
///
/// pkg-config gives the `-march` of the distribution's build (corei7), the least the inline
/// functions compile for. Features that `-C target-cpu` grants beyond it are added one by one, so
/// that the shim is neither slower than the Rust around it nor uses what the target lacks.
fn compiler_flags(dpdk: &pkg_config::Library) -> Result<Vec<String>, Box<dyn Error>> {
    let mut flags = vec!["-include".to_owned(), "rte_config.h".to_owned()];
    for path in &dpdk.include_paths {
        flags.push(format!("-I{}", path.display()));
    }
    match env::var("CARGO_CFG_TARGET_ARCH")?.as_str() {
        "x86_64" => {
            flags.push("-march=corei7".to_owned());
            let enabled = env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
            let known = ["avx", "avx2", "bmi1", "bmi2", "lzcnt", "movbe", "avx512f", "avx512bw"];
            for feature in enabled.split(',').filter(|feature| known.contains(feature)) {
                flags.push(format!("-m{}", feature.replace("bmi1", "bmi")));
            }
        }
        "aarch64" => flags.push("-march=armv8-a+crc".to_owned()),
        other => return Err(format!("culvert is not built for {other}: x86_64 or aarch64").into()),
    }
    Ok(flags)
}

fn compile_shim(flags: &[String]) {
    let mut shim = cc::Build::new();
    // Always optimised: the shim stands for functions that C programs get inlined.
    shim.file("shim/shim.c").opt_level(3).warnings(false);
    for flag in flags {
        shim.flag(flag);
    }
    shim.compile("culvert_dpdk_shim");
}

fn generate_bindings(flags: &[String]) -> Result<(), Box<dyn Error>> {
    let mut bindings = bindgen::Builder::default()
        .header("shim/shim.h")
        .clang_args(flags)
        .rust_edition(bindgen::RustEdition::Edition2024)
        .use_core()
        .generate_comments(false)
        .derive_default(true)
        .prepend_enum_name(false);
    for name in FUNCTIONS {
        bindings = bindings.allowlist_function(name);
    }
    for name in CONSTANTS {
        bindings = bindings.allowlist_var(name);
    }
    // bindgen panics where it finds no libclang, and says which it looked for.
    let generated = panic::catch_unwind(AssertUnwindSafe(|| bindings.generate()));
    let bindings = generated.map_err(|_| MISSING)??;
    let path = Path::new(&env::var("OUT_DIR")?).join("bindings.rs");
    fs::write(path, bindings.to_string())?;
    Ok(())
}

fn link_statically() -> Result<bool, Box<dyn Error>> {
    match env::var("CULVERT_DPDK_LINK").as_deref() {
        Ok("static") => Ok(true),
        Ok("shared") => Ok(false),
        Ok(other) => Err(format!("CULVERT_DPDK_LINK is {other:?}: write shared or static").into()),
        Err(_) => Ok(env::var("PROFILE")? == "release"),
    }
}

fn link_shared(link_paths: &[PathBuf]) {
    for path in link_paths {
        println!("cargo::rustc-link-search=native={}", path.display());
    }
    for library in ["ethdev", "mbuf", "mempool", "ring", "eal"] {
        println!("cargo::rustc-link-lib=dylib=rte_{library}");
    }
}

fn link_static(link_paths: &[PathBuf]) -> Result<(), Box<dyn Error>> {
    for path in link_paths {
        println!("cargo::rustc-link-search=native={}", path.display());
    }
    let mut drivers = DRIVERS.to_vec();
    let mut foreign = Vec::new();
    for (archives, needs) in DRIVERS_WITH_LIBRARIES {
        let found: Result<Vec<_>, _> = needs.iter().map(|name| probe_quietly(name)).collect();
        // Not there: the gateway is whole without this driver, so only say it.
        match found {
            Ok(libraries) => {
                drivers.extend(*archives);
                foreign.extend(libraries.into_iter().flat_map(|library| library.libs));
            }
            Err(_) => println!("cargo::warning=without {archives:?}: {needs:?} not installed"),
        }
    }
    // A driver makes itself known in a constructor that nothing refers to, so its archive must be
    // taken whole; EAL and its companions too, for their log types and telemetry commands. Not
    // bundled: they stay archives that the last link takes once.
    for archive in drivers.iter().chain(LIBRARIES) {
        println!("cargo::rustc-link-lib=static:+whole-archive,-bundle=rte_{archive}");
    }
    foreign.extend(["numa", "fdt", "bsd", "atomic"].map(str::to_owned));
    for library in foreign {
        println!("cargo::rustc-link-lib=dylib={library}");
    }
    Ok(())
}

fn probe_quietly(name: &str) -> Result<pkg_config::Library, pkg_config::Error> {
    pkg_config::Config::new().cargo_metadata(false).probe(name)
}
