# shellcheck shell=bash disable=SC2154 # charts/test sets the variables named below
# The tests of the chart on a cluster. Reads $chart, $crd and $work. Calls run_test,
# expect_failure, expect_equal, expect_contains and die.

test_label=loadtest.cell0.io/chart-test
one="chart-test-one"
two="chart-test-two"
shop="chart-test-shop"
stage="chart-test-stage"

clean_up() {
    local release namespace
    while read -r release namespace; do
        helm uninstall "$release" -n "$namespace" --wait --timeout 60s >/dev/null || true
    done < <(helm list -A --no-headers 2>/dev/null | awk -v own="^chart-test-" '$2 ~ own { print $1, $2 }')
    kubectl delete crd "$crd" loadtestresults.loadtest.cell0.io --ignore-not-found --timeout=60s >/dev/null || true
    kubectl delete namespace -l "$test_label" --timeout=120s >/dev/null || true
}

make_namespaces() {
    local namespace
    for namespace in "$one" "$two" "$shop" "$stage"; do
        kubectl create namespace "$namespace"
        kubectl label namespace "$namespace" "$test_label=true" \
            pod-security.kubernetes.io/enforce=restricted
    done >/dev/null
}

# run_helm COMMAND RELEASE NAMESPACE ARGUMENT...: runs helm with the image under test.
run_helm() {
    local command=$1 release=$2 namespace=$3
    shift 3
    helm "$command" "$release" "$used_chart" -n "$namespace" --wait --timeout 90s \
        ${IMAGE_TAG:+--set "image.tag=$IMAGE_TAG"} "$@" >"$work/helm" 2>&1 || {
        cat "$work/helm"
        print_diagnostics "$namespace"
        return 1
    }
}

# print_diagnostics NAMESPACE
print_diagnostics() {
    kubectl -n "$1" get pods,events 2>/dev/null | tail -n 5
    kubectl -n "$1" logs -l app.kubernetes.io/name=loadtest-operator --tail=5 2>/dev/null
}

# uninstall_release RELEASE NAMESPACE
uninstall_release() { helm uninstall "$1" -n "$2" --wait --timeout 60s; }

# check_operator_ready RELEASE NAMESPACE: both replicas are ready. Ignores pods that are being deleted: an
# earlier uninstall may have left some.
check_operator_ready() {
    local pods
    pods=$(kubectl -n "$2" get pods -l "app.kubernetes.io/instance=$1" -o \
        'jsonpath={range .items[*]}{.metadata.deletionTimestamp}/{.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}')
    expect_equal $'/True\n/True' "$(grep ^/ <<<"$pods")"
}

check_crd_established() {
    expect_equal True "$(kubectl get crd "$crd" \
        -o 'jsonpath={.status.conditions[?(@.type=="Established")].status}')"
}

# retry_until_success CMD...: repeats CMD until it succeeds, for at most 30 s.
retry_until_success() {
    local end=$((SECONDS + 30))
    until "$@"; do
        ((SECONDS < end)) || return 1
        sleep 0.5
    done
}

# Repeats `kubectl wait` because it fails at once while the CRD has no conditions. Then waits for
# discovery, which lists the kind a moment after the CRD is established.
wait_for_crd() {
    retry_until_success kubectl wait --for=condition=Established "crd/$crd" --timeout=30s
    retry_until_success kubectl get loadtests -A
}

crd_owner() {
    kubectl get crd "$crd" -o 'jsonpath={.metadata.annotations.meta\.helm\.sh/release-namespace}/{.metadata.annotations.meta\.helm\.sh/release-name}'
}

crd_columns() {
    kubectl get crd "$crd" -o 'jsonpath={.spec.versions[0].additionalPrinterColumns[*].name}'
}

# create_load_test NAMESPACE: creates a small LoadTest. It sends no load: its target does not resolve.
create_load_test() {
    kubectl apply -f - <<LOADTEST
apiVersion: loadtest.cell0.io/v1alpha1
kind: LoadTest
metadata: {name: kept, namespace: $1}
spec:
  target: {http: "http://nowhere.invalid"}
  load: {users: 1, spawnRate: 1, duration: 1s}
  scenario: {tasks: [{name: get, http: {path: /}}]}
LOADTEST
}

# load_test_uid NAMESPACE
load_test_uid() { kubectl -n "$1" get loadtest kept -o 'jsonpath={.metadata.uid}'; }

