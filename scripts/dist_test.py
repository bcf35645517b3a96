#!/usr/bin/env python3
"""Tests the files of a release. scripts/dist calls it.

usage: dist_test.py FOLDER REGISTRY VERSION

Prints one line per test and `N passed, N failed` last. It runs the programs for amd64 on this machine, and those for
arm64 with qemu-aarch64. It needs Helm.
"""
import gzip
import hashlib
import io
import json
import pathlib
import re
import struct
import subprocess
import sys
import tarfile
import tempfile

import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER, REGISTRY, VERSION = pathlib.Path(sys.argv[1]).resolve(), sys.argv[2], sys.argv[3]
IMAGES = ["loadtest-operator", "loadtest-runner", "cell0-simulator"]
# The machine in the header of an ELF file.
MACHINES = {"amd64": 0x3E, "arm64": 0xB7}
EMULATORS = {"amd64": [], "arm64": ["qemu-aarch64"]}
PROGRAM_INTERPRETER = 3
SHELLS = ["loadtest.bash", "loadtest.fish", "_loadtest"]
EXAMPLES = sorted(ROOT.glob("examples/loadtest-*.yaml"))


def hash_bytes(content):
    return hashlib.sha256(content).hexdigest()


def expect_equal(expected, found, subject):
    assert expected == found, f"{subject}: expected {expected}, found {found}"


