# shellcheck shell=bash
# Functions of scripts/images, scripts/dist and scripts/dist-install, which start in the root of the repository. The
# calling script defines `die MESSAGE`.

# install_missing COMMAND=PACKAGE...: installs Debian packages if their commands are missing.
install_missing() {
    local pair missing=()
    for pair; do
        command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
    done
    ((${#missing[@]})) || return 0
    if ! command -v apt-get >/dev/null || ((EUID != 0)); then
        die "missing Debian packages: ${missing[*]}: install them, or run this script as root on Debian"
    fi
    printf 'installing %s\n' "${missing[*]}" >&2
    (
        export DEBIAN_FRONTEND=noninteractive
        scripts/retry apt-get update -qq
        scripts/retry apt-get install -y -qq --no-install-recommends "${missing[@]}"
    ) >&2
}

read_workspace_version() {
    local version
    version=$(sed -n '/^\[workspace\.package\]/,/^\[/s/^version *= *"\(.*\)"$/\1/p' Cargo.toml)
    [[ $version ]] || die "Cargo.toml has no version in [workspace.package]"
    printf '%s\n' "$version"
}

# The registry of the published images: ghcr.io and the owner of the repository.
read_registry() {
    printf 'ghcr.io/%s\n' "$(sed -nE 's#^repository = "https://github.com/([^/]+)/.*"$#\1#p' Cargo.toml)"
}

# add_rust_target TARGET: installs the standard library of a target, if rustup manages the toolchain.
add_rust_target() {
    if command -v rustup >/dev/null && ! rustup target list --installed | grep -qxF "$1"; then
        scripts/retry rustup target add "$1" >&2
    fi
}

# prepare_musl TARGET: the programs are static. musl-gcc compiles their C parts (ring, mimalloc).
prepare_musl() {
    local variable=CC_${1//-/_}
    install_missing musl-gcc=musl-tools
    add_rust_target "$1"
    [[ ${!variable:-} ]] || export "$variable=musl-gcc"
}
