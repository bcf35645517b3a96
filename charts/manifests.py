"""Asserts about rendered manifests, for charts/test.

usage: manifests.py CHECK FILE [ARGUMENT...]

FILE is what `helm template` prints. Exits 1, with the reason on stderr, when a check fails.
"""

import json
import sys

import yaml

CRD = "loadtests.loadtest.cell0.io"
CLUSTER_WIDE = {"CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding"}

# Exactly what the operator calls, as group/resource: verbs.
WATCHED = {
    "loadtest.cell0.io/loadtests": {"get", "list", "watch", "delete"},
    "loadtest.cell0.io/loadtests/status": {"patch"},
    "/configmaps": {"get", "create"},
    "batch/jobs": {"get", "list", "watch", "create", "patch", "delete"},
    "/pods": {"list"},
    "/pods/log": {"get"},
    "events.k8s.io/events": {"create", "patch"},
}


class Failed(Exception):
    """A check that does not hold."""


def expect(wanted, found, what):
    if wanted == found:
        return
    if isinstance(wanted, set):
        missing, more = sorted(wanted - found), sorted(found - wanted)
        raise Failed(f"{what}: missing {missing}, too many {more}")
    raise Failed(f"{what}: want {wanted}, found {found}")


def objects(path):
    with open(path, encoding="utf-8") as file:
        return [document for document in yaml.safe_load_all(file) if document]


def of_kind(found, kind):
    return [each for each in found if each["kind"] == kind]


def only(found, kind):
    matches = of_kind(found, kind)
    expect(1, len(matches), f"number of {kind}s")
    return matches[0]


def flat(rules):
    """Rules as {group/resource[=name]: verbs}; one that is said twice is an error."""
    verbs = {}
    for rule in rules:
        unknown = set(rule) - {"apiGroups", "resources", "resourceNames", "verbs"}
        expect(set(), unknown, "unknown fields of a rule")
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for name in rule.get("resourceNames", [""]):
                    key = f"{group}/{resource}" + (f"={name}" if name else "")
                    if key in verbs:
                        raise Failed(f"{key} has two rules")
                    verbs[key] = set(rule["verbs"])
    return verbs


