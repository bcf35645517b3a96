#!/usr/bin/env bash
# The first process (PID 1) of the cluster's namespaces. It starts the components in order,
# writes $STATE/ready or $STATE/failed, and then waits. If one component ends, this script ends,
# and the kernel then ends all other components. So the cluster never runs with a component missing. There
# is one exception: while the file $STATE/api-server-away exists, a test may kill the API server. This script starts it
# again when the file is gone.
#
# host.sh starts this script with only STATE, BIN, LOGS and CGROUP in the environment.
set -euo pipefail
config=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../config

node_address=10.200.0.1
service_range=10.96.0.0/16
api_service=10.96.0.1
pod_range=10.244.0.0/16

declare -A component_by_pid

# fail COMPONENT PROBLEM
fail() {
    printf '%s %s\n' "$1" "$2" >/run/testbed/failed.new
    mv /run/testbed/failed.new /run/testbed/failed
    exit 1
}

# start_component NAME CMD...
start_component() {
    local name=$1
    shift
    "$@" >>"/run/testbed-logs/$name.log" 2>&1 &
    component_by_pid[$!]=$name
}

# wait_for COMPONENT SECONDS PROBLEM CMD...: repeats CMD until it succeeds. Reports PROBLEM of
# COMPONENT if CMD does not succeed in time.
wait_for() {
    local name=$1 deadline=$((SECONDS + $2)) problem=$3 pid
    shift 3
    until "$@" >/dev/null 2>&1; do
        for pid in "${!component_by_pid[@]}"; do
            [[ -d /proc/$pid ]] || fail "${component_by_pid[$pid]}" "ended while the cluster was starting"
        done
        ((SECONDS < deadline)) || fail "$name" "$problem"
        sleep 0.1
    done
}

