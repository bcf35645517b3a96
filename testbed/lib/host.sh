# shellcheck shell=bash disable=SC2154 # the variables named below are the caller's
# The cluster seen from the machine: starting it, entering it, ending it.
# Reads $here, $name, $bin, $home, $state, $logs, $kubeconfig, $cgroup, $lock.
#
# $state/init holds the process id of the `unshare` that owns the namespaces,
# and its start time, so that a reused id is never mistaken for it.

start_time() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    # The program's name may hold anything; the fields after it may not.
    read -ra stat <<<"${stat##*) }"
    say "${stat[19]}"
}

# Sets $init. True while that process is there, if only to be reaped.
is_there() {
    local recorded
    { read -r init recorded <"$state/init"; } 2>/dev/null || return 1
    [[ $(start_time "$init") == "$recorded" ]]
}

is_alive() { is_there && ! grep -q '^State:[[:space:]]*Z' "/proc/$init/status"; }

is_up() { is_alive && [[ -e $state/ready ]]; }

# Every mounted cgroup hierarchy: one in v2, one per controller in v1.
hierarchies() {
    awk '$3 == "cgroup" || $3 == "cgroup2" { print $2 }' /proc/mounts
}

make_cgroups() {
    local root file
    while read -r root; do
        mkdir -p "$root/$cgroup/system"
        # v1's cpuset starts empty, and an empty one takes no process.
        for file in cpuset.mems cpuset.cpus; do
            [[ -e $root/$file && ! -e $root/cgroup.controllers ]] || continue
            cat "$root/$file" >"$root/$cgroup/$file"
            cat "$root/$file" >"$root/$cgroup/system/$file"
        done
        # v2 hands a controller down only where it is told to.
        for file in "$root" "$root/$cgroup"; do
            [[ -s $file/cgroup.controllers ]] || continue
            sed -E 's/(^| )/\1+/g' "$file/cgroup.controllers" >"$file/cgroup.subtree_control" || true
        done
    done < <(hierarchies)
}

enter_cgroups() {
    local root
    while read -r root; do
        echo "$BASHPID" >"$root/$cgroup/system/cgroup.procs"
    done < <(hierarchies)
}

cgroup_processes() {
    local root
    while read -r root; do
        [[ ! -d $root/$cgroup ]] || find "$root/$cgroup" -name cgroup.procs -exec cat {} + 2>/dev/null
    done < <(hierarchies) | sort -un
}

# The state folder of the cluster whose processes are in this name's cgroup.
cgroup_owner() {
    local pid
    for pid in $(cgroup_processes); do
        { tr '\0' '\n' <"/proc/$pid/environ"; } 2>/dev/null | sed -n 's/^STATE=//p' || true # it may have ended
    done | awk 'NR == 1' # head would end the pipe early, which pipefail minds
}

# Refuses when another cache's cluster has this name.
require_name() {
    local owner
    owner=$(cgroup_owner)
    [[ -z $owner || $owner == "$state" ]] ||
        die "a cluster named $name runs already, with its state in $owner: end that one, or set TESTBED_NAME"
}

# Returns 1 when the cluster did not come up; what there is of it remains.
start_cluster() {
    mkdir -p "$state" "$logs"
    rm -f "$logs"/*.log
    make_cgroups
    (
        enter_cgroups || exit
        # An environment of its own: what the caller has set is the caller's.
        exec env -i PATH="$bin:$PATH" HOME=/root STATE="$state" BIN="$bin" LOGS="$logs" CGROUP="$cgroup" \
            setsid unshare --net --mount --pid --fork --mount-proc --uts --ipc --kill-child \
            bash "$here/lib/cluster.sh"
    ) </dev/null >"$logs/init.log" 2>&1 {lock}>&- &
    local pid=$! deadline=$((SECONDS + up_seconds))
    disown "$pid"
    say "$pid $(start_time "$pid")" >"$state/init"

    until [[ -e $state/ready ]]; do
        if [[ -e $state/failed ]] || ! is_alive || ((SECONDS > deadline)); then
            report_failure
            return 1
        fi
        sleep 0.1
    done
    # Remembered for the processes that outlive the cluster inside its network.
    readlink "/proc/$pid/ns/net" >"$state/network"
}

report_failure() {
    local part=init what="the cluster did not come up in $up_seconds s"
    if [[ -e $state/failed ]]; then
        read -r part what <"$state/failed"
    elif ! is_alive; then
        what="the cluster's first process ended"
    fi
    {
        say "testbed: $part: $what; the last lines of $logs/$part.log:"
        tail -n 15 "$logs/$part.log" | cut -c1-300
    } >&2
}

# Becomes a command in the cluster's network: the same process, so that signals
# and the exit code are the command's own. All else stays the caller's, except
# for /etc/resolv.conf, in a mount namespace that otherwise follows the caller's.
become_in_network() {
    # shellcheck disable=SC2016 # expanded by the inner shell
    local settle='mount --bind "$0" /etc/resolv.conf ||
    echo "testbed: /etc/resolv.conf cannot be replaced: no cluster DNS" >&2
exec env PATH="$TESTBED_PATH" "$@"'
    is_alive || die "testbed $name is not up"
    export KUBECONFIG=$kubeconfig TESTBED_PATH=$bin:$PATH
    exec nsenter --net="/proc/$init/ns/net" \
        unshare --mount --propagation slave \
        sh -c "$settle" "$state/resolv.conf" "$@"
}
in_network() { (become_in_network "$@"); }

# Runs a command with the cluster's own view of everything.
in_cluster() {
    nsenter --net="/proc/$init/ns/net" --mount="/proc/$init/ns/mnt" \
        --pid="/proc/$init/ns/pid_for_children" "$@"
}

# The kubelet asks for an image by its full name, whatever a pod calls it:
# what was imported as name:tag becomes docker.io/library/name:tag as well.
load_archive() {
    local imported image full
    imported=$(in_cluster ctr -n k8s.io images import - <"$1" | grep '^unpacking ') || return 1
    while read -r _ image _; do
        full=$(full_name "$image")
        [[ $full == "$image" ]] ||
            in_cluster ctr -n k8s.io images tag --force "$image" "$full" >/dev/null || return 1
        await_image "$full" || return 1
        say "$full"
    done <<<"$imported"
}

full_name() {
    case $1 in
    */*/* | localhost/* | *.*/* | *:*/*) say "$1" ;;
    */*) say "docker.io/$1" ;;
    *) say "docker.io/library/$1" ;;
    esac
}