def operators_roles(found):
    """All Roles that some binding gives to the operator, with the namespace they hold in."""
    account = only(found, "Deployment")["spec"]["template"]["spec"]["serviceAccountName"]
    namespace = only(found, "Deployment")["metadata"]["namespace"]
    roles = {}
    for binding in of_kind(found, "RoleBinding") + of_kind(found, "ClusterRoleBinding"):
        expect(
            [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
            binding["subjects"],
            f"subjects of {binding['kind']} {binding['metadata']['name']}",
        )
        place = binding["metadata"].get("namespace", "*")
        reference = binding["roleRef"]
        role = [
            each
            for each in of_kind(found, reference["kind"])
            if each["metadata"]["name"] == reference["name"]
            and each["metadata"].get("namespace", place) == place
        ]
        expect(1, len(role), f"roles behind {binding['metadata']['name']} in {place}")
        roles.setdefault(place, []).append((reference["kind"], flat(role[0]["rules"])))
    return namespace, roles


def rbac(found, *watched):
    """The operator's rights are exactly the expected ones; `watched` are namespaces or `*`."""
    own, roles = operators_roles(found)
    secret = "".join(
        argument.removeprefix("--token-secret=")
        for argument in container(found)["args"]
        if argument.startswith("--token-secret=")
    )
    token = ("Role", {"/secrets": {"create"}, f"/secrets={secret}": {"get"}})
    wanted = {own: [token]}
    for place in watched:
        kind = "ClusterRole" if place == "*" else "Role"
        wanted.setdefault(place, []).append((kind, WATCHED))
    expect(wanted, roles, "rights of the operator by namespace")
    bound = {
        binding["roleRef"]["name"]
        for binding in of_kind(found, "RoleBinding") + of_kind(found, "ClusterRoleBinding")
    }
    for role in of_kind(found, "Role") + of_kind(found, "ClusterRole"):
        name = role["metadata"]["name"]
        labels = role["metadata"]["labels"]
        if name not in bound and not any("/aggregate-to-" in label for label in labels):
            raise Failed(f"{role['kind']} {name} is neither bound nor aggregated")


def no_secrets(found):
    """No Secret verb but in the operator's own namespace, and no wildcard anywhere."""
    own = only(found, "Deployment")["metadata"]["namespace"]
    for role in of_kind(found, "Role") + of_kind(found, "ClusterRole"):
        for key, verbs in flat(role["rules"]).items():
            if "*" in key or "*" in verbs:
                raise Failed(f"{role['metadata']['name']} has a wildcard: {key} {verbs}")
            if "secrets" in key and role["metadata"].get("namespace") != own:
                raise Failed(f"{role['kind']} {role['metadata']['name']} has {verbs} of {key}")


def aggregated(found):
    """view reads LoadTests; edit and admin write them too; nobody writes a status."""
    rights = {"view": {}, "edit": {}, "admin": {}}
    for role in of_kind(found, "ClusterRole"):
        for who, verbs in rights.items():
            label = f"rbac.authorization.k8s.io/aggregate-to-{who}"
            if role["metadata"]["labels"].get(label) == "true":
                for key, more in flat(role["rules"]).items():
                    verbs[key] = verbs.get(key, set()) | more
    read = {"get", "list", "watch"}
    write = {"create", "update", "patch", "delete", "deletecollection"}
    tests, status = "loadtest.cell0.io/loadtests", "loadtest.cell0.io/loadtests/status"
    expect({tests: read, status: read}, rights["view"], "rights of view")
    for who in ("edit", "admin"):
        expect({tests: read | write, status: read}, rights[who], f"rights of {who}")


def pod(found):
    return only(found, "Deployment")["spec"]["template"]["spec"]


def container(found):
    containers = pod(found)["containers"]
    expect(1, len(containers), "number of containers")
    return containers[0]


def restricted(found):
    """All that the restricted pod security standard asks for, said in so many words."""
    expect(
        {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        pod(found)["securityContext"],
        "the pod's securityContext",
    )
    expect(
        {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        container(found)["securityContext"],
        "the container's securityContext",
    )


def operator(found):
    """One operator, never two; probes and port as the operator has them."""
    spec = only(found, "Deployment")["spec"]
    expect((1, {"type": "Recreate"}), (spec["replicas"], spec["strategy"]), "replicas and strategy")
    labels = spec["template"]["metadata"]["labels"]
    for key, value in spec["selector"]["matchLabels"].items():
        expect(value, labels.get(key), f"the pod's label {key}")
    this = container(found)
    expect([{"name": "http", "containerPort": 8080}], this["ports"], "ports")
    for probe, path in (("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        expect({"path": path, "port": "http"}, this[probe]["httpGet"], probe)
    expect(
        {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
        this["resources"],
        "resources",
    )
    expect({"app.kubernetes.io/name", "app.kubernetes.io/instance"},
           set(spec["selector"]["matchLabels"]), "the selector (it can never change)")


def arguments(found, *wanted):
    """The operator's arguments are exactly these."""
    expect(list(wanted), container(found)["args"], "the operator's arguments")


def image(found, wanted):
    expect(wanted, container(found)["image"], "the operator's image")


def crd(found, generated):
    """The CRD is the generated one, kept on uninstall, with the release's labels."""
    with open(generated, encoding="utf-8") as file:
        wanted = yaml.safe_load(file)
    rendered = only(found, "CustomResourceDefinition")
    expect(CRD, rendered["metadata"]["name"], "the CRD's name")
    if json.dumps(wanted["spec"], sort_keys=True) != json.dumps(rendered["spec"], sort_keys=True):
        raise Failed(f"the rendered CRD's spec differs from {generated}")
    expect({"helm.sh/resource-policy": "keep"}, rendered["metadata"]["annotations"], "annotations")
    for label in ("app.kubernetes.io/name", "app.kubernetes.io/instance", "helm.sh/chart"):
        if label not in rendered["metadata"]["labels"]:
            raise Failed(f"the CRD has no label {label}")


def kinds(found, *wanted):
    """These kinds and no others, each as often as it is named."""
    expect(sorted(wanted), sorted(each["kind"] for each in found), "kinds")


def nothing_cluster_wide(found):
    wide = [each["kind"] for each in found if each["kind"] in CLUSTER_WIDE]
    expect([], wide, "cluster-wide objects")
    for each in found:
        if not each["metadata"].get("namespace"):
            raise Failed(f"{each['kind']} {each['metadata']['name']} has no namespace")


def monitors(found, *namespaces):
    """Both monitors select what is there, in these namespaces or in `*`."""
    service, monitor = only(found, "Service"), only(found, "ServiceMonitor")
    for key, value in monitor["spec"]["selector"]["matchLabels"].items():
        expect(value, service["metadata"]["labels"].get(key), f"the Service's label {key}")
    ports = [port["name"] for port in service["spec"]["ports"]]
    expect(ports, [each["port"] for each in monitor["spec"]["endpoints"]], "scraped ports")
    expect([True], [each["honorLabels"] for each in monitor["spec"]["endpoints"]], "honorLabels")
    runners = only(found, "PodMonitor")["spec"]
    expect({"app.kubernetes.io/name": "loadtest-runner"}, runners["selector"]["matchLabels"],
           "labels of runner pods")
    expect(["metrics"], [each["port"] for each in runners["podMetricsEndpoints"]], "runners' port")
    wanted = {"any": True} if namespaces == ("*",) else {"matchNames": list(namespaces)}
    expect(wanted, runners["namespaceSelector"], "namespaces of the PodMonitor")
    for each in ("ServiceMonitor", "PodMonitor"):
        expect("prometheus", only(found, each)["metadata"]["labels"].get("release"),
               f"the label of the {each}")


def unique_names(first, second):
    """Two releases make no object of the same kind, namespace and name, but for the CRD."""
    def names(found):
        return {
            (each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"])
            for each in found
            if each["kind"] != "CustomResourceDefinition"
        }

    expect(set(), names(first) & names(objects(second)), "objects of both")


def documented(chart):
    """values.yaml, its schema and the README's table tell of the same values."""
    def leaves(value, path=""):
        if isinstance(value, dict) and value and path not in ("resources", "nodeSelector"):
            for key, inner in value.items():
                yield from leaves(inner, f"{path}.{key}" if path else key)
        else:
            yield path

    def described(schema, path=""):
        for key, inner in schema.get("properties", {}).items():
            here = f"{path}.{key}" if path else key
            if not inner.get("description"):
                raise Failed(f"values.schema.json does not describe {here}")
            if "properties" in inner and here != "resources":
                if inner.get("additionalProperties") is not False:
                    raise Failed(f"values.schema.json lets unknown values into {here}")
                yield from described(inner, here)
            elif here not in ("global", "enabled"):
                yield here

    with open(f"{chart}/values.yaml", encoding="utf-8") as file:
        values = set(leaves(yaml.safe_load(file)))
    with open(f"{chart}/values.schema.json", encoding="utf-8") as file:
        schema = json.load(file)
    expect(False, schema.get("additionalProperties"), "additionalProperties of the schema")
    expect(values, set(described(schema)), "values in values.schema.json")
    with open(f"{chart}/README.md", encoding="utf-8") as file:
        table = file.read().split("\n## Values\n")[1]
    rows = {line.split("`")[1] for line in table.splitlines() if line.startswith("| `")}
    expect(values, rows, "values in README.md")


CHECKS = {
    check.__name__: check
    for check in (
        rbac, no_secrets, aggregated, restricted, operator, arguments, image, crd, kinds,
        nothing_cluster_wide, monitors, unique_names,
    )
}


def main():
    name, path, *rest = sys.argv[1:]
    try:
        if name == "documented":
            documented(path)
        else:
            CHECKS[name](objects(path), *rest)
    except Failed as failed:
        print(failed, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
