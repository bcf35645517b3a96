"""Checks of rendered manifests. charts/test calls them.

usage: manifests.py CHECK FILE [ARGUMENT...]

FILE contains the output of `helm template`, except for the checks in FILE_CHECKS. If a check fails, prints the reason to stderr and
exits with 1.
"""

import json
import os
import re
import sys

import yaml

CRD = "loadtests.loadtest.cell0.io"
RESULT_CRD = "loadtestresults.loadtest.cell0.io"
CLUSTER_WIDE = {"CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding"}

# The rights that the operator needs in watched namespaces, as group/resource: verbs. It must have
# exactly these.
WATCH_RIGHTS = {
    "loadtest.cell0.io/loadtests": {"get", "list", "watch", "patch", "delete"},
    "loadtest.cell0.io/loadtests/status": {"patch"},
    "loadtest.cell0.io/loadtestresults": {"get", "create", "patch", "delete"},
    "/configmaps": {"get", "create"},
    "batch/jobs": {"get", "list", "watch", "create", "patch", "delete"},
    "/pods": {"list", "watch"},
    "/pods/log": {"get"},
    "events.k8s.io/events": {"list", "create"},
}

# Values whose keys users choose.
FREE_VALUES = {"resources", "nodeSelector", "dashboards.labels"}


class CheckFailed(Exception):
    """A check has failed."""


def expect_equal(expected, found, subject):
    if expected == found:
        return
    if isinstance(expected, set):
        missing, unexpected = sorted(expected - found), sorted(found - expected)
        raise CheckFailed(f"{subject}: missing {missing}, unexpected {unexpected}")
    raise CheckFailed(f"{subject}: expected {expected}, found {found}")


def load_objects(path):
    with open(path, encoding="utf-8") as file:
        return [document for document in yaml.safe_load_all(file) if document]


def select_kind(objects, kind):
    return [each for each in objects if each["kind"] == kind]


def get_single(objects, kind):
    matches = select_kind(objects, kind)
    expect_equal(1, len(matches), f"number of {kind}s")
    return matches[0]


def list_roles(objects):
    return select_kind(objects, "Role") + select_kind(objects, "ClusterRole")


def list_bindings(objects):
    return select_kind(objects, "RoleBinding") + select_kind(objects, "ClusterRoleBinding")


def flatten_rules(rules):
    """Returns rules as {group/resource[=name]: verbs}. Two rules for one key are an error."""
    verbs = {}
    for rule in rules:
        unknown = set(rule) - {"apiGroups", "resources", "resourceNames", "verbs"}
        expect_equal(set(), unknown, "unknown fields of a rule")
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for name in rule.get("resourceNames", [""]):
                    key = f"{group}/{resource}" + (f"={name}" if name else "")
                    if key in verbs:
                        raise CheckFailed(f"{key} has two rules")
                    verbs[key] = set(rule["verbs"])
    return verbs


