#!/usr/bin/env bash
# The cluster's first process: the init of its namespaces. It starts the
# components in order, says `ready` or `failed` in $STATE, and then waits. All
# ends with it, and it ends with the first component that ends: a cluster is
# whole or it is not there.
#
# Started by host.sh with STATE, BIN, LOGS and CGROUP, and nothing else.
set -euo pipefail
config=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../config

node_address=10.200.0.1
service_range=10.96.0.0/16
api_service=10.96.0.1
pod_range=10.244.0.0/16

declare -A component # the name of each component, by process id

fail() {
    printf '%s %s\n' "$1" "$2" >/run/testbed/failed.new
    mv /run/testbed/failed.new /run/testbed/failed
    exit 1
}

# start NAME CMD...
start() {
    local name=$1
    shift
    "$@" >"/run/testbed-logs/$name.log" 2>&1 &
    component[$!]=$name
}

# await NAME SECONDS WHAT CMD...: until CMD succeeds. NAME is to blame if not.
await() {
    local name=$1 deadline=$((SECONDS + $2)) what=$3 pid
    shift 3
    until "$@" >/dev/null 2>&1; do
        for pid in "${!component[@]}"; do
            [[ -d /proc/$pid ]] || fail "${component[$pid]}" "ended while the cluster came up"
        done
        ((SECONDS < deadline)) || fail "$name" "$what"
        sleep 0.1
    done
}