def read_archive(content):
    """The files of a tar archive, by name."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return {entry.name: archive.extractfile(entry).read() for entry in archive if entry.isfile()}


def read_cli(arch):
    return read_archive((FOLDER / f"loadtest_linux_{arch}.tar.gz").read_bytes())


class Image:
    """An image in an OCI archive."""

    def __init__(self, name):
        self.name = name
        self.files = read_archive((FOLDER / f"{name}.oci.tar").read_bytes())
        (self.descriptor,) = json.loads(self.files["index.json"])["manifests"]
        self.index = json.loads(self.read_blob(self.descriptor))

    def read_blob(self, descriptor):
        algorithm, digest = descriptor["digest"].split(":")
        content = self.files[f"blobs/{algorithm}/{digest}"]
        expect_equal(digest, hash_bytes(content), f"digest of a blob of {self.name}")
        return content

    def platforms(self):
        return sorted("{os}/{architecture}".format(**entry["platform"]) for entry in self.index["manifests"])

    def read_manifest(self, arch):
        (entry,) = [entry for entry in self.index["manifests"] if entry["platform"]["architecture"] == arch]
        return json.loads(self.read_blob(entry))

    def read_program(self, arch):
        (layer,) = self.read_manifest(arch)["layers"]
        files = read_archive(gzip.decompress(self.read_blob(layer)))
        expect_equal([self.name], list(files), f"files of {self.name} for {arch}")
        return files[self.name]


def check_checksums():
    """SHA256SUMS has all files, and they are the expected ones."""
    lines = (FOLDER / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split(maxsplit=1) for line in lines)}
    expected = {"release-notes.md", "loadtest.krew.yaml", f"loadtest-operator-{VERSION}.tgz"}
    expected |= {f"loadtest_linux_{arch}.{ending}" for arch in MACHINES for ending in ("tar.gz", "cdx.json")}
    expected |= {f"{name}.oci.{ending}" for name in IMAGES for ending in ("tar", "cdx.json")}
    expected |= {path.name for path in (ROOT / "crds").iterdir()}
    expect_equal(expected, {path.name for path in FOLDER.iterdir()} - {"SHA256SUMS"}, "files")
    expect_equal({name: hash_bytes((FOLDER / name).read_bytes()) for name in expected}, sums, "SHA256SUMS")


def check_static(content, arch):
    """A program for the machine that no other file is needed to run."""
    expect_equal(b"\x7fELF\x02\x01", content[:6], "start of a 64-bit program")
    (machine,) = struct.unpack_from("<H", content, 0x12)
    expect_equal(MACHINES[arch], machine, "machine of the program")
    (headers,) = struct.unpack_from("<Q", content, 0x20)
    size, count = struct.unpack_from("<HH", content, 0x36)
    kinds = [struct.unpack_from("<I", content, headers + size * number)[0] for number in range(count)]
    assert PROGRAM_INTERPRETER not in kinds, "the program is not static"


def check_clean(content):
    """The program names no folder of the machine that built it, and has no points for the tests of faults."""
    for text in (str(ROOT), "/registry/src/", "loadtest.cell0.io/kill-point", "CLOCK_ERROR_SECONDS"):
        assert text.encode() not in content, f"the program contains {text}"


def check_cli(arch):
    files = read_cli(arch)
    expected = {"LICENSE", "loadtest", "man/loadtest.1", *(f"completions/{name}" for name in SHELLS)}
    expect_equal(expected, set(files), "files of the archive")
    expect_equal((ROOT / "LICENSE").read_bytes(), files["LICENSE"], "LICENSE")
    check_static(files["loadtest"], arch)
    check_clean(files["loadtest"])
    for name in expected - {"LICENSE", "loadtest"}:
        assert b"validate" in files[name], f"{name} does not name the command validate"


def check_image(name):
    image = Image(name)
    expect_equal(f"{REGISTRY}/{name}:{VERSION}", image.descriptor["annotations"]["org.opencontainers.image.ref.name"], "name")
    expect_equal(["linux/amd64", "linux/arm64"], image.platforms(), "architectures of the index")
    for arch in MACHINES:
        config = json.loads(image.read_blob(image.read_manifest(arch)["config"]))
        expect_equal(arch, config["architecture"], "architecture of the configuration")
        expect_equal("65532:65532", config["config"]["User"], "user")
        expect_equal(VERSION, config["config"]["Labels"]["org.opencontainers.image.version"], "version")
        program = image.read_program(arch)
        check_static(program, arch)
        check_clean(program)


def check_sbom(path, kind, name, programs):
    """The list describes the programs that it is for, and no crate of tests or of the build."""
    text = path.read_text()
    assert str(ROOT) not in text, f"the list contains {ROOT}"
    document = json.loads(text)
    expect_equal(("CycloneDX", "1.6"), (document["bomFormat"], document["specVersion"]), "format")
    subject = document["metadata"]["component"]
    expect_equal((kind, name, VERSION), (subject["type"], subject["name"], subject["version"]), "component")
    components = [subject, *document["components"]]
    applications = [component for component in components if component["type"] == "application"]
    hashes = sorted(component["hashes"][0]["content"] for component in applications)
    expect_equal(sorted(map(hash_bytes, programs)), hashes, "SHA-256 of the programs")
    names = {component["name"] for component in components}
    assert {"loadtest-core", "tokio", "std"} <= names, "crates are missing"
    unwanted = {"expect-test", "proptest", "tower-test", "loadtest-e2e", "cc", "syn"} & names
    assert not unwanted, f"no part of the program: {unwanted}"
    references = [component["bom-ref"] for component in components]
    expect_equal(len(references), len(set(references)), "different references")
    for dependency in document["dependencies"]:
        unknown = {dependency["ref"], *dependency["dependsOn"]} - set(references)
        assert not unknown, f"unknown references: {unknown}"


def check_image_sbom(name):
    image, path = Image(name), FOLDER / f"{name}.oci.cdx.json"
    check_sbom(path, "container", f"{REGISTRY}/{name}", [image.read_program(arch) for arch in MACHINES])
    digest = image.descriptor["digest"].replace(":", "%3A")
    assert digest in path.read_text(), f"the list does not name the digest {digest} of the index"


def run_helm(*arguments):
    return subprocess.run(["helm", *arguments], check=True, capture_output=True, text=True).stdout


def check_chart():
    """The chart has no lint, and it uses and names images that exist."""
    chart = str(FOLDER / f"loadtest-operator-{VERSION}.tgz")
    run_helm("lint", "--strict", chart)
    metadata = yaml.safe_load(run_helm("show", "chart", chart))
    expect_equal((VERSION, VERSION), (metadata["version"], metadata["appVersion"]), "version and appVersion")
    described = yaml.safe_load(metadata["annotations"]["artifacthub.io/images"])
    for entry in described:
        image = Image(entry["name"])
        expect_equal(image.descriptor["annotations"]["org.opencontainers.image.ref.name"], entry["image"], "image of the annotation")
        expect_equal(image.platforms(), sorted(entry["platforms"]), "platforms of the annotation")
    rendered = run_helm("template", "one", chart)
    used = set(re.findall(r"(?:image: |--runner-image=)\"?([^\s\"]+)", rendered))
    expect_equal({entry["image"] for entry in described}, used, "images that the chart uses")


def check_krew():
    manifest = yaml.safe_load((FOLDER / "loadtest.krew.yaml").read_text())
    expect_equal(f"v{VERSION}", manifest["spec"]["version"], "version")
    platforms = {entry["selector"]["matchLabels"]["arch"]: entry for entry in manifest["spec"]["platforms"]}
    expect_equal(set(MACHINES), set(platforms), "architectures")
    for arch, entry in platforms.items():
        name = f"loadtest_linux_{arch}.tar.gz"
        assert entry["uri"].endswith(f"/releases/download/v{VERSION}/{name}"), entry["uri"]
        expect_equal(hash_bytes((FOLDER / name).read_bytes()), entry["sha256"], f"SHA-256 of {name}")


def check_release_notes():
    notes = (FOLDER / "release-notes.md").read_text()
    is_snapshot = notes.startswith("This is a snapshot")
    assert is_snapshot or "\n- " in notes, "there is no change"
    relative = [link for link in re.findall(r"\]\(([^)]+)\)", notes) if not link.startswith("https://")]
    assert not relative, f"relative links: {relative}"


def run_program(arch, content, *arguments, allowed=(0,)):
    with tempfile.TemporaryDirectory() as folder:
        program = pathlib.Path(folder) / "program"
        program.write_bytes(content)
        program.chmod(0o755)
        command = [*EMULATORS[arch], program, *arguments]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder)
    assert result.returncode in allowed, f"exit code {result.returncode} of {arguments}: {result.stderr[-1500:]}"
    return result.stdout


def check_cli_runs(arch):
    program = read_cli(arch)["loadtest"]
    expect_equal(f"loadtest {VERSION}\n", run_program(arch, program, "--version"), "version")
    run_program(arch, program, "validate", *EXAMPLES)
    # Emulation makes the load late, so the verdict may be Inconclusive (3), and thresholds may be missed (1).
    output = run_program(
        arch, program, "run", ROOT / "examples/loadtest-burst.yaml", "--simulator", "-t", "5s", "--plain", "-o", "json", allowed=(0, 1, 3),
    )
    total = json.loads(output)["total"]
    assert total["requests"] > 100, f"only {total['requests']} requests"
    assert total["failures"] == 0, f"{total['failures']} failures"


def check_image_runs(name, arch):
    """The program starts and prints its help."""
    assert "Usage: " in run_program(arch, Image(name).read_program(arch), "--help"), "there is no help"


class Counts:
    passed = failed = 0

    def test(self, name, check, *arguments):
        try:
            check(*arguments)
            self.passed += 1
            print(f"ok    {name}", flush=True)
        except (AssertionError, KeyError, ValueError, OSError, subprocess.SubprocessError, tarfile.TarError) as problem:
            self.failed += 1
            detail = getattr(problem, "stderr", None) or ""
            print(f"FAIL  {name}: {type(problem).__name__}: {problem} {detail}", flush=True)


def main():
    counts = Counts()
    counts.test("checksums", check_checksums)
    for arch in MACHINES:
        counts.test(f"archive of the CLI for {arch}", check_cli, arch)
    for name in IMAGES:
        counts.test(f"image {name} has both architectures", check_image, name)
    for arch in MACHINES:
        counts.test(
            f"SBOM of the CLI for {arch}",
            lambda arch: check_sbom(FOLDER / f"loadtest_linux_{arch}.cdx.json", "application", "loadtest", [read_cli(arch)["loadtest"]]),
            arch,
        )
    for name in IMAGES:
        counts.test(f"SBOM of the image {name}", check_image_sbom, name)
    counts.test("chart", check_chart)
    counts.test("manifest for krew", check_krew)
    counts.test("release notes", check_release_notes)
    for arch in MACHINES:
        counts.test(f"the CLI for {arch} runs a load test", check_cli_runs, arch)
        for name in IMAGES:
            counts.test(f"{name} for {arch} starts", check_image_runs, name, arch)
    print(f"{counts.passed} passed, {counts.failed} failed")
    return 1 if counts.failed else 0


if __name__ == "__main__":
    sys.exit(main())