def list_operator_roles(objects):
    """Returns the operator's namespace, and all roles bound to the operator by namespace."""
    account = get_single(objects, "Deployment")["spec"]["template"]["spec"]["serviceAccountName"]
    namespace = get_single(objects, "Deployment")["metadata"]["namespace"]
    roles = {}
    for binding in list_bindings(objects):
        expect_equal(
            [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
            binding["subjects"],
            f"subjects of {binding['kind']} {binding['metadata']['name']}",
        )
        scope = binding["metadata"].get("namespace", "*")
        reference = binding["roleRef"]
        role = [
            each
            for each in select_kind(objects, reference["kind"])
            if each["metadata"]["name"] == reference["name"]
            and each["metadata"].get("namespace", scope) == scope
        ]
        expect_equal(1, len(role), f"roles of binding {binding['metadata']['name']} in {scope}")
        roles.setdefault(scope, []).append((reference["kind"], flatten_rules(role[0]["rules"])))
    return namespace, roles


def check_operator_rights(objects, *watched):
    """The operator has exactly the expected rights. `watched` contains namespaces or `*`."""
    own_namespace, roles = list_operator_roles(objects)
    secret = "".join(
        argument.removeprefix("--token-secret=")
        for argument in get_container(objects)["args"]
        if argument.startswith("--token-secret=")
    )
    lease = get_single(objects, "Deployment")["metadata"]["name"]
    leases = "coordination.k8s.io/leases"
    own = {"/secrets": {"create"}, f"/secrets={secret}": {"get"}}
    own |= {leases: {"create"}, f"{leases}={lease}": {"get", "update"}}
    expected = {own_namespace: [("Role", own)]}
    has_policies = any(a.startswith("--runner-network-policy=") for a in get_container(objects)["args"])
    policies = {"networking.k8s.io/networkpolicies": {"get", "create"}} if has_policies else {}
    for scope in watched:
        kind = "ClusterRole" if scope == "*" else "Role"
        expected.setdefault(scope, []).append((kind, WATCH_RIGHTS | policies))
    expect_equal(expected, roles, "rights of the operator by namespace")
    bound = {binding["roleRef"]["name"] for binding in list_bindings(objects)}
    for role in list_roles(objects):
        name = role["metadata"]["name"]
        labels = role["metadata"]["labels"]
        if name not in bound and not any("/aggregate-to-" in label for label in labels):
            raise CheckFailed(f"{role['kind']} {name} is neither bound nor aggregated")


def check_no_secret_access(objects):
    """No role has a wildcard. Only roles in the operator's own namespace have rights on Secrets."""
    own_namespace = get_single(objects, "Deployment")["metadata"]["namespace"]
    for role in list_roles(objects):
        for key, verbs in flatten_rules(role["rules"]).items():
            if "*" in key or "*" in verbs:
                raise CheckFailed(f"{role['metadata']['name']} has a wildcard: {key} {verbs}")
            if "secrets" in key and role["metadata"].get("namespace") != own_namespace:
                raise CheckFailed(f"{role['kind']} {role['metadata']['name']} has {verbs} on {key}")


def check_aggregated_roles(objects):
    """view may read LoadTests and results, edit and admin may also write LoadTests and delete both.
    No role may write a status or a result."""
    rights = {"view": {}, "edit": {}, "admin": {}}
    for role in select_kind(objects, "ClusterRole"):
        for role_name, verbs in rights.items():
            label = f"rbac.authorization.k8s.io/aggregate-to-{role_name}"
            if role["metadata"]["labels"].get(label) == "true":
                for key, more_verbs in flatten_rules(role["rules"]).items():
                    verbs[key] = verbs.get(key, set()) | more_verbs
    read = {"get", "list", "watch"}
    write = {"create", "update", "patch", "delete", "deletecollection"}
    tests, status = "loadtest.cell0.io/loadtests", "loadtest.cell0.io/loadtests/status"
    results, delete = "loadtest.cell0.io/loadtestresults", {"delete", "deletecollection"}
    expect_equal({tests: read, status: read, results: read}, rights["view"], "rights of view")
    for role_name in ("edit", "admin"):
        expected = {tests: read | write, status: read, results: read | delete}
        expect_equal(expected, rights[role_name], f"rights of {role_name}")


def get_pod_spec(objects):
    return get_single(objects, "Deployment")["spec"]["template"]["spec"]


def get_container(objects):
    containers = get_pod_spec(objects)["containers"]
    expect_equal(1, len(containers), "number of containers")
    return containers[0]


def check_restricted_security(objects):
    """Pod and container set every field that the restricted pod security standard requires."""
    expect_equal(
        {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        get_pod_spec(objects)["securityContext"],
        "the pod's securityContext",
    )
    expect_equal(
        {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        get_container(objects)["securityContext"],
        "the container's securityContext",
    )


def check_deployment(objects):
    """A new pod is there before an old one leaves. Probes, port and Lease fit the operator."""
    deployment = get_single(objects, "Deployment")
    spec, name = deployment["spec"], deployment["metadata"]["name"]
    expect_equal(2, spec["replicas"], "replicas")
    expect_equal({"maxSurge": 1, "maxUnavailable": 0}, spec["strategy"]["rollingUpdate"], "strategy")
    budget = get_single(objects, "PodDisruptionBudget")["spec"]
    expect_equal(1, budget["maxUnavailable"], "maxUnavailable of the PodDisruptionBudget")
    expect_equal(spec["selector"], budget["selector"], "the selector of the PodDisruptionBudget")
    spread = spec["template"]["spec"]["topologySpreadConstraints"][0]
    expect_equal(spec["selector"], spread["labelSelector"], "the selector of the spread")
    # The rights of the operator name the same Lease.
    if f"--lease-name={name}" not in get_container(objects)["args"]:
        raise CheckFailed(f"no argument --lease-name={name}")
    labels = spec["template"]["metadata"]["labels"]
    for key, value in spec["selector"]["matchLabels"].items():
        expect_equal(value, labels.get(key), f"the pod's label {key}")
    container = get_container(objects)
    expect_equal([{"name": "http", "containerPort": 8080}], container["ports"], "ports")
    for probe, path in (("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        expect_equal({"path": path, "port": "http"}, container[probe]["httpGet"], probe)
    expect_equal(
        {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
        container["resources"],
        "resources",
    )
    # Kubernetes rejects an upgrade that changes the selector.
    expect_equal(
        {"app.kubernetes.io/name", "app.kubernetes.io/instance"},
        set(spec["selector"]["matchLabels"]),
        "the selector",
    )


def check_arguments(objects, *expected):
    """The operator has exactly these arguments."""
    expect_equal(list(expected), get_container(objects)["args"], "the operator's arguments")


def check_network_policies(objects):
    """The operator reaches its runners and the API server, and each run has a policy that lets the operator in."""
    spec = get_single(objects, "NetworkPolicy")["spec"]
    pods = get_single(objects, "Deployment")["spec"]["selector"]
    expect_equal(pods, spec["podSelector"], "the pods of the NetworkPolicy")
    expect_equal(["Ingress", "Egress"], spec["policyTypes"], "policyTypes")
    ports = [port["port"] for rule in spec["egress"] for port in rule["ports"]]
    expect_equal([53, 53, 443, 6443, 9464], ports, "ports that the operator may reach")
    prometheus = {"namespaceSelector": {"matchLabels": {"team": "metrics"}}}
    expect_equal([prometheus], spec["ingress"][0]["from"], "who may read the operator's metrics")
    prefix = "--runner-network-policy="
    arguments = get_container(objects)["args"]
    [peers] = [json.loads(a.removeprefix(prefix)) for a in arguments if a.startswith(prefix)]
    operator = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "system"}}, "podSelector": pods}
    expect_equal([operator, prometheus], peers, "who may reach runners")


def check_image(objects, expected):
    """The operator has this image."""
    expect_equal(expected, get_container(objects)["image"], "the operator's image")


def check_crd(objects, generated):
    """The CRD equals the generated file, survives an uninstall and has the release's labels."""
    with open(generated, encoding="utf-8") as file:
        expected = yaml.safe_load(file)
    name = expected["metadata"]["name"]
    found = select_kind(objects, "CustomResourceDefinition")
    expect_equal({CRD, RESULT_CRD}, {crd["metadata"]["name"] for crd in found}, "the CRDs' names")
    rendered = next(crd for crd in found if crd["metadata"]["name"] == name)
    if json.dumps(expected["spec"], sort_keys=True) != json.dumps(rendered["spec"], sort_keys=True):
        raise CheckFailed(f"the rendered CRD's spec differs from {generated}")
    annotations = rendered["metadata"]["annotations"]
    expect_equal({"helm.sh/resource-policy": "keep"}, annotations, "annotations")
    for label in ("app.kubernetes.io/name", "app.kubernetes.io/instance", "helm.sh/chart"):
        if label not in rendered["metadata"]["labels"]:
            raise CheckFailed(f"the CRD has no label {label}")


def check_kinds(objects, *expected):
    """The manifests contain exactly these kinds. A kind that occurs twice is named twice."""
    expect_equal(sorted(expected), sorted(each["kind"] for each in objects), "kinds")


def check_nothing_cluster_wide(objects):
    """All objects have a namespace."""
    wide = [each["kind"] for each in objects if each["kind"] in CLUSTER_WIDE]
    expect_equal([], wide, "cluster-wide objects")
    for each in objects:
        if not each["metadata"].get("namespace"):
            raise CheckFailed(f"{each['kind']} {each['metadata']['name']} has no namespace")


def check_monitors(objects, *namespaces):
    """Both monitors select existing ports and labels, in these namespaces or in `*`."""
    service, monitor = get_single(objects, "Service"), get_single(objects, "ServiceMonitor")
    for key, value in monitor["spec"]["selector"]["matchLabels"].items():
        expect_equal(value, service["metadata"]["labels"].get(key), f"the Service's label {key}")
    ports = [port["name"] for port in service["spec"]["ports"]]
    endpoints = monitor["spec"]["endpoints"]
    expect_equal(ports, [each["port"] for each in endpoints], "scraped ports")
    expect_equal([True], [each["honorLabels"] for each in endpoints], "honorLabels")
    runners = get_single(objects, "PodMonitor")["spec"]
    expect_equal(
        {"app.kubernetes.io/name": "loadtest-runner"},
        runners["selector"]["matchLabels"],
        "labels of runner pods",
    )
    runner_ports = [each["port"] for each in runners["podMetricsEndpoints"]]
    expect_equal(["metrics"], runner_ports, "scraped ports of runners")
    expected = {"any": True} if namespaces == ("*",) else {"matchNames": list(namespaces)}
    expect_equal(expected, runners["namespaceSelector"], "namespaces of the PodMonitor")
    for kind in ("ServiceMonitor", "PodMonitor"):
        labels = get_single(objects, kind)["metadata"]["labels"]
        expect_equal("prometheus", labels.get("release"), f"the label of the {kind}")


def check_dashboards(objects, *files):
    """Each dashboard is a ConfigMap with the sidecar's label and the content of its file."""
    maps = select_kind(objects, "ConfigMap")
    found = {}
    for each in maps:
        expect_equal("1", each["metadata"]["labels"].get("grafana_dashboard"), "label of the sidecar")
        expect_equal("grafana", each["metadata"]["namespace"], "namespace of the ConfigMap")
        expect_equal({"grafana_folder": "Load tests"}, each["metadata"]["annotations"], "annotations")
        found |= each["data"]
    expected = {}
    for path in files:
        with open(path, encoding="utf-8") as file:
            expected[path.rsplit("/", 1)[-1]] = file.read()
    expect_equal(expected, found, "content of the dashboards")


def check_alerts(objects, rules):
    """The PrometheusRule holds the rules of the file."""
    rule = get_single(objects, "PrometheusRule")
    expect_equal("prometheus", rule["metadata"]["labels"].get("release"), "label of the PrometheusRule")
    with open(rules, encoding="utf-8") as file:
        expect_equal(yaml.safe_load(file), rule["spec"], "rules")


def check_queries(metrics, *files):
    """Dashboards and alerts name only metrics that docs/metrics.md describes. Each panel says what it shows."""
    with open(metrics, encoding="utf-8") as file:
        known = set(re.findall(r"`(loadtest_[a-z_]+)`", file.read()))
    for path in files:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        used = {name.removesuffix("_bucket") for name in re.findall(r"\bloadtest_[a-z_]+", text)}
        expect_equal(set(), used - known, f"unknown metrics in {path}")
        expect_equal(True, bool(used), f"metrics in {path}")
        if not path.endswith(".json"):
            continue
        dashboard = json.loads(text)
        numbers = [panel["id"] for panel in dashboard["panels"]]
        expect_equal(len(numbers), len(set(numbers)), f"panels with their own number in {path}")
        for panel in dashboard["panels"]:
            if panel["type"] == "row":
                continue
            subject = f"in panel {panel['title']} of {path}"
            expect_equal(True, len(panel["description"]) > 10, f"a description {subject}")
            expect_equal(True, bool(panel["fieldConfig"]["defaults"]["unit"]), f"a unit {subject}")
            for target in panel["targets"]:
                expect_equal("${datasource}", target["datasource"]["uid"], f"data source {subject}")
                if panel["type"] == "heatmap":
                    expect_equal("heatmap", target.get("format"), f"format {subject}")
                for window in re.findall(r"rate\([^()]*\[(.*?)\]", target["expr"]):
                    expect_equal("$__rate_interval", window, f"window of a rate {subject}")


def check_unique_names(first, second):
    """Two releases share no object, except the CRD. `second` is a file like FILE."""
    def list_names(objects):
        return {
            (each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"])
            for each in objects
            if each["kind"] != "CustomResourceDefinition"
        }

    shared = list_names(first) & list_names(load_objects(second))
    expect_equal(set(), shared, "objects of both releases")


def check_documentation(chart):
    """values.yaml, its schema and the README's table contain the same values."""
    def list_values(value, path=""):
        if isinstance(value, dict) and value and path not in FREE_VALUES:
            for key, inner in value.items():
                yield from list_values(inner, f"{path}.{key}" if path else key)
        else:
            yield path

    def list_described(schema, path=""):
        for key, inner in schema.get("properties", {}).items():
            full_path = f"{path}.{key}" if path else key
            if not inner.get("description"):
                raise CheckFailed(f"values.schema.json does not describe {full_path}")
            if "properties" in inner and full_path != "resources":
                if inner.get("additionalProperties") is not False:
                    raise CheckFailed(f"values.schema.json accepts unknown values in {full_path}")
                yield from list_described(inner, full_path)
            elif full_path not in ("global", "enabled"):
                yield full_path

    with open(f"{chart}/values.yaml", encoding="utf-8") as file:
        values = set(list_values(yaml.safe_load(file)))
    with open(f"{chart}/values.schema.json", encoding="utf-8") as file:
        schema = json.load(file)
    expect_equal(False, schema.get("additionalProperties"), "additionalProperties of the schema")
    expect_equal(values, set(list_described(schema)), "values in values.schema.json")
    with open(f"{chart}/README.md", encoding="utf-8") as file:
        table = file.read().split("\n## Values\n")[1]
    rows = {line.split("`")[1] for line in table.splitlines() if line.startswith("| `")}
    expect_equal(values, rows, "values in README.md")


def check_annotations(chart, *crds):
    """The annotations for Artifact Hub say what the chart is."""
    with open(f"{chart}/Chart.yaml", encoding="utf-8") as file:
        metadata = yaml.safe_load(file)
    with open(f"{chart}/values.yaml", encoding="utf-8") as file:
        values = yaml.safe_load(file)
    annotations = {name.removeprefix("artifacthub.io/"): text for name, text in metadata["annotations"].items()}
    expect_equal("-" in metadata["version"], annotations["prerelease"] == "true", "prerelease")

    images = {image["name"]: image["image"] for image in yaml.safe_load(annotations["images"])}
    owner = metadata["home"].removeprefix("https://github.com/").split("/")[0]
    names = values["image"]["repository"], values["runner"]["image"]["repository"]
    expected = {name: f"ghcr.io/{owner}/{name}:{metadata['appVersion']}" for name in names}
    expect_equal(expected, images, "images")

    described = {(crd["name"], crd["kind"], crd["version"]) for crd in yaml.safe_load(annotations["crds"])}
    installed = set()
    for path in crds:
        (crd,) = load_objects(path)
        for version in crd["spec"]["versions"]:
            installed.add((crd["metadata"]["name"], crd["spec"]["names"]["kind"], version["name"]))
    expect_equal(installed, described, "CRDs")

    for link in yaml.safe_load(annotations["links"]):
        expect_equal(True, link["url"].startswith(metadata["home"]), f"link {link['name']} leads to {metadata['home']}")
        _, _, path = link["url"].partition("/blob/main/")
        expect_equal(True, not path or os.path.exists(path), f"{path} exists")


CHECKS = {
    check.__name__.removeprefix("check_"): check
    for check in (
        check_aggregated_roles,
        check_alerts,
        check_arguments,
        check_crd,
        check_dashboards,
        check_deployment,
        check_image,
        check_kinds,
        check_monitors,
        check_network_policies,
        check_no_secret_access,
        check_nothing_cluster_wide,
        check_operator_rights,
        check_restricted_security,
        check_unique_names,
    )
}

# Checks of files of the chart, which get paths in place of rendered objects.
FILE_CHECKS = {"annotations": check_annotations, "documentation": check_documentation, "queries": check_queries}


def main():
    name, path, *rest = sys.argv[1:]
    try:
        if name in FILE_CHECKS:
            FILE_CHECKS[name](path, *rest)
        else:
            CHECKS[name](load_objects(path), *rest)
    except CheckFailed as failed:
        print(failed, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
