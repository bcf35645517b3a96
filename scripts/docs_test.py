#!/usr/bin/env python3
"""Tests the documentation: its links, and every command and every YAML document in it.

usage: docs_test.py [--cluster] [PAGE...]

Without --cluster, it runs the commands that need no cluster, in a folder of their own per page, against
the simulator on ports 18800 and 18801. Runs are cut to one second. With --cluster, it runs the blocks
with the comment `<!-- runs on a cluster -->`, in the namespace `docs` of the cluster that KUBECONFIG
points to, where the operator must be installed.

These lines before a block say how it is tested:

  <!-- runs on a cluster -->      the block needs a cluster
  <!-- part of a spec -->         the YAML is a part of a LoadTest's spec
  <!-- part of a status -->       the YAML is a part of a LoadTest's status, and is only parsed
  *Not run by a test: REASON*     also as a comment, where readers need not see it

A YAML document of another kind than LoadTest is applied to the cluster with a dry run. The first line
`# FILE` of a block makes it a file that later commands of the page can use.

Prints one line per test and `N passed, N failed` last.
"""
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
REPOSITORY = "https://github.com/cell0/loadtest-operator/blob/main/"
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
NAMESPACE = "docs"
# Label of the LoadTest `burst`, which has run before each page.
SETUP_LABEL = "docs-test=setup"
# The mark of a block that needs a cluster.
ON_CLUSTER = "<!-- runs on a cluster -->"
# The README and all pages of the site.
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

LOADTEST = """#!/usr/bin/env bash
# Cuts each run to one second, and each run on a cluster to five. A reader of the page has not applied the
# LoadTest of the setup, so it goes before the page applies its own.
arguments=()
is_run="" has_time=""
if [[ ${1:-} == apply ]]; then
    kubectl delete loadtest --selector=SETUP_LABEL --ignore-not-found >/dev/null
    set -- "$@" --set load.duration=5s
fi
for argument; do
    case $argument in
    run) [[ ${#arguments[@]} -gt 0 ]] || is_run=yes ;;
    -t | --run-time) has_time=yes ;;
    esac
    if [[ ${previous:-} == -t || ${previous:-} == --run-time ]] && [[ $is_run ]]; then argument=1s; fi
    previous=$argument
    arguments+=("$argument")
done
if [[ $is_run ]]; then
    arguments+=(--plain)
    [[ $has_time ]] || arguments+=(-t 1s)
fi
exec LOADTEST_BINARY "${arguments[@]}"
"""
CARGO = """#!/usr/bin/env bash
# `cargo run … -p loadtest -- ARGUMENTS` runs the CLI that was built before.
[[ " $* " == *" -p loadtest -- "* ]] || { echo "cargo: only the CLI runs in this test: $*" >&2; exit 2; }
while [[ $1 != -- ]]; do shift; done
shift
exec loadtest "$@"
"""


class Block:
    """A fenced block of a page."""

    def __init__(self, page, line, language, mark, text):
        self.page, self.line, self.language, self.mark, self.text = page, line, language, mark, text

    @property
    def name(self):
        return f"{self.page.relative_to(ROOT)}:{self.line} {self.language}"


def read_blocks(page):
    blocks, mark, fence = [], "", None
    for number, line in enumerate(page.read_text().splitlines(), 1):
        stripped = line.strip()
        if fence:
            indent, language, start, lines = fence
            if stripped == "```":
                blocks.append(Block(page, start, language, mark, "\n".join(lines) + "\n"))
                mark, fence = "", None
            else:
                lines.append(line[indent:])
        elif stripped.startswith("```"):
            fence = (len(line) - len(line.lstrip()), stripped[3:], number, [])
        elif stripped:
            mark = stripped
    return blocks


def anchors_of(page):
    """The anchors of the headings, as GitHub and mdBook make them."""
    anchors, seen = set(), {}
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    for heading in re.findall(r"^#+ (.*)$", text, flags=re.M):
        heading = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        count = seen.get(anchor, 0)
        seen[anchor] = count + 1
        anchors.add(anchor if count == 0 else f"{anchor}-{count}")
    return anchors