# Prints the path in the chart of the CRD for the cluster's version.
crd_file() {
    local minor
    # The last of the versions of client and server.
    minor=$(kubectl version -o json | sed -nE 's/.*"minor": "([0-9]+).*/\1/p' | tail -n 1)
    ((minor < 34)) && echo files/loadtests-1.29-to-1.33.yaml || echo files/loadtests.yaml
}

# Makes a copy of the chart with one more printer column in its CRD.
make_changed_chart() {
    rm -rf "$work/changed"
    cp -r "$chart" "$work/changed"
    sed -i '0,/  - additionalPrinterColumns:/s//&\n    - jsonPath: .spec.load.users\n      name: Asked\n      type: integer/' \
        "$work/changed/$(crd_file)"
    grep -q 'name: Asked' "$work/changed/$(crd_file)"
}

run_helm_with_changed_chart() {
    make_changed_chart
    used_chart=$work/changed run_helm "$@"
    expect_contains "$(crd_columns)" Asked
}

is_allowed() {
    local response
    response=$(kubectl auth can-i "$@" 2>/dev/null) || true
    [[ $response == yes ]]
}

# check_right yes|no RELEASE NAMESPACE VERB OBJECT WHERE: checks if the operator of RELEASE in
# NAMESPACE has a right in namespace WHERE. OBJECT is RESOURCE, RESOURCE/NAME or
# RESOURCE:SUBRESOURCE.
check_right() {
    local expected=$1 found=no object=("${5%%:*}")
    [[ $5 != *:* ]] || object+=(--subresource "${5#*:}")
    if is_allowed "$4" "${object[@]}" -n "$6" --as "system:serviceaccount:$3:$2-loadtest-operator"; then found=yes; fi
    [[ $expected == "$found" ]] || {
        echo "right of $3/$2 to $4 $5 in $6: expected $expected, found $found"
        return 1
    }
}

check_cluster_wide_rights() {
    check_right yes first "$one" list loadtests.loadtest.cell0.io "$shop"
    check_right yes first "$one" create jobs.batch "$stage"
    check_right yes first "$one" get pods:log "$shop"
    check_right yes first "$one" create secrets "$one"
    check_right yes first "$one" get secrets/first-loadtest-operator-token "$one"
    check_right no first "$one" get secrets/other "$one"
    check_right no first "$one" list secrets "$one"
    check_right yes first "$one" create leases.coordination.k8s.io "$one"
    check_right yes first "$one" update leases.coordination.k8s.io/first-loadtest-operator "$one"
    check_right no first "$one" update leases.coordination.k8s.io/other "$one"
    check_right no first "$one" create leases.coordination.k8s.io "$shop"
    check_right no first "$one" create secrets "$shop"
    check_right no first "$one" get secrets/first-loadtest-operator-token "$shop"
    check_right no first "$one" create pods "$shop"
    check_right no first "$one" create loadtests.loadtest.cell0.io "$shop"
}

# check_namespaced_rights WATCHED OTHER: the operator has rights in WATCHED and none in OTHER.
check_namespaced_rights() {
    check_right yes first "$one" list loadtests.loadtest.cell0.io "$1"
    check_right yes first "$one" create jobs.batch "$1"
    check_right yes first "$one" patch loadtests.loadtest.cell0.io:status "$1"
    check_right no first "$one" list loadtests.loadtest.cell0.io "$2"
    check_right no first "$one" create jobs.batch "$2"
    check_right no first "$one" get secrets "$1"
    check_right no first "$one" list loadtests.loadtest.cell0.io "$one"
    check_right yes first "$one" get secrets/first-loadtest-operator-token "$one"
}

# Repeats the first checks: the controller aggregates roles a moment after they are created.
check_user_rights() {
    kubectl -n "$shop" create rolebinding viewer --clusterrole view --user chart-test-viewer
    kubectl -n "$shop" create rolebinding editor --clusterrole edit --user chart-test-editor
    retry_until_success is_allowed create loadtests.loadtest.cell0.io -n "$shop" --as chart-test-editor || {
        echo "edit can't create LoadTests"
        return 1
    }
    retry_until_success is_allowed list loadtests.loadtest.cell0.io -n "$shop" --as chart-test-viewer || {
        echo "view can't list LoadTests"
        return 1
    }
    if is_allowed create loadtests.loadtest.cell0.io -n "$shop" --as chart-test-viewer; then
        echo "view can create LoadTests"
        return 1
    fi
}

