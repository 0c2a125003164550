//! What a guest boots: the kernel that `scripts/setup` has unpacked, and an archive with its modules,
//! busybox, and charon with all that it loads.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::command;

const CHARON: &str = "/usr/lib/ipsec/charon";
const PLUGINS: &str = "/usr/lib/ipsec/plugins";
const BUSYBOX: &str = "/bin/busybox";
/// Applets that the guest's script calls.
const APPLETS: [&str; 8] = ["sh", "mount", "insmod", "sysctl", "ip", "nc", "cat", "sleep"];
/// Modules of the kernel that a gateway needs; what they need themselves comes along.
const MODULES: [&str; 12] = [
    "virtio_pci",
    "virtio_net",
    "esp4",
    "esp6",
    "xfrm_user",
    "gcm",
    "ctr",
    "seqiv",
    "drbg",
    "crypto_null",
    "aesni_intel",
    "ghash_generic",
];

/// A kernel and where its modules lie.
pub(super) struct Kernel {
    /// The bootable file.
    pub(super) image: PathBuf,
    root: PathBuf,
    release: String,
}

impl Kernel {
    /// The kernel that `scripts/setup` has unpacked.
    pub(super) fn find() -> Result<Self> {
        let root = tools().join("kernel");
        let advice = || format!("no kernel in {}: run scripts/setup", root.display());
        let modules = fs::read_dir(root.join("lib/modules")).with_context(advice)?;
        let releases: Vec<_> = modules.flatten().map(|entry| entry.file_name()).collect();
        let [release] = &releases[..] else { bail!("{}: {releases:?}", advice()) };
        let release = release.to_str().context("a release is not UTF-8")?.to_owned();
        let image = root.join(format!("boot/vmlinuz-{release}"));
        ensure!(image.exists(), advice());
        Ok(Self { image, root, release })
    }

    /// The files of [`MODULES`], each after those that it needs.
    fn modules(&self) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for module in MODULES {
            let mut modprobe = Command::new("modprobe");
            modprobe.arg("-d").arg(&self.root).args([
                "-S",
                &self.release,
                "--show-depends",
                module,
            ]);
            let listed = command::succeed(modprobe, "")?;
            let paths = listed.lines().filter_map(|line| line.strip_prefix("insmod "));
            for path in paths.map(|path| PathBuf::from(path.trim())) {
                if !files.contains(&path) {
                    files.push(path);
                }
            }
        }
        Ok(files)
    }
}

/// Where the scripts keep what they fetch, as in `scripts/lib.sh`.
fn tools() -> PathBuf {
    if let Some(tools) = env::var_os("CULVERT_TOOLS") {
        return tools.into();
    }
    let home = || PathBuf::from(env::var_os("HOME").unwrap_or("/root".into()));
    let cache = env::var_os("XDG_CACHE_HOME").map_or_else(|| home().join(".cache"), PathBuf::from);
    cache.join("culvert")
}

/// Packs the archive into `directory` and returns its path.
pub(super) fn build(
    kernel: &Kernel,
    directory: &Path,
    init: &str,
    strongswan_conf: &str,
) -> Result<PathBuf> {
    let root = directory.join("root");
    for empty in ["proc", "sys", "dev", "etc", "run", "tmp", "var", "bin", "modules.d"] {
        fs::create_dir_all(root.join(empty))?;
    }
    symlink("/run", root.join("var/run"))?;
    copy_modules(kernel, &root)?;
    fs::copy(BUSYBOX, root.join("bin/busybox")).context("busybox: run scripts/setup")?;
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    for file in charon_files()? {
        let to = root.join(file.strip_prefix("/")?);
        fs::create_dir_all(to.parent().context("a file in no directory")?)?;
        fs::copy(&file, to).with_context(|| format!("{}", file.display()))?;
    }
    fs::write(root.join("etc/strongswan.conf"), strongswan_conf)?;
    fs::write(root.join("init"), init)?;
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755))?;
    pack(&root, &directory.join("guest.cpio"))
}

/// Copies the modules, and the order in which they are to be loaded.
fn copy_modules(kernel: &Kernel, root: &Path) -> Result<()> {
    let mut order = String::new();
    for file in kernel.modules()? {
        let name = file.file_name().and_then(|name| name.to_str()).context("a module's name")?;
        let to = format!("modules.d/{name}");
        fs::copy(&file, root.join(&to)).with_context(|| format!("{}", file.display()))?;
        order += &format!("{to}\n");
    }
    Ok(fs::write(root.join("modules"), order)?)
}

/// charon, its plugins, and every library that one of them loads.
fn charon_files() -> Result<BTreeSet<PathBuf>> {
    let mut files = BTreeSet::from([PathBuf::from(CHARON)]);
    for plugin in fs::read_dir(PLUGINS).context("strongSwan's plugins: run scripts/setup")? {
        files.insert(plugin?.path());
    }
    let mut ldd = Command::new("ldd");
    ldd.args(&files);
    let listed = command::succeed(ldd, "")?;
    // `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, or the loader's path alone.
    let words = listed.lines().filter(|line| line.starts_with('\t'));
    let paths = words.filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    files.extend(paths.map(PathBuf::from));
    Ok(files)
}

fn pack(root: &Path, archive: &Path) -> Result<PathBuf> {
    let mut cpio = Command::new("sh");
    cpio.args(["-c", "find . | cpio --quiet -o -H newc -R 0:0 > \"$0\""]).arg(archive);
    cpio.current_dir(root);
    command::succeed(cpio, "")?;
    fs::remove_dir_all(root)?;
    Ok(archive.to_owned())
}
