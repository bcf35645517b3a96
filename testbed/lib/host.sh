# shellcheck shell=bash disable=SC2154 # testbed/testbed sets the variables named below
# Starts, enters and stops the cluster from outside.
# Reads $here, $name, $bin, $home, $state, $logs, $kubeconfig, $cgroup, $up_seconds and $lock.
#
# $state/init holds the process ID of the `unshare` process that owns the namespaces, and its
# start time. The start time detects a process ID that the kernel has given to another process.

process_start_time() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    # The program name may contain spaces and parentheses. Only the fields after it are split.
    read -ra stat <<<"${stat##*) }"
    say "${stat[19]}"
}

# Sets $init. Succeeds while that process exists, also as a zombie.
init_exists() {
    local recorded
    { read -r init recorded <"$state/init"; } 2>/dev/null || return 1
    [[ $(process_start_time "$init") == "$recorded" ]]
}

init_is_alive() { init_exists && ! grep -q '^State:[[:space:]]*Z' "/proc/$init/status"; }

is_up() { init_is_alive && [[ -e $state/ready ]]; }

# Prints the mount points of all cgroup hierarchies: v2 has one, v1 has one per controller.
list_hierarchies() {
    awk '$3 == "cgroup" || $3 == "cgroup2" { print $2 }' /proc/mounts
}

make_cgroups() {
    local root file
    while read -r root; do
        mkdir -p "$root/$cgroup/system"
        # In v1, a new cpuset is empty, and an empty cpuset accepts no process.
        for file in cpuset.mems cpuset.cpus; do
            [[ -e $root/$file && ! -e $root/cgroup.controllers ]] || continue
            cat "$root/$file" >"$root/$cgroup/$file"
            cat "$root/$file" >"$root/$cgroup/system/$file"
        done
        # In v2, child cgroups have a controller only if subtree_control names the controller.
        for file in "$root" "$root/$cgroup"; do
            [[ -s $file/cgroup.controllers ]] || continue
            sed -E 's/(^| )/\1+/g' "$file/cgroup.controllers" >"$file/cgroup.subtree_control" || true
        done
    done < <(list_hierarchies)
}

enter_cgroups() {
    local root
    while read -r root; do
        echo "$BASHPID" >"$root/$cgroup/system/cgroup.procs"
    done < <(list_hierarchies)
}

list_cgroup_processes() {
    local root
    while read -r root; do
        [[ ! -d $root/$cgroup ]] || find "$root/$cgroup" -name cgroup.procs -exec cat {} + 2>/dev/null
    done < <(list_hierarchies) | sort -un
}

# Prints the state folder of the cluster that has processes in the cgroup of this name.
cgroup_owner() {
    local pid
    for pid in $(list_cgroup_processes); do
        # The process may have ended in the meantime.
        { tr '\0' '\n' <"/proc/$pid/environ"; } 2>/dev/null | sed -n 's/^STATE=//p' || true
    done | awk 'NR == 1' # `head` would close the pipe early, and pipefail makes that an error
}

# Fails if a cluster with another cache folder uses the same name.
check_name_is_free() {
    local owner
    owner=$(cgroup_owner)
    [[ -z $owner || $owner == "$state" ]] ||
        die "a cluster named $name is already running, with its state in $owner: stop that cluster or set TESTBED_NAME"
}

# Returns 1 if the cluster did not start. The caller removes what was started.
start_cluster() {
    mkdir -p "$state" "$logs"
    rm -f "$logs"/*.log
    make_cgroups
    (
        enter_cgroups || exit
        # A clean environment: the variables of the caller must not reach the cluster.
        exec env -i PATH="$bin:$PATH" HOME=/root STATE="$state" BIN="$bin" LOGS="$logs" CGROUP="$cgroup" \
            setsid unshare --net --mount --pid --fork --mount-proc --uts --ipc --kill-child \
            bash "$here/lib/cluster.sh"
    ) </dev/null >"$logs/init.log" 2>&1 {lock}>&- &
    local pid=$! deadline=$((SECONDS + up_seconds))
    disown "$pid"
    say "$pid $(process_start_time "$pid")" >"$state/init"

    until [[ -e $state/ready ]]; do
        if [[ -e $state/failed ]] || ! init_is_alive || ((SECONDS > deadline)); then
            report_failure
            return 1
        fi
        sleep 0.1
    done
    # end_exec_processes needs the ID of the network namespace, also after the cluster has ended.
    readlink "/proc/$pid/ns/net" >"$state/network"
}

report_failure() {
    local component=init problem="the cluster did not start within $up_seconds s"
    if [[ -e $state/failed ]]; then
        read -r component problem <"$state/failed"
    elif ! init_is_alive; then
        problem="the cluster's first process ended"
    fi
    {
        say "testbed: $component: $problem; the last lines of $logs/$component.log:"
        tail -n 15 "$logs/$component.log" | cut -c1-300
    } >&2
}

# Replaces this process by a command in the cluster's network, so that signals and the exit code
# are those of the command. Only /etc/resolv.conf differs for the command: it is replaced in a
# mount namespace that otherwise follows the caller's mounts.
become_in_network() {
    # shellcheck disable=SC2016 # expanded by the inner shell
    local enter='mount --bind "$0" /etc/resolv.conf ||
    echo "testbed: /etc/resolv.conf cannot be replaced: cluster DNS does not work" >&2
exec env PATH="$TESTBED_PATH" "$@"'
    init_is_alive || die "testbed $name is not up"
    export KUBECONFIG=$kubeconfig TESTBED_PATH=$bin:$PATH
    exec nsenter --net="/proc/$init/ns/net" \
        unshare --mount --propagation slave \
        sh -c "$enter" "$state/resolv.conf" "$@"
}
run_in_network() { (become_in_network "$@"); }

# Runs a command in the network, mount and process namespaces of the cluster.
run_in_cluster() {
    nsenter --net="/proc/$init/ns/net" --mount="/proc/$init/ns/mnt" \
        --pid="/proc/$init/ns/pid_for_children" "$@"
}

# The kubelet looks an image up by its full name. Therefore an image that was imported as name:tag
# gets the name docker.io/library/name:tag too.
load_archive() {
    local imported image full
    imported=$(run_in_cluster ctr -n k8s.io images import - <"$1" | grep '^unpacking ') || return 1
    while read -r _ image _; do
        full=$(full_image_name "$image")
        [[ $full == "$image" ]] ||
            run_in_cluster ctr -n k8s.io images tag --force "$image" "$full" >/dev/null || return 1
        wait_for_image "$full" || return 1
        say "$full"
    done <<<"$imported"
}

full_image_name() {
    case $1 in
    */*/* | localhost/* | *.*/* | *:*/*) say "$1" ;;
    */*) say "docker.io/$1" ;;
    *) say "docker.io/library/$1" ;;
    esac
}