def check_links(page):
    """Each link of a page leads to a file and a heading of this repository, or to another site."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    text = re.sub(r"`[^`]*`", "", text)
    problems = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(REPOSITORY):
            path, _, anchor = link.removeprefix(REPOSITORY).partition("#")
            target = ROOT / path
        elif re.match(r"[a-z]+:", link):
            continue
        else:
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if page.parent.name == "docs" and target.parent.name != "docs" and "docs/images" not in str(target):
                problems.append(f"{link} leaves the book: use {REPOSITORY}…")
        if not target.exists():
            problems.append(f"{link}: no such file")
        elif anchor and target.suffix == ".md" and anchor not in anchors_of(target):
            problems.append(f"{link}: no such heading")
    assert not problems, "; ".join(problems)


def check_summary():
    """Every page is in the table of contents, and every entry is a page."""
    docs = ROOT / "docs"
    entries = set(re.findall(r"\]\(([^)]+\.md)\)", (docs / "SUMMARY.md").read_text()))
    pages = {page.name for page in docs.glob("*.md")} - {"SUMMARY.md"}
    assert entries == pages, f"only in SUMMARY.md: {entries - pages}, not in SUMMARY.md: {pages - entries}"


class Workplace:
    """A folder for the commands of one page, with the examples and the files that the page names."""

    def __init__(self, page):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix=f"docs-{page.stem}-"))
        for name in ("examples", "charts", "crds"):
            shutil.copytree(ROOT / name, self.folder / name)
        binaries = self.folder / ".bin"
        binaries.mkdir()
        loadtest = LOADTEST.replace("LOADTEST_BINARY", str(TARGET / "debug" / "loadtest"))
        programs = {"loadtest": loadtest.replace("SETUP_LABEL", SETUP_LABEL), "cargo": CARGO}
        for name, text in programs.items():
            (binaries / name).write_text(text)
            (binaries / name).chmod(0o755)
        (binaries / "kubectl-loadtest").symlink_to(binaries / "loadtest")
        self.environment = os.environ | {"PATH": f"{binaries}:{os.environ['PATH']}", "HOME": str(self.folder), "NO_COLOR": "1"}

    def add_file(self, block):
        match = re.match(r"# (\S+\.\w+)", block.text)
        if match:
            (self.folder / match[1]).write_text(block.text)

    def write_document(self, document):
        (self.folder / ".document.yaml").write_text(yaml.safe_dump(document))

    def run(self, script):
        script = script.replace("NAMESPACE", NAMESPACE)
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script], cwd=self.folder, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, timeout=300,
        )
        # 1 is a missed threshold, and 3 is Inconclusive: one second is short.
        is_run = re.search(r"\b(loadtest|loadtest --) (run|report|watch|apply)\b|-p loadtest -- (run|report)", script)
        allowed = {0, 1, 3} if is_run else {0}
        assert result.returncode in allowed, f"exit code {result.returncode}: {result.stdout[-1500:]}"
        if result.returncode in (1, 3):
            assert "VERDICT" in result.stdout or "erdict" in result.stdout or "###" in result.stdout, result.stdout[-1500:]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.folder)


def commands_of(block):
    """The commands of a block; in a console block, those after a prompt."""
    if block.language == "console":
        return "\n".join(line[2:] for line in block.text.splitlines() if line.startswith("$ "))
    return block.text


def is_marked(block):
    """Returns true if the page says that no test runs the block."""
    return re.match(r"(\*Not|<!-- not) run by a test: ", block.mark)


def is_foreign(block):
    """Returns true if a YAML block has only kinds other than LoadTest."""
    kinds = set(re.findall(r"^kind: (\w+)$", block.text, re.M))
    return bool(kinds) and kinds != {"LoadTest"}


def check_foreign_yaml(block, workplace):
    """Applies the documents of other kinds with a dry run."""
    for document in yaml.safe_load_all(block.text):
        if document["kind"] != "LoadTest":
            workplace.write_document(document)
            workplace.run("kubectl apply --dry-run=server -f .document.yaml")


def check_yaml(block, workplace):
    """Validates the LoadTests of a block, or the part of one."""
    if block.mark == "<!-- part of a spec -->":
        part = yaml.safe_load(block.text)
        spec = {
            "target": {"http": "http://cell0:18800", "webSocket": "ws://cell0:18801"},
            "load": {"users": 10, "duration": "1m"},
            "scenario": {"tasks": [{"name": "health", "http": {"path": "/health"}}]},
        } | part.get("spec", part)
        documents = [{"apiVersion": "loadtest.cell0.io/v1alpha1", "kind": "LoadTest", "metadata": {"name": "part"}, "spec": spec}]
    elif block.mark == "<!-- part of a status -->":
        assert isinstance(yaml.safe_load(block.text), dict)
        return
    else:
        documents = list(yaml.safe_load_all(block.text))
    for document in documents:
        assert isinstance(document, dict) and "kind" in document, "no kind: mark a part with <!-- part of a spec -->"
        if document["kind"] == "LoadTest":
            workplace.write_document(document)
            workplace.run("loadtest validate .document.yaml")


class Counts:
    passed = failed = marked = 0

    def test(self, name, check, *arguments):
        try:
            check(*arguments)
            self.passed += 1
            print(f"ok    {name}", flush=True)
        except (AssertionError, subprocess.TimeoutExpired, yaml.YAMLError) as problem:
            self.failed += 1
            print(f"FAIL  {name}: {problem}", flush=True)


def fail_unknown_language():
    raise AssertionError("a block of an unknown language")


def test_page(page, counts):
    """Tests what needs no cluster."""
    counts.test(f"{page.relative_to(ROOT)} links", check_links, page)
    with Workplace(page) as workplace:
        for block in read_blocks(page):
            workplace.add_file(block)
            if is_marked(block):
                counts.marked += 1
            elif block.language == "yaml":
                if not is_foreign(block):
                    counts.test(block.name, check_yaml, block, workplace)
            elif block.language in ("sh", "console"):
                if block.mark != ON_CLUSTER:
                    counts.test(block.name, workplace.run, commands_of(block))
            elif block.language not in ("text", "json", "promql", "python", "javascript", "diff"):
                counts.test(block.name, fail_unknown_language)


def test_page_on_cluster(page, counts):
    """Tests what needs a cluster. The setup has run before."""
    blocks = read_blocks(page)
    if any(block.mark == ON_CLUSTER and not is_marked(block) for block in blocks):
        with Workplace(page) as workplace:
            workplace.run(PAGE_SETUP)
    with Workplace(page) as workplace:
        for block in blocks:
            workplace.add_file(block)
            if is_marked(block):
                continue
            if block.language == "yaml" and is_foreign(block):
                counts.test(block.name, check_foreign_yaml, block, workplace)
            elif block.language in ("sh", "console") and block.mark == ON_CLUSTER:
                counts.test(block.name, workplace.run, commands_of(block))


class Simulator:
    """The target of the commands without a cluster, on its usual ports."""

    def __enter__(self):
        for port in (18800, 18801, 18802):
            with socket.socket() as probe:
                # As servers do, so that closed connections of an earlier run don't hold the port.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("0.0.0.0", port))
                except OSError as error:
                    sys.exit(f"port {port}, on which the simulator listens, is in use: {error}")
        self.process = subprocess.Popen(
            [TARGET / "debug" / "cell0-simulator"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        while True:
            try:
                urllib.request.urlopen("http://127.0.0.1:18802/readyz", timeout=2)
                return self
            except OSError:
                code = self.process.poll()
                if time.monotonic() > deadline or code is not None:
                    self.__exit__()
                    sys.exit(f"the simulator is not ready; its exit code is {code}")
                time.sleep(0.1)

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


CLUSTER_SETUP = """
kubectl create namespace docs --dry-run=client -o yaml | kubectl apply -f -
kubectl config view --raw --minify > config
export KUBECONFIG=$PWD/config
kubectl config set-context --current --namespace=docs
kubectl apply -f examples/cell0-simulator.yaml
kubectl rollout status deployment/cell0 --timeout=90s
"""
# Before each page: of LoadTests, only `burst` is there, and it has run.
PAGE_SETUP = f"""
kubectl delete loadtests --selector={SETUP_LABEL.replace("=", "!=")}
if [[ -z $(kubectl get loadtests -o name) ]]; then
    sed 's/duration: 2m/duration: 5s/' examples/loadtest-burst.yaml > short.yaml
    kubectl label --local -f short.yaml {SETUP_LABEL} -o yaml | kubectl apply -f -
