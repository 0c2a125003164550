# What the scripts share. Sourced, not run.

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# What is fetched or built once and kept, outside the tree.
tools=${CULVERT_TOOLS:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/culvert}

# Says what went wrong and what to do, and ends.
die() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

# Ends unless run as root: namespaces, raw ports and packages need it.
need_root() {
    [ "$(id -u)" -eq 0 ] || die "run this as root"
}

# Ends with advice where the Rust toolchain is missing or older than the workspace asks for.
need_cargo() {
    # rustup's own place, which a fresh shell does not know yet.
    [ -d "$HOME/.cargo/bin" ] && PATH="$HOME/.cargo/bin:$PATH"
    local wanted have
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$repository/Cargo.toml")
    if ! command -v cargo >/dev/null; then
        die "cargo is missing. Debian 12's is too old; Rust $wanted or later comes from rustup:
    apt-get install -y curl
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y
then run this again."
    fi
    have=$(rustc --version | cut -d' ' -f2)
    if [ "$(printf '%s\n' "$wanted" "$have" | sort -V | head -n1)" != "$wanted" ]; then
        die "rustc $have is too old: Rust $wanted or later is needed. Run: rustup update stable"
    fi
}