# containerd marks an image once the kubelet can see it.
await_image() {
    local deadline=$((SECONDS + 10))
    until in_cluster ctr -n k8s.io images ls -q 'labels."io.cri-containerd.image"==managed' |
        grep -xF "$1" >/dev/null; do
        ((SECONDS < deadline)) || return 1
        sleep 0.1
    done
}

# Ends and removes everything of this name but the lock and the logs. Harmless
# when there is nothing.
clean_up() {
    require_name
    end_guests
    # Its first process dies with `unshare`, and the rest with its first
    # process; so do their mounts, addresses and links.
    ! is_alive || kill -KILL "$init" 2>/dev/null || true
    local pid deadline=$((SECONDS + 20))
    while [[ $(cgroup_processes) ]]; do
        ((SECONDS < deadline)) || die "processes of $name do not end: $(cgroup_processes | tr '\n' ' ')"
        for pid in $(cgroup_processes); do
            kill -KILL "$pid" 2>/dev/null || true
        done
        sleep 0.1
    done
    # Its reaping is the machine's business, but a few moments are granted.
    while is_there && ((SECONDS < deadline - 17)); do
        sleep 0.1
    done
    until rm -rf "$state" 2>/dev/null; do
        ((SECONDS < deadline)) || die "$state cannot be removed: $(rm -rf "$state" 2>&1 | tail -n 1)"
        sleep 0.1
    done
    remove_cgroups
}

# The kernel may take a moment to let go of who was in them.
remove_cgroups() {
    local root deadline=$((SECONDS + 5))
    while read -r root; do
        while [[ -d $root/$cgroup ]]; do
            find "$root/$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null || true
            ((SECONDS < deadline)) || break
            [[ ! -d $root/$cgroup ]] || sleep 0.1
        done
    done < <(hierarchies)
}

# Commands started by `exec` that still run hold the network namespace: end
# them, all but the one this script is called from.
end_guests() {
    local network pids=() pid kin=" " deadline=$((SECONDS + 3))
    network=$(cat "$state/network" 2>/dev/null) || return 0
    for ((pid = BASHPID; pid > 1; pid = $(awk '/^PPid/ { print $2 }' "/proc/$pid/status"))); do
        kin+="$pid "
    done
    # Both signs, because the kernel gives a namespace's number out again.
    for pid in /proc/[0-9]*; do
        [[ $(readlink "$pid/ns/net" 2>/dev/null) == "$network" ]] || continue
        pid=${pid#/proc/}
        [[ $kin != *" $pid "* ]] || continue
        { tr '\0' '\n' <"/proc/$pid/environ"; } 2>/dev/null |
            grep -xF "KUBECONFIG=$kubeconfig" >/dev/null || continue
        pids+=("$pid")
    done
    ((${#pids[@]})) || return 0
    say "ending what exec started: ${pids[*]}"
    kill -TERM "${pids[@]}" 2>/dev/null || true
    while kill -0 "${pids[@]}" 2>/dev/null && ((SECONDS < deadline)); do
        sleep 0.1
    done
    kill -KILL "${pids[@]}" 2>/dev/null || true
}
