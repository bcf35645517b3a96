# shellcheck shell=bash disable=SC2154 # the variables named below are charts/test's
# The tests of the chart on a cluster. Reads $chart, $crd, $generated, $work; uses test_that,
# fails_with, equal, has and die.

own_label=loadtest.cell0.io/chart-test
one="chart-test-one"
two="chart-test-two"
shop="chart-test-shop"
stage="chart-test-stage"

clean_up() {
    local release namespace
    while read -r release namespace; do
        helm uninstall "$release" -n "$namespace" --wait --timeout 60s >/dev/null || true
    done < <(helm list -A --no-headers 2>/dev/null | awk -v own="^chart-test-" '$2 ~ own { print $1, $2 }')
    kubectl delete crd "$crd" --ignore-not-found --timeout=60s >/dev/null || true
    kubectl delete namespace -l "$own_label" --timeout=120s >/dev/null || true
}

make_namespaces() {
    local namespace
    for namespace in "$one" "$two" "$shop" "$stage"; do
        kubectl create namespace "$namespace"
        kubectl label namespace "$namespace" "$own_label=true" \
            pod-security.kubernetes.io/enforce=restricted
    done >/dev/null
}

# act COMMAND RELEASE NAMESPACE ARGUMENT...: helm with the image under test.
act() {
    local command=$1 release=$2 namespace=$3
    shift 3
    helm "$command" "$release" "$used_chart" -n "$namespace" --wait --timeout 90s \
        ${IMAGE_TAG:+--set "image.tag=$IMAGE_TAG"} "$@" >"$work/helm" 2>&1 || {
        cat "$work/helm"
        explain "$namespace"
        return 1
    }
}

# What a person would look at next.
explain() {
    kubectl -n "$1" get pods,events 2>/dev/null | tail -n 5
    kubectl -n "$1" logs -l app.kubernetes.io/name=loadtest-operator --tail=5 2>/dev/null
}

uninstall() { helm uninstall "$1" -n "$2" --wait --timeout 60s; }

# Pods of an operator that was uninstalled a moment ago may still be on their way out.
operator_ready() {
    local pods
    pods=$(kubectl -n "$2" get pods -l "app.kubernetes.io/instance=$1" -o \
        'jsonpath={range .items[*]}{.metadata.deletionTimestamp}/{.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}')
    equal /True "$(grep ^/ <<<"$pods")"
}

crd_established() {
    equal True "$(kubectl get crd "$crd" \
        -o 'jsonpath={.status.conditions[?(@.type=="Established")].status}')"
}

# eventually CMD...: until CMD succeeds, half a minute at most.
eventually() {
    local end=$((SECONDS + 30))
    until "$@"; do
        ((SECONDS < end)) || return 1
        sleep 0.5
    done
}

# kubectl wait gives up at once on a CRD that has no conditions yet, and discovery tells of its kind
# a moment after it is established.
crd_awaited() {
    eventually kubectl wait --for=condition=Established "crd/$crd" --timeout=30s
    eventually kubectl get loadtests -A
}

owner() {
    kubectl get crd "$crd" -o 'jsonpath={.metadata.annotations.meta\.helm\.sh/release-namespace}/{.metadata.annotations.meta\.helm\.sh/release-name}'
}

columns() {
    kubectl get crd "$crd" -o 'jsonpath={.spec.versions[0].additionalPrinterColumns[*].name}'
}