# Everything the cluster needs gets one fixed path, wherever the cache is; and
# what its programs write outside of it lands in the state after all.
arrange_mounts() {
    mkdir -p "$STATE"/{run,var-lib/kubelet,var-lib/cni,var-log}
    cp -r "$config" "$STATE/config"
    mount -t tmpfs -o mode=755 tmpfs "$STATE/run"
    mkdir "$STATE"/run/{testbed,testbed-bin,testbed-logs,sysctl,mount} # the last is mount's own
    mount --bind "$STATE" "$STATE/run/testbed"
    mount --bind "$BIN" "$STATE/run/testbed-bin"
    mount --bind "$LOGS" "$STATE/run/testbed-logs"
    mount --move "$STATE/run" /run
    mount --bind /run/testbed/var-lib /var/lib
    mount --bind /run/testbed/var-log /var/log
    PATH=/run/testbed-bin:$PATH
    cd /run/testbed

    # The kubelet would set these for the whole machine. Let it find them set.
    local setting path
    for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
        kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
        path=${setting%=*}
        [[ -e /proc/sys/$path ]] || continue
        echo "${setting#*=}" >"/run/sysctl/${path//\//.}"
        mount --bind "/run/sysctl/${path//\//.}" "/proc/sys/$path"
    done

    printf 'nameserver 10.96.0.10\nsearch svc.cluster.local cluster.local\noptions ndots:5\n' >resolv.conf
    # Where this is a link into the old /run, its target is gone.
    path=$(readlink -m /etc/resolv.conf)
    if [[ $path == /run/* ]]; then
        mkdir -p "${path%/*}"
        : >"$path"
    fi
    mount --bind resolv.conf /etc/resolv.conf
    # Volumes mounted by the kubelet must show in the runtime.
    mount --make-rshared /
}

# A veth pair, because not every kernel has dummy devices. There is no way out:
# what is neither node, pod nor Service is unreachable at once.
arrange_network() {
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

certify() {
    local name=$1 subject=$2
    shift 2
    openssl req -config pki/openssl.cnf -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc \
        -days 365 -keyout "pki/$name.key" -out "pki/$name.crt" -subj "$subject" "$@"
}

# identity NAME SUBJECT [SAN]: a certificate and a kubeconfig that embeds it.
identity() {
    certify "$1" "$2" -CA pki/ca.crt -CAkey pki/ca.key \
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

arrange_identities() {
    umask 077
    mkdir pki
    printf '[req]\ndistinguished_name = dn\n[dn]\n' >pki/openssl.cnf
    certify ca /CN=testbed-ca -addext basicConstraints=critical,CA:TRUE -addext keyUsage=keyCertSign,cRLSign,digitalSignature
    identity kube-apiserver /CN=kube-apiserver \
        "IP:127.0.0.1,IP:$node_address,IP:$api_service,DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local"
    identity kube-apiserver-kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client
    identity admin /O=system:masters/CN=admin
    identity kubelet /O=system:nodes/CN=system:node:node-1 "DNS:node-1,IP:$node_address"
    identity kube-controller-manager /CN=system:kube-controller-manager
    identity kube-scheduler /CN=system:kube-scheduler
    identity kube-proxy /CN=system:kube-proxy
    identity coredns /CN=system:coredns
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:prime256v1 -out pki/service-accounts.key
    openssl pkey -in pki/service-accounts.key -pubout -out pki/service-accounts.pub
    umask 022
    mv admin.kubeconfig kubeconfig
    export KUBECONFIG=/run/testbed/kubeconfig
}

start_etcd() {
    start etcd etcd --data-dir /run/testbed/etcd --unsafe-no-fsync \
        --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
        --listen-peer-urls http://127.0.0.1:2380
}

start_apiserver() {
    start kube-apiserver kube-apiserver --etcd-servers=http://127.0.0.1:2379 \
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
        --kubelet-preferred-address-types=InternalIP --profiling=false
}

start_controllers() {
    start kube-controller-manager kube-controller-manager --kubeconfig=kube-controller-manager.kubeconfig \
        --service-account-private-key-file=pki/service-accounts.key --root-ca-file=pki/ca.crt \
        --use-service-account-credentials --leader-elect=false --profiling=false \
        --allocate-node-cidrs --cluster-cidr="$pod_range" --node-cidr-mask-size=20 \
        --flex-volume-plugin-dir=/var/lib/kubelet/volume-plugins
    start kube-scheduler kube-scheduler --kubeconfig=kube-scheduler.kubeconfig --leader-elect=false --profiling=false
}

start_node() {
    sed -i "s/@CGROUP@/$CGROUP/" config/kubelet.yaml
    start kubelet kubelet --config=config/kubelet.yaml --kubeconfig=kubelet.kubeconfig \
        --node-ip="$node_address" --hostname-override=node-1
    # Of the connection table's size, too, the machine is master.
    start kube-proxy kube-proxy --kubeconfig=kube-proxy.kubeconfig --hostname-override=node-1 \
        --cluster-cidr="$pod_range" --conntrack-max-per-core=0 --conntrack-min=0
}

# shellcheck disable=SC2317 # `await` runs it
port_answers() { : <>"/dev/tcp/127.0.0.1/$1"; }
# shellcheck disable=SC2317
node_is_ready() {
    [[ $(kubectl get node node-1 -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}') == True ]]
}
# shellcheck disable=SC2317
# Through the Service's address, so this proves kube-proxy as well.
dns_answers() {
    [[ $(getent ahostsv4 kubernetes.default.svc.cluster.local | awk '{ print $1; exit }') == "$api_service" ]]
}

arrange_mounts
arrange_network
start containerd containerd --config config/containerd.toml
start_etcd
arrange_identities
await etcd 20 "does not answer" port_answers 2379
start_apiserver
await containerd 20 "does not answer" ctr version
ctr --namespace k8s.io images import /run/testbed-bin/pause.tar >/dev/null || fail containerd "does not take the pause image"
await kube-apiserver 60 "is not ready" kubectl get --raw /readyz
start_controllers
start_node
await kube-apiserver 20 "does not take the DNS objects" kubectl apply -f config/dns.yaml
start coredns coredns -conf config/Corefile
await kubelet 60 "the node is not Ready" node_is_ready
await kube-controller-manager 30 "the default ServiceAccount is not there" kubectl get serviceaccount default
await coredns 30 "does not answer for kubernetes.default.svc.cluster.local" dns_answers
touch ready

wait -n -p ended || true
rm -f ready
fail "${component[${ended:-0}]:-init}" "ended"
