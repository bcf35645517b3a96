# shellcheck shell=bash disable=SC2154 # testbed/testbed sets the variables named below
# Installs and builds the parts of the cluster. Reads $here, $cache, $bin and $kubernetes_part.
#
# Each part is one file in $cache/parts. The file name contains a hash of all inputs of the
# part. $bin holds hard links to the parts of the last build.

retry=$here/../scripts/retry

# COMMAND=PACKAGE: a required command or file and the Debian package that contains it.
required_programs=(
    etcd=etcd-server containerd=containerd ctr=containerd runc=runc
    /usr/lib/cni/ptp=containernetworking-plugins iptables=iptables ip=iproute2
    buildah=buildah openssl=openssl musl-gcc=musl-tools gcc=gcc
    unshare=util-linux nsenter=util-linux flock=util-linux getent=libc-bin
)
kubernetes_programs=(kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl)

# build_all [PART...]: builds the parts of every cluster, and these.
build_all() {
    local part
    mkdir -p "$cache/parts" "$bin"
    local build_lock
    exec {build_lock}>"$cache/build.lock"
    flock "$build_lock"
    install_packages
    build_part "$kubernetes_part"
    build_part coredns
    build_part helm
    build_part pause
    for part; do build_part "$part"; done
    link_programs
    exec {build_lock}>&-
}

# Helm alone, for scripts/dist.
build_helm_alone() {
    mkdir -p "$cache/parts" "$bin"
    local build_lock
    exec {build_lock}>"$cache/build.lock"
    flock "$build_lock"
    build_part helm
    link_program "$(part_file helm)" helm
    exec {build_lock}>&-
}

install_packages() {
    local pair missing=()
    for pair in "${required_programs[@]}"; do
        command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
    done
    ((${#missing[@]})) || return 0
    mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
    command -v apt-get >/dev/null ||
        die "these Debian packages are missing and apt-get is not available: ${missing[*]}"
    run_timed "packages ${missing[*]}" apt_install "${missing[@]}"
}

# The function body is a subshell, so the EXIT trap ends with the function. The policy file keeps
# packages from starting their daemons. If the machine already has a policy file, keep it.
apt_install() (
    policy=/usr/sbin/policy-rc.d
    if [[ ! -e $policy ]]; then
        trap 'rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
    fi
    export DEBIAN_FRONTEND=noninteractive
    "$retry" apt-get update -qq
    "$retry" apt-get install -y -qq --no-install-recommends "$@"
)

# run_timed LABEL CMD...: runs CMD without output, prints the time it took, and prints the end of
# its output if it fails.
run_timed() {
    local label=$1 started=$EPOCHSECONDS output failed
    shift
    output=$(mktemp)
    say "$label ..."
    # Not `if ! "$@"`: a condition switches errexit off inside CMD.
    set +e
    (
        set -e
        "$@"
    ) >"$output" 2>&1
    failed=$?
    set -e
    if ((failed)); then
        tail -n 20 "$output" >&2
        rm -f "$output"
        die "$label failed after $((EPOCHSECONDS - started)) s"
    fi
    rm -f "$output"
    say "$label: $((EPOCHSECONDS - started)) s"
}

# pinned_version FOLDER MODULE: prints the version of MODULE in FOLDER/go.mod.
pinned_version() {
    local version
    version=$(sed -nE "s#^(require )?[[:space:]]*$2 (v[0-9.]+)( //.*)?\$#\\2#p" "$here/$1/go.mod")
    [[ $version ]] || die "$1/go.mod does not pin $2"
    say "$version"
}
helm_version() { pinned_version helm helm.sh/helm/v4; }

# part_file PART: prints the path of the built file. The path changes when the sources change.
part_file() {
    local hash
    hash=$(cd "$here" && {
        uname -m
        # These functions contain the build flags.
        declare -f go_build "build_$1"
        [[ $1 != kubernetes* ]] || declare -f build_kubernetes_version
        find -L "$1" -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
    } | sha256sum)
    say "$cache/parts/$1-${hash:0:16}"
}

build_part() {
    local part=$1 file
    file=$(part_file "$part")
    [[ ! -e $file ]] || return 0
    if [[ -e $here/$part/go.mod ]]; then run_timed "modules of $part" fetch_modules "$part"; fi
    run_timed "building $part" "build_$part" "$file.new"
    mv "$file.new" "$file"
}

# Downloads all modules before `go build` does: a failed download is retried, and each attempt
# covers all modules.
fetch_modules() {
    command -v go >/dev/null || die "Go is missing: install Go 1.26 or later and put it on PATH"
    cd "$here/$1"
    GOFLAGS='' GOWORK=off "$retry" go mod download
}

# go_build FOLDER OUT LDFLAGS PACKAGE
go_build() {
    command -v go >/dev/null || die "Go is missing: install Go 1.26 or later and put it on PATH"
    cd "$here/$1"
    GOFLAGS='' GOWORK=off CGO_ENABLED=1 \
        go build -mod=readonly -trimpath -buildvcs=false -ldflags "-s -w $3" -o "$2" "$4"
}

# Sets the version that a release build would report: Helm compares the chart's kubeVersion with
# the version that the API server reports.
build_kubernetes() { build_kubernetes_version kubernetes "$1"; }

# This version refers to a private function of Go's library, which the linker has to allow.
build_kubernetes-1.29() { build_kubernetes_version kubernetes-1.29 "$1" -checklinkname=0; }

# build_kubernetes_version FOLDER OUT FLAG...
build_kubernetes_version() {
    local folder=$1 out=$2 version major minor package flags=("${@:3}")
    version=$(pinned_version "$folder" k8s.io/kubernetes)
    IFS=. read -r major minor _ <<<"${version#v}"
    for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
        flags+=("-X $package.gitVersion=$version" "-X $package.gitMajor=$major"
            "-X $package.gitMinor=$minor" "-X $package.gitTreeState=clean")
    done
    go_build "$folder" "$out" "${flags[*]}" .
}

build_coredns() { go_build coredns "$1" "" .; }

build_helm() {
    local package=helm.sh/helm/v4/internal/version
    go_build helm "$1" "-X $package.version=$(helm_version) -X $package.gitTreeState=clean" \
        helm.sh/helm/v4/cmd/helm
}

build_kwok() {
    go_build kwok "$1" "-X sigs.k8s.io/kwok/pkg/consts.Version=$(pinned_version kwok sigs.k8s.io/kwok)" \
        sigs.k8s.io/kwok/cmd/kwok
}

# Builds an image that contains one static program. The storage of buildah is deleted afterwards.
build_pause() (
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    musl-gcc -static -Os -s -o "$work/pause" "$here/pause/pause.c"
    cp "$here/pause/Dockerfile" "$work"
    buildah=(buildah --root "$work/root" --runroot "$work/run" --storage-driver vfs)
    "${buildah[@]}" build --isolation chroot -t docker.io/testbed/pause:1 "$work"
    "${buildah[@]}" push docker.io/testbed/pause:1 "oci-archive:$1:docker.io/testbed/pause:1"
)

link_programs() {
    local program
    for program in "${kubernetes_programs[@]}"; do
        link_program "$(part_file "$kubernetes_part")" "$program"
    done
    link_program "$(part_file coredns)" coredns
    link_program "$(part_file helm)" helm
    link_program "$(part_file pause)" pause.tar
    if [[ -e $(part_file kwok) ]]; then link_program "$(part_file kwok)" kwok; fi
}

link_program() {
    [[ ! $1 -ef $bin/$2 ]] || return 0
    ln -f "$1" "$bin/$2.new"
    mv -f "$bin/$2.new" "$bin/$2"
}