# check_notes_command RELEASE NAMESPACE: runs the kubectl command of the notes, as a dry run.
check_notes_command() {
    local text command
    text=$(helm get notes "$1" -n "$2")
    command=$(sed -n '/^kubectl apply/,/^EOF$/p' <<<"$text")
    expect_contains "$command" "kubectl apply -f -"
    expect_contains "$(bash -c "${command/kubectl apply/kubectl apply --dry-run=server}")" \
        "loadtest.loadtest.cell0.io/first created (server dry run)"
}

check_release_size() {
    local bytes
    bytes=$(kubectl -n "$one" get secret sh.helm.release.v1.first.v1 -o 'jsonpath={.data.release}' | wc -c)
    # Helm stores the release in a Secret, and a Secret holds at most 1 MiB. The limit here is half
    # of that, so the CRD has room to grow.
    ((bytes < 524288)) || {
        echo "the release has $bytes bytes"
        return 1
    }
}

install_and_check() {
    run_helm install "$@"
    check_operator_ready "$1" "$2"
    check_crd_established
}

uninstall_keeps_load_tests() {
    local before
    create_load_test "$shop"
    before=$(load_test_uid "$shop")
    expect_contains "$(uninstall_release first "$one")" "[CustomResourceDefinition] $crd"
    check_crd_established
    expect_equal "$before" "$(load_test_uid "$shop")"
    expect_equal "" "$(kubectl -n "$one" get deployments,services,roles,serviceaccounts -o name \
        -l app.kubernetes.io/instance=first)"
    printf '%s' "$before" >"$work/uid"
}

check_same_load_test() { expect_equal "$(<"$work/uid")" "$(load_test_uid "$shop")"; }

reinstall_same_release() {
    install_and_check first "$one"
    check_same_load_test
}

# Without --take-ownership, Helm reports the conflict and changes nothing.
take_over_crd() {
    uninstall_release first "$one"
    expect_failure "exists and cannot be imported into the current release" run_helm install second "$two"
    expect_equal "$one/first" "$(crd_owner)"
    expect_equal "" "$(helm list -n "$two" -q)"
    install_and_check second "$two" --take-ownership
    expect_equal "$two/second" "$(crd_owner)"
    check_same_load_test
}

upgrade_taken_over_crd() {
    run_helm_with_changed_chart upgrade second "$two"
    run_helm upgrade second "$two"
    expect_equal "${columns_before}" "$(crd_columns)"
}

install_beside_owner() {
    install_and_check first "$one" --set crds.install=false --set "watchNamespaces={$stage}"
    expect_equal "$two/second" "$(crd_owner)"
    uninstall_release first "$one"
    check_crd_established
    check_operator_ready second "$two"
}

give_up_crd() {
    run_helm upgrade second "$two" --set crds.install=false
    check_crd_established
    run_helm upgrade second "$two" --set crds.install=true
    check_same_load_test
}

install_over_kubectl_crd() {
    uninstall_release second "$two"
    kubectl delete crd "$crd" --timeout=60s
    kubectl apply -f "$chart/$(crd_file)"
    wait_for_crd
    create_load_test "$shop"
    load_test_uid "$shop" >"$work/uid"
    expect_failure "exists and cannot be imported into the current release" run_helm install first "$one"
    install_and_check first "$one" --set crds.install=false
    expect_equal "/" "$(crd_owner)"
    uninstall_release first "$one"
    install_and_check first "$one" --take-ownership --force-conflicts
    expect_equal "$one/first" "$(crd_owner)"
    check_same_load_test
}

# kubectl has created an older CRD with other content.
install_over_older_kubectl_crd() {
    uninstall_release first "$one"
    kubectl delete crd "$crd" --timeout=60s
    make_changed_chart
    kubectl apply -f "$work/changed/$(crd_file)"
    wait_for_crd
    create_load_test "$shop"
    load_test_uid "$shop" >"$work/uid"
    install_and_check first "$one" --take-ownership --force-conflicts
    expect_equal "${columns_before}" "$(crd_columns)"
    check_same_load_test
    run_helm_with_changed_chart upgrade first "$one"
}

watch_one_namespace() {
    run_helm upgrade first "$one" --set "watchNamespaces={$shop}"
    check_operator_ready first "$one"
    check_namespaced_rights "$shop" "$stage"
    check_notes_command first "$one"
}

