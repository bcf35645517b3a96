# shellcheck shell=bash
# Functions that scripts/demo and scripts/e2e share. The calling script defines
# `run_on_cluster CMD...`, which runs a command that reaches the cluster's API, and `die MESSAGE`.

crd=loadtests.loadtest.cell0.io

# Prints the release that owns the CRD as NAMESPACE/NAME. Prints / if the CRD has another owner, and
# nothing if there is no CRD.
print_crd_owner() {
    run_on_cluster kubectl get crd "$crd" --ignore-not-found -o \
        'jsonpath={.metadata.annotations.meta\.helm\.sh/release-namespace}/{.metadata.annotations.meta\.helm\.sh/release-name}'
}

# delete_crds_of NAMESPACE/RELEASE: deletes the CRDs if this release owns them and no LoadTest and no result is left.
delete_crds_of() {
    [[ $(print_crd_owner) == "$1" ]] || return 0
    if [[ $(run_on_cluster kubectl get loadtests,loadtestresults --all-namespaces -o name) ]]; then
        echo "the CRDs stay, because the cluster still has LoadTests or results (kubectl get loadtests,loadtestresults -A)"
    else
        run_on_cluster kubectl delete crd "$crd" loadtestresults.loadtest.cell0.io --ignore-not-found
    fi
}

# load_into_nodes HINT NAME...: loads images from target/images into the nodes of the current
# context. If the cluster is not kind, k3d or minikube, fails with HINT.
load_into_nodes() {
    local hint=$1 context name archive archives=()
    shift
    for name; do archives+=("target/images/$name.tar"); done
    context=$(kubectl config current-context)
    case $context in
    kind-*) for archive in "${archives[@]}"; do kind load image-archive "$archive" --name "${context#kind-}"; done ;;
    k3d-*) k3d image import "${archives[@]}" --cluster "${context#k3d-}" ;;
    minikube) for archive in "${archives[@]}"; do minikube image load "$archive"; done ;;
    *) die "context '$context' is not kind, k3d or minikube: $hint" ;;
    esac
}