# containerd labels an image as soon as the kubelet can see the image.
wait_for_image() {
    local deadline=$((SECONDS + 10))
    until run_in_cluster ctr -n k8s.io images ls -q 'labels."io.cri-containerd.image"==managed' |
        grep -xF "$1" >/dev/null; do
        ((SECONDS < deadline)) || return 1
        sleep 0.1
    done
}

# Stops and removes everything of this cluster except the lock and the logs. Does nothing if there
# is no cluster.
clean_up() {
    check_name_is_free
    end_exec_processes
    # If `unshare` is killed, the kernel kills the first process of the namespaces and then all
    # other processes in them. Mounts, addresses and links end with the namespaces.
    ! init_is_alive || kill -KILL "$init" 2>/dev/null || true
    local pid deadline=$((SECONDS + 20))
    while [[ $(list_cgroup_processes) ]]; do
        ((SECONDS < deadline)) || die "these processes of $name do not end: $(list_cgroup_processes | tr '\n' ' ')"
        for pid in $(list_cgroup_processes); do
            kill -KILL "$pid" 2>/dev/null || true
        done
        sleep 0.1
    done
    # The machine's init process reaps `unshare`. Wait up to 3 s for that.
    while init_exists && ((SECONDS < deadline - 17)); do
        sleep 0.1
    done
    until rm -rf "$state" 2>/dev/null; do
        ((SECONDS < deadline)) || die "$state cannot be removed: $(rm -rf "$state" 2>&1 | tail -n 1)"
        sleep 0.1
    done
    remove_cgroups
}

# The kernel keeps a cgroup busy for a moment after its last process has ended.
remove_cgroups() {
    local root deadline=$((SECONDS + 5))
    while read -r root; do
        while [[ -d $root/$cgroup ]]; do
            find "$root/$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null || true
            ((SECONDS < deadline)) || break
            [[ ! -d $root/$cgroup ]] || sleep 0.1
        done
    done < <(list_hierarchies)
}

# Ends the commands that `exec` has started and that still run: they keep the network namespace
# open. Spares this script and its parents, because `down` may itself run inside `exec`.
end_exec_processes() {
    local network pids=() pid ancestors=" " deadline=$((SECONDS + 3))
    network=$(cat "$state/network" 2>/dev/null) || return 0
    for ((pid = BASHPID; pid > 1; pid = $(awk '/^PPid/ { print $2 }' "/proc/$pid/status"))); do
        ancestors+="$pid "
    done
    # Checks both the namespace and KUBECONFIG: the kernel reuses the IDs of namespaces.
    for pid in /proc/[0-9]*; do
        [[ $(readlink "$pid/ns/net" 2>/dev/null) == "$network" ]] || continue
        pid=${pid#/proc/}
        [[ $ancestors != *" $pid "* ]] || continue
        { tr '\0' '\n' <"/proc/$pid/environ"; } 2>/dev/null |
            grep -xF "KUBECONFIG=$kubeconfig" >/dev/null || continue
        pids+=("$pid")
    done
    ((${#pids[@]})) || return 0
    say "ending processes that exec started: ${pids[*]}"
    kill -TERM "${pids[@]}" 2>/dev/null || true
    while kill -0 "${pids[@]}" 2>/dev/null && ((SECONDS < deadline)); do
        sleep 0.1
    done
    kill -KILL "${pids[@]}" 2>/dev/null || true
}