watch_two_namespaces() {
    run_helm upgrade first "$one" --set "watchNamespaces={$stage,$two}"
    check_operator_ready first "$one"
    check_namespaced_rights "$stage" "$shop"
    check_namespaced_rights "$two" "$shop"
}

# print_load_test RUNNERS: prints a LoadTest with this value of spec.runners.
print_load_test() {
    cat <<LOADTEST
apiVersion: loadtest.cell0.io/v1alpha1
kind: LoadTest
metadata: { name: run-only }
spec:
  target: { http: "http://cell0:18800" }
  load: { users: 1, spawnRate: 1, duration: 1s }
  scenario: { tasks: [{ name: health, http: { path: /health } }] }
  runners: $1
LOADTEST
}

# create_as_runner RUNNERS: a user with the ClusterRole of rbac.runRole creates a LoadTest, as a dry
# run, with this value of spec.runners.
create_as_runner() {
    print_load_test "$1" | kubectl -n "$shop" create --dry-run=server --as chart-test-runner -f -
}

# Repeats the first check: the API server applies a policy a moment after it is created.
users_without_pods() {
    run_helm upgrade first "$one" --set rbac.runRole=true
    kubectl -n "$shop" create rolebinding runner --clusterrole "$one:first-loadtest-operator:run" --user chart-test-runner
    retry_until_success is_allowed create loadtests.loadtest.cell0.io -n "$shop" --as chart-test-runner
    create_as_runner '{ usersPerRunner: 10 }'
    retry_until_success expect_failure "spec.runners.image is for users who may create pods" \
        create_as_runner '{ image: "other:1" }'
    expect_failure "valueFrom is for users" \
        create_as_runner '{ env: [{ name: A, valueFrom: { secretKeyRef: { name: a, key: b } } }] }'
    create_as_runner '{ env: [{ name: A, value: b }] }'
    # A change of metadata chooses no pod, whatever the spec contains.
    print_load_test '{ image: "other:1" }' | kubectl -n "$shop" create -f -
    kubectl -n "$shop" annotate --as chart-test-runner loadtest run-only chart-test=1
    kubectl -n "$shop" delete loadtest run-only
    kubectl -n "$shop" create rolebinding pods --clusterrole edit --user chart-test-runner
    retry_until_success create_as_runner '{ image: "other:1" }'
}

# create_within_limits TARGET LOAD RUNNERS: creates a LoadTest with these parts of its spec, as a dry run.
create_within_limits() {
    kubectl -n "$shop" create --dry-run=server -f - <<LOADTEST
apiVersion: loadtest.cell0.io/v1alpha1
kind: LoadTest
metadata: { name: limited }
spec:
  target: $1
  load: $2
  scenario: { tasks: [{ name: health, http: { path: /health } }] }
  runners: $3
LOADTEST
}

# Repeats the first check: the API server applies a policy a moment after it is created.
limits_of_load_tests() {
    local inside='{ http: "http://cell0:18800" }' load='{ users: 100, duration: 1s }' runners='{ count: 2 }'
    run_helm upgrade first "$one" --set 'policy.allowedTargets={cell0,*.staging.svc}' \
        --set policy.maxUsers=100,policy.maxRunners=2
    retry_until_success expect_failure "allows only these hosts: cell0, *.staging.svc" \
        create_within_limits '{ http: "http://example.com" }' "$load" "$runners"
    create_within_limits "$inside" "$load" "$runners"
    create_within_limits '{ http: "https://shop.STAGING.svc/api" }' "$load" '{ usersPerRunner: 50 }'
    create_within_limits "$inside" '{ stages: [{ duration: 1s, users: 100 }] }' "$runners"
    create_within_limits "$inside" '{ arrivalRate: 50, maxUsers: 100, duration: 1s }' "$runners"
    expect_failure "spec.target.http" create_within_limits '{ http: "http://cell0@example.com" }' "$load" "$runners"
    expect_failure "spec.target.http" create_within_limits '{ http: "http://staging.svc" }' "$load" "$runners"
    expect_failure "spec.target.webSocket" \
        create_within_limits '{ http: "http://cell0", webSocket: "ws://example.com" }' "$load" "$runners"
    expect_failure "at most 100 users" create_within_limits "$inside" '{ users: 101, duration: 1s }' "$runners"
    expect_failure "spec.load.stages[].users" \
        create_within_limits "$inside" '{ stages: [{ duration: 1s, users: 101 }] }' "$runners"
    expect_failure "spec.load.maxUsers" \
        create_within_limits "$inside" '{ arrivalRate: 50, maxUsers: 101, duration: 1s }' "$runners"
    expect_failure "at most 2 runners" create_within_limits "$inside" "$load" '{ count: 3 }'
    expect_failure "spec.runners.usersPerRunner" create_within_limits "$inside" "$load" '{ usersPerRunner: 49 }'
    expect_failure "give count or usersPerRunner" create_within_limits "$inside" "$load" '{ labels: { team: a } }'
    # Without values, Helm would keep the limits.
    run_helm upgrade first "$one" --reset-values
    retry_until_success create_within_limits '{ http: "http://example.com" }' "$load" "$runners"
}