# One that nothing acts on: its target is in no DNS, and it is small.
load_test() {
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

uid() { kubectl -n "$1" get loadtest kept -o 'jsonpath={.metadata.uid}'; }

# A chart whose CRD has one more column.
changed_chart() {
    rm -rf "$work/changed"
    cp -r "$chart" "$work/changed"
    sed -i '0,/  - additionalPrinterColumns:/s//&\n    - jsonPath: .spec.load.users\n      name: Asked\n      type: integer/' \
        "$work/changed/files/loadtests.yaml"
    grep -q 'name: Asked' "$work/changed/files/loadtests.yaml"
}

changed_installs() {
    changed_chart
    used_chart=$work/changed act "$@"
    has "$(columns)" Asked
}

can() {
    local answer
    answer=$(kubectl auth can-i "$@" 2>/dev/null) || true
    [[ $answer == yes ]]
}

# may YES|NO RELEASE NAMESPACE VERB WHAT PLACE: whether the operator may. WHAT is
# RESOURCE, RESOURCE/NAME or RESOURCE:SUBRESOURCE.
may() {
    local wanted=$1 found=no what=("${5%%:*}")
    [[ $5 != *:* ]] || what+=(--subresource "${5#*:}")
    if can "$4" "${what[@]}" -n "$6" --as "system:serviceaccount:$3:$2-loadtest-operator"; then found=yes; fi
    [[ $wanted == "$found" ]] || {
        echo "may $3/$2 $4 $5 in $6: want $wanted, found $found"
        return 1
    }
}

rights_cluster_wide() {
    may yes first "$one" list loadtests.loadtest.cell0.io "$shop"
    may yes first "$one" create jobs.batch "$stage"
    may yes first "$one" get pods:log "$shop"
    may yes first "$one" create secrets "$one"
    may yes first "$one" get secrets/first-loadtest-operator-token "$one"
    may no first "$one" get secrets/other "$one"
    may no first "$one" list secrets "$one"
    may no first "$one" create secrets "$shop"
    may no first "$one" get secrets/first-loadtest-operator-token "$shop"
    may no first "$one" create pods "$shop"
    may no first "$one" create loadtests.loadtest.cell0.io "$shop"
}

# rights_in_namespaces NAMESPACE NOT-NAMESPACE
rights_in_namespaces() {
    may yes first "$one" list loadtests.loadtest.cell0.io "$1"
    may yes first "$one" create jobs.batch "$1"
    may yes first "$one" patch loadtests.loadtest.cell0.io:status "$1"
    may no first "$one" list loadtests.loadtest.cell0.io "$2"
    may no first "$one" create jobs.batch "$2"
    may no first "$one" get secrets "$1"
    may no first "$one" list loadtests.loadtest.cell0.io "$one"
    may yes first "$one" get secrets/first-loadtest-operator-token "$one"
}

# Aggregation takes the controller a moment.
aggregated_for_users() {
    kubectl -n "$shop" create rolebinding viewer --clusterrole view --user chart-test-viewer
    kubectl -n "$shop" create rolebinding editor --clusterrole edit --user chart-test-editor
    eventually can create loadtests.loadtest.cell0.io -n "$shop" --as chart-test-editor || {
        echo "edit can't create LoadTests"
        return 1
    }
    eventually can list loadtests.loadtest.cell0.io -n "$shop" --as chart-test-viewer || {
        echo "view can't list LoadTests"
        return 1
    }
    if can create loadtests.loadtest.cell0.io -n "$shop" --as chart-test-viewer; then
        echo "view can create LoadTests"
        return 1
    fi
}

# The command of the notes, as a person would paste it, with nothing started.
notes_apply() {
    local text command
    text=$(helm get notes "$1" -n "$2")
    command=$(sed -n '/^kubectl apply/,/^EOF$/p' <<<"$text")
    has "$command" "kubectl apply -f -"
    has "$(bash -c "${command/kubectl apply/kubectl apply --dry-run=server}")" \
        "loadtest.loadtest.cell0.io/first created (server dry run)"
}

small_release() {
    local bytes
    bytes=$(kubectl -n "$one" get secret sh.helm.release.v1.first.v1 -o 'jsonpath={.data.release}' | wc -c)
    # A Secret holds 1 MiB, and the CRD has room to grow.
    ((bytes < 524288)) || {
        echo "the release takes $bytes bytes"
        return 1
    }
}

installs() {
    act install "$@"
    operator_ready "$1" "$2"
    crd_established
}

kept_after_uninstall() {
    local before
    load_test "$shop"
    before=$(uid "$shop")
    has "$(uninstall first "$one")" "[CustomResourceDefinition] $crd"
    crd_established
    equal "$before" "$(uid "$shop")"
    equal "" "$(kubectl -n "$one" get deployments,services,roles,serviceaccounts -o name \
        -l app.kubernetes.io/instance=first)"
    printf '%s' "$before" >"$work/uid"
}

same_load_test() { equal "$(<"$work/uid")" "$(uid "$shop")"; }

installs_again() {
    installs first "$one"
    same_load_test
}

# Without the flag Helm says so, and nothing has happened.
other_release() {
    uninstall first "$one"
    fails_with "exists and cannot be imported into the current release" act install second "$two"
    equal "$one/first" "$(owner)"
    equal "" "$(helm list -n "$two" -q)"
    installs second "$two" --take-ownership
    equal "$two/second" "$(owner)"
    same_load_test
}

upgrades_after_taking() {
    changed_installs upgrade second "$two"
    act upgrade second "$two"
    equal "${columns_before}" "$(columns)"
}

beside_the_owner() {
    installs first "$one" --set crds.install=false --set "watchNamespaces={$stage}"
    equal "$two/second" "$(owner)"
    uninstall first "$one"
    crd_established
    operator_ready second "$two"
}

given_up() {
    act upgrade second "$two" --set crds.install=false
    crd_established
    act upgrade second "$two" --set crds.install=true
    same_load_test
}

over_kubectl() {
    uninstall second "$two"
    kubectl delete crd "$crd" --timeout=60s
    kubectl apply -f "$generated"
    crd_awaited
    load_test "$shop"
    uid "$shop" >"$work/uid"
    fails_with "exists and cannot be imported into the current release" act install first "$one"
    installs first "$one" --set crds.install=false
    equal "/" "$(owner)"
    uninstall first "$one"
    installs first "$one" --take-ownership --force-conflicts
    equal "$one/first" "$(owner)"
    same_load_test
}

# kubectl made an older one, with other content.
over_older_kubectl() {
    uninstall first "$one"
    kubectl delete crd "$crd" --timeout=60s
    changed_chart
    kubectl apply -f "$work/changed/files/loadtests.yaml"
    crd_awaited
    load_test "$shop"
    uid "$shop" >"$work/uid"
    installs first "$one" --take-ownership --force-conflicts
    equal "${columns_before}" "$(columns)"
    same_load_test
    changed_installs upgrade first "$one"
}

in_one_namespace() {
    act upgrade first "$one" --set "watchNamespaces={$shop}"
    operator_ready first "$one"
    rights_in_namespaces "$shop" "$stage"
    notes_apply first "$one"
}

in_two_namespaces() {
    act upgrade first "$one" --set "watchNamespaces={$stage,$two}"
    operator_ready first "$one"
    rights_in_namespaces "$stage" "$shop"
    rights_in_namespaces "$two" "$shop"
}

# As the README says it: who may grant the Roles makes them, who has a namespace installs.
by_a_namespaces_owner() {
    local set=(--set "watchNamespaces={$shop}" --set "crds.install=false,rbac.aggregate=false")
    # So that nobody has rights by another release.
    act upgrade first "$one" --set rbac.aggregate=false --set "watchNamespaces={$stage}"
    kubectl -n "$shop" create rolebinding owner --clusterrole admin --user chart-test-owner
    eventually can create roles.rbac.authorization.k8s.io -n "$shop" --as chart-test-owner
    fails_with "not currently held" act install mine "$shop" "${set[@]}" --kube-as-user chart-test-owner
    uninstall mine "$shop"
    if can create loadtests.loadtest.cell0.io -n "$shop" --as chart-test-owner; then
        echo "the owner can create LoadTests already"
        return 1
    fi
    helm template mine "$chart" -n "$shop" --set "watchNamespaces={$shop}" \
        --show-only templates/rbac.yaml --show-only templates/rbac-aggregate.yaml >"$work/granted.yaml"
    kubectl apply -f "$work/granted.yaml"
    eventually can create loadtests.loadtest.cell0.io -n "$shop" --as chart-test-owner
    installs mine "$shop" "${set[@]}" --set rbac.create=false --kube-as-user chart-test-owner
    uninstall mine "$shop"
    kubectl delete -f "$work/granted.yaml"
}

on_cluster() {
    command -v kubectl >/dev/null || die "kubectl is missing: run this by testbed/testbed exec --"
    kubectl version --request-timeout=10s >/dev/null 2>&1 || die "no cluster answers"
    if kubectl get crd "$crd" >/dev/null 2>&1 &&
        [[ -z $(kubectl get namespaces -l "$own_label" -o name) ]]; then
        die "the cluster has LoadTests already, and this test deletes them all: use another"
    fi
    used_chart=$chart
    trap 'clean_up; rm -rf "$work"' EXIT
    clean_up
    make_namespaces

    test_that "installs into a restricted namespace" installs first "$one"
    columns_before=$(columns) || true
    test_that "has the rights it needs, cluster-wide" rights_cluster_wide
    test_that "view and edit cover LoadTests" aggregated_for_users
    test_that "the notes' LoadTest is accepted" notes_apply first "$one"
    test_that "the release fits its Secret" small_release
    test_that "upgrade updates the CRD" changed_installs upgrade first "$one"
    test_that "uninstall keeps the CRD and LoadTests, and nothing else" kept_after_uninstall
    test_that "the same release installs again" installs_again
    test_that "another release takes the CRD over" other_release
    test_that "upgrade updates a CRD that was taken over" upgrades_after_taking
    test_that "a second release leaves the owner's CRD alone" beside_the_owner
    test_that "giving the CRD up leaves it" given_up
    test_that "installs over a CRD made by kubectl" over_kubectl
    test_that "installs over an older CRD made by kubectl" over_older_kubectl
    test_that "watches one namespace" in_one_namespace
    test_that "watches two other namespaces" in_two_namespaces
    test_that "the owner of a namespace installs it there" by_a_namespaces_owner
}