# Gives the state, the programs and the logs fixed paths that don't depend on the cache folder.
# /run, /var/lib and /var/log become folders of the cluster, so its programs write nothing else.
set_up_mounts() {
    mkdir -p "$STATE"/{run,var-lib/kubelet,var-lib/cni,var-log}
    cp -r "$config" "$STATE/config"
    mount -t tmpfs -o mode=755 tmpfs "$STATE/run"
    mkdir "$STATE"/run/{testbed,testbed-bin,testbed-logs,sysctl,mount} # the program `mount` uses /run/mount
    mount --bind "$STATE" "$STATE/run/testbed"
    mount --bind "$BIN" "$STATE/run/testbed-bin"
    mount --bind "$LOGS" "$STATE/run/testbed-logs"
    mount --move "$STATE/run" /run
    mount --bind /run/testbed/var-lib /var/lib
    mount --bind /run/testbed/var-log /var/log
    PATH=/run/testbed-bin:$PATH
    cd /run/testbed

    # The kubelet would set these kernel settings for the whole machine. These files make it read
    # the values that it wants, so it changes nothing.
    local setting path
    for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
        kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
        path=${setting%=*}
        [[ -e /proc/sys/$path ]] || continue
        echo "${setting#*=}" >"/run/sysctl/${path//\//.}"
        mount --bind "/run/sysctl/${path//\//.}" "/proc/sys/$path"
    done

    printf 'nameserver 10.96.0.10\nsearch svc.cluster.local cluster.local\noptions ndots:5\n' >resolv.conf
    # If /etc/resolv.conf is a link into the old /run, its target no longer exists: create it.
    path=$(readlink -m /etc/resolv.conf)
    if [[ $path == /run/* ]]; then
        mkdir -p "${path%/*}"
        : >"$path"
    fi
    mount --bind resolv.conf /etc/resolv.conf
}

# Gives the cluster devices of its own. A tool that runs as root with /dev/null as its output file may
# replace the machine's /dev/null by a file, from which the container runtime would read options.
set_up_devices() {
    local new=/run/testbed-dev name mode major minor
    mkdir "$new"
    mount -t tmpfs -o mode=755 tmpfs "$new"
    while read -r name mode major minor; do
        mknod -m "$mode" "$new/$name" c "$major" "$minor"
    done <<'DEVICES'
null 666 1 3
zero 666 1 5
full 666 1 7
random 666 1 8
urandom 666 1 9
tty 666 5 0
kmsg 644 1 11
DEVICES
    ln -s /proc/self/fd "$new/fd"
    ln -s fd/0 "$new/stdin"
    ln -s fd/1 "$new/stdout"
    ln -s fd/2 "$new/stderr"
    ln -s pts/ptmx "$new/ptmx"
    mkdir "$new/pts" "$new/shm"
    mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$new/pts"
    mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$new/shm"
    mount --move "$new" /dev
}

# Uses a veth pair because not every kernel has dummy devices. Addresses other than those of the
# node, pods and Services are unreachable, and connections to them fail at once.
set_up_network() {
    hostname node-1
    ip link set lo up
    ip link add node0 type veth peer name node0-peer
    ip address add "$node_address/24" dev node0
    ip link set node0 up
    ip link set node0-peer up
    ip route add "$service_range" dev node0
    ip route add unreachable default
    echo 1 >/proc/sys/net/ipv4/ip_forward
}

# issue_certificate NAME SUBJECT OPENSSL-ARGUMENT...
issue_certificate() {
    local name=$1 subject=$2
    shift 2
    openssl req -config pki/openssl.cnf -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc \
        -days 365 -keyout "pki/$name.key" -out "pki/$name.crt" -subj "$subject" "$@"
}

# issue_identity NAME SUBJECT [SAN]: makes a certificate and a kubeconfig that contains it.
issue_identity() {
    issue_certificate "$1" "$2" -CA pki/ca.crt -CAkey pki/ca.key \
        -addext "subjectAltName=${3:-DNS:$1}" -addext extendedKeyUsage=clientAuth,serverAuth
    cat >"$1.kubeconfig" <<KUBECONFIG
apiVersion: v1
kind: Config
clusters:
  - name: testbed
    cluster:
      server: https://127.0.0.1:6443
      certificate-authority-data: $(base64 -w0 pki/ca.crt)
users:
  - name: $1
    user:
      client-certificate-data: $(base64 -w0 "pki/$1.crt")
      client-key-data: $(base64 -w0 "pki/$1.key")
contexts:
  - name: testbed
    context: { cluster: testbed, user: $1 }
current-context: testbed
KUBECONFIG
}

issue_identities() {
    umask 077
    mkdir pki
    printf '[req]\ndistinguished_name = dn\n[dn]\n' >pki/openssl.cnf
    issue_certificate ca /CN=testbed-ca -addext basicConstraints=critical,CA:TRUE -addext keyUsage=keyCertSign,cRLSign,digitalSignature
    issue_identity kube-apiserver /CN=kube-apiserver \
        "IP:127.0.0.1,IP:$node_address,IP:$api_service,DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local"
    issue_identity kube-apiserver-kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client
    issue_identity admin /O=system:masters/CN=admin
    issue_identity kubelet /O=system:nodes/CN=system:node:node-1 "DNS:node-1,IP:$node_address"
    issue_identity kube-controller-manager /CN=system:kube-controller-manager
    issue_identity kube-scheduler /CN=system:kube-scheduler
    issue_identity kube-proxy /CN=system:kube-proxy
    issue_identity coredns /CN=system:coredns
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:prime256v1 -out pki/service-accounts.key
    openssl pkey -in pki/service-accounts.key -pubout -out pki/service-accounts.pub
    umask 022
    mv admin.kubeconfig kubeconfig
    export KUBECONFIG=/run/testbed/kubeconfig
}

start_etcd() {
    start_component etcd etcd --data-dir /run/testbed/etcd --unsafe-no-fsync \
        --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
        --listen-peer-urls http://127.0.0.1:2380
}

start_apiserver() {
    start_component kube-apiserver kube-apiserver --etcd-servers=http://127.0.0.1:2379 \
        --bind-address=0.0.0.0 --secure-port=6443 --advertise-address="$node_address" \
        --tls-cert-file=pki/kube-apiserver.crt --tls-private-key-file=pki/kube-apiserver.key \
        --client-ca-file=pki/ca.crt --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
        --service-account-issuer=https://kubernetes.default.svc.cluster.local \
        --service-account-key-file=pki/service-accounts.pub \
        --service-account-signing-key-file=pki/service-accounts.key \
        --service-cluster-ip-range="$service_range" --allow-privileged=true \
        --kubelet-certificate-authority=pki/ca.crt \
        --kubelet-client-certificate=pki/kube-apiserver-kubelet-client.crt \
        --kubelet-client-key=pki/kube-apiserver-kubelet-client.key \
        --kubelet-preferred-address-types=InternalIP --profiling=false \
        --audit-policy-file=config/audit.yaml --audit-log-path=/run/testbed-logs/audit.log
}

start_controllers() {
    start_component kube-controller-manager kube-controller-manager --kubeconfig=kube-controller-manager.kubeconfig \
        --service-account-private-key-file=pki/service-accounts.key --root-ca-file=pki/ca.crt \
        --use-service-account-credentials --leader-elect=false --profiling=false \
        --allocate-node-cidrs --cluster-cidr="$pod_range" --node-cidr-mask-size=20 \
        --flex-volume-plugin-dir=/var/lib/kubelet/volume-plugins
    start_component kube-scheduler kube-scheduler --kubeconfig=kube-scheduler.kubeconfig --leader-elect=false --profiling=false
}

start_node() {
    sed -i "s/@CGROUP@/$CGROUP/" config/kubelet.yaml
    # Version 1.29 does not know this setting.
    [[ $(kubelet --version) != *' v1.29.'* ]] || sed -i '/^failCgroupV1:/d' config/kubelet.yaml
    start_component kubelet kubelet --config=config/kubelet.yaml --kubeconfig=kubelet.kubeconfig \
        --node-ip="$node_address" --hostname-override=node-1
    # The two conntrack flags are 0: kube-proxy must not resize the machine's connection table.
    start_component kube-proxy kube-proxy --kubeconfig=kube-proxy.kubeconfig --hostname-override=node-1 \
        --cluster-cidr="$pod_range" --conntrack-max-per-core=0 --conntrack-min=0
}

# shellcheck disable=SC2317 # called by `wait_for`
port_responds() { : <>"/dev/tcp/127.0.0.1/$1"; }
# shellcheck disable=SC2317
node_is_ready() {
    [[ $(kubectl get node node-1 -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}') == True ]]
}
# shellcheck disable=SC2317
# Asks through the Service's address, so this checks kube-proxy too.
dns_responds() {
    [[ $(getent ahostsv4 kubernetes.default.svc.cluster.local | awk '{ print $1; exit }') == "$api_service" ]]
}

set_up_mounts
set_up_devices
# The container runtime must see the volumes that the kubelet mounts.
mount --make-rshared /
set_up_network
start_component containerd containerd --config config/containerd.toml
start_etcd
issue_identities
wait_for etcd 20 "does not respond" port_responds 2379
start_apiserver
wait_for containerd 20 "does not respond" ctr version
ctr --namespace k8s.io images import /run/testbed-bin/pause.tar >/dev/null || fail containerd "can't import the pause image"
wait_for kube-apiserver 60 "is not ready" kubectl get --raw /readyz
start_controllers
start_node
wait_for kube-apiserver 20 "rejects the objects of config/dns.yaml" kubectl apply -f config/dns.yaml
start_component coredns coredns -conf config/Corefile
wait_for kubelet 60 "node-1 is not Ready" node_is_ready
wait_for kube-controller-manager 30 "has not created the default ServiceAccount" kubectl get serviceaccount default
wait_for coredns 30 "does not resolve kubernetes.default.svc.cluster.local" dns_responds
touch ready

while wait -n -p ended || true; do
    [[ ${component_by_pid[${ended:-0}]:-} == kube-apiserver && -e api-server-away ]] || break
    unset "component_by_pid[$ended]"
    while [[ -e api-server-away ]]; do sleep 0.1; done
    # `wait -n` does not return components that ended during the `sleep`.
    for pid in "${!component_by_pid[@]}"; do
        [[ -d /proc/$pid ]] || fail "${component_by_pid[$pid]}" "ended"
    done
    start_apiserver
done
rm -f ready
fail "${component_by_pid[${ended:-0}]:-init}" "ended"