# The steps of the README: an administrator creates the Roles, the owner of a namespace installs.
install_as_namespace_owner() {
    local set=(--set "watchNamespaces={$shop}" --set "crds.install=false,rbac.aggregate=false")
    # Removes all rights that users have through another release.
    run_helm upgrade first "$one" --set rbac.aggregate=false --set "watchNamespaces={$stage}"
    kubectl -n "$shop" create rolebinding owner --clusterrole admin --user chart-test-owner
    retry_until_success is_allowed create roles.rbac.authorization.k8s.io -n "$shop" --as chart-test-owner
    expect_failure "not currently held" run_helm install mine "$shop" "${set[@]}" --kube-as-user chart-test-owner
    uninstall_release mine "$shop"
    if is_allowed create loadtests.loadtest.cell0.io -n "$shop" --as chart-test-owner; then
        echo "the owner can already create LoadTests"
        return 1
    fi
    helm template mine "$chart" -n "$shop" --set "watchNamespaces={$shop}" \
        --show-only templates/rbac.yaml --show-only templates/rbac-aggregate.yaml >"$work/granted.yaml"
    kubectl apply -f "$work/granted.yaml"
    retry_until_success is_allowed create loadtests.loadtest.cell0.io -n "$shop" --as chart-test-owner
    install_and_check mine "$shop" "${set[@]}" --set rbac.create=false --kube-as-user chart-test-owner
    uninstall_release mine "$shop"
    kubectl delete -f "$work/granted.yaml"
}

run_cluster_tests() {
    command -v kubectl >/dev/null || die "kubectl is missing: run this test with testbed/testbed exec --"
    kubectl version --request-timeout=10s >/dev/null 2>&1 || die "no cluster responds"
    if kubectl get crd "$crd" >/dev/null 2>&1 &&
        [[ -z $(kubectl get namespaces -l "$test_label" -o name) ]]; then
        die "the cluster already has the CRD of LoadTests, and these tests would delete it with all LoadTests: use another cluster"
    fi
    used_chart=$chart
    trap 'clean_up; rm -rf "$work"' EXIT
    clean_up
    make_namespaces

    run_test "installs into a restricted namespace" install_and_check first "$one"
    columns_before=$(crd_columns) || true
    run_test "operator has the rights it needs, cluster-wide" check_cluster_wide_rights
    run_test "view and edit cover LoadTests" check_user_rights
    run_test "the API server accepts the LoadTest of the notes" check_notes_command first "$one"
    run_test "the release fits into its Secret" check_release_size
    run_test "upgrade updates the CRD" run_helm_with_changed_chart upgrade first "$one"
    run_test "uninstall keeps only the CRD and LoadTests" uninstall_keeps_load_tests
    run_test "the same release can be installed again" reinstall_same_release
    run_test "another release takes over the CRD" take_over_crd
    run_test "upgrade updates a CRD that was taken over" upgrade_taken_over_crd
    run_test "a second release does not change the CRD" install_beside_owner
    run_test "crds.install=false keeps the CRD" give_up_crd
    run_test "installs over a CRD created by kubectl" install_over_kubectl_crd
    run_test "installs over an older CRD created by kubectl" install_over_older_kubectl_crd
    run_test "watches one namespace" watch_one_namespace
    run_test "watches two other namespaces" watch_two_namespaces
    # Kubernetes before 1.30 has no admission policies.
    if kubectl api-resources --api-group admissionregistration.k8s.io -o name | grep -q validatingadmissionpolicies; then
        run_test "users who may create no pods run plain load tests" users_without_pods
        run_test "a policy limits targets, users and runners" limits_of_load_tests
    fi
    run_test "the owner of a namespace installs the chart there" install_as_namespace_owner
}