fi
kubectl wait loadtest/burst --for=condition=Finished --timeout=2m
"""


class ClusterSetup:
    """The namespace and the target of the commands on a cluster."""

    def __enter__(self):
        self.workplace = Workplace(ROOT / "setup")
        try:
            self.workplace.run(CLUSTER_SETUP)
        except BaseException:
            self.__exit__()
            raise
        os.environ["KUBECONFIG"] = str(self.workplace.folder / "config")
        return self

    def __exit__(self, *_):
        with self.workplace:
            self.workplace.run("kubectl delete namespace docs --ignore-not-found --wait=false")


def main():
    arguments = sys.argv[1:]
    on_cluster = "--cluster" in arguments
    names = [argument for argument in arguments if argument != "--cluster"]
    pages = [ROOT / name for name in names] or PAGES
    counts = Counts()
    if on_cluster:
        with ClusterSetup():
            for page in pages:
                test_page_on_cluster(page, counts)
    else:
        counts.test("docs/SUMMARY.md has every page", check_summary)
        with Simulator():
            for page in pages:
                test_page(page, counts)
        print(f"{counts.marked} blocks are marked as not run")
    print(f"{counts.passed} passed, {counts.failed} failed")
    return 1 if counts.failed else 0


signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
sys.exit(main())
