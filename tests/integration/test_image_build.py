"""The Containerfile, unchanged, built by buildah on a stand-in for the UBI base, and run as a pod runs it.

`make image-test`; needs root, buildah and debootstrap. The stand-in is Debian with Python 3.11 and the user, folders
and environment of ubi9/python-311. The built root file system runs read-only, with an empty /tmp, under a user id
that it does not know. `--junitxml=FILE` notes the sizes of the layers and the seconds of the start.
"""

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
UNKNOWN_USER = "1000650000:0"  # of the kind that OpenShift gives to a namespace
BASE, IMAGE = "localhost/ubi9-stand-in", "localhost/rec_ray"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
PACKAGES = "python3.11,python3.11-venv,python3-distutils,ca-certificates,bash"

pytestmark = [pytest.mark.image, pytest.mark.timeout(3600)]


@dataclass(frozen=True)
class Buildah:
    """buildah with a store of its own, which goes with the folder."""

    folder: Path

    def __call__(self, *words: str, timeout: float = 3000) -> str:
        store = ["--root", str(self.folder / "storage"), "--runroot", str(self.folder / "run")]
        done = subprocess.run(
            ["buildah", *store, *words],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env={**os.environ, "STORAGE_DRIVER": "overlay"},
            cwd=ROOT,
        )
        assert done.returncode == 0, f"buildah {words[0]}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
        return done.stdout.strip()

    def layers(self, image: str) -> list[tuple[str, int]]:
        """Return the digest and the bytes of each layer, uncompressed, the first one first."""
        inspected = json.loads(self("inspect", "--type", "image", image))
        known = json.loads((self.folder / "storage" / "overlay-layers" / "layers.json").read_text())
        sizes = {layer["diff-digest"]: layer.get("diff-size", 0) for layer in known if "diff-digest" in layer}
        digests = inspected["OCIv1"]["rootfs"]["diff_ids"]
        return [(digest, sizes[digest]) for digest in digests]


@pytest.fixture(scope="module")
def buildah() -> Iterator[Buildah]:
    for program in ("buildah", "debootstrap"):
        assert shutil.which(program), f"{program} is missing; on Debian: apt-get install {program}"
    folder = Path(tempfile.mkdtemp(prefix="buildah", dir="/var/tmp"))
    made = Buildah(folder)
    yield made
    made("rm", "--all")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def base(buildah: Buildah) -> str:
    """Make the stand-in for ubi9/python-311."""
    system = buildah.folder / "system"
    command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(system)]
    subprocess.run(command, check=True, capture_output=True, timeout=900)
    with (system / "etc" / "passwd").open("a") as users:
        users.write("default:x:1001:0:Default Application User:/opt/app-root/src:/sbin/nologin\n")
    container = buildah("from", "scratch")
    buildah("copy", container, str(system), "/")
    buildah("copy", container, CERTIFICATES, CERTIFICATES)
    environment = {
        "PATH": "/opt/app-root/src/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/opt/app-root/src",
        "BASH_ENV": "/opt/app-root/etc/scl_enable",
        "SSL_CERT_FILE": CERTIFICATES,
        "UV_FIND_LINKS": ",".join(os.environ.get("PIP_FIND_LINKS", "").split()),
    }
    words = [word for name, text in environment.items() if text for word in ("--env", f"{name}={text}")]
    buildah("config", *words, "--user", "1001", "--workingdir", "/opt/app-root/src", container)
    buildah("commit", container, BASE)
    buildah("rm", container)
    shutil.rmtree(system)
    return BASE


def build(buildah: Buildah, context: Path) -> None:
    wheels = [
        word for path in os.environ.get("PIP_FIND_LINKS", "").split() for word in ("--volume", f"{path}:{path}:ro")
    ]
    arguments = [f"BASE_IMAGE={BASE}", f"TORCH_BACKEND={os.environ.get('UV_TORCH_BACKEND', '')}"]
    words = [word for argument in arguments for word in ("--build-arg", argument)]
    how = ["--isolation", "chroot", "--layers", "--pull-never"]
    buildah("build", *how, *wheels, *words, "--tag", IMAGE, "--file", str(context / "Containerfile"), str(context))


@pytest.fixture(scope="module")
def built(buildah: Buildah, base: str) -> list[tuple[str, int]]:
    build(buildah, ROOT)
    return buildah.layers(IMAGE)


@pytest.fixture
def run_in_image(buildah: Buildah, built: Any) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Run the entrypoint on the read-only root file system with the environment of the image."""
    container = buildah("from", "--pull-never", IMAGE)
    root = buildah("mount", container)
    config = json.loads(buildah("inspect", "--type", "image", IMAGE))["OCIv1"]["config"]
    environment = [*config["Env"], "HOME=/tmp", "USER=rec_ray"]
    mounts = (
        f"mount --bind {root} {root} && mount -o remount,bind,ro {root} && mount -t tmpfs tmpfs {root}/tmp && "
        f"mount -t proc proc {root}/proc && mount --rbind /dev {root}/dev && "
        f"exec chroot --userspec={UNKNOWN_USER} --groups=0 {root} /usr/bin/env -i "
    )

    def run(script: str) -> subprocess.CompletedProcess[str]:
        words = " ".join(f"'{entry}'" for entry in environment)
        inside = f"{mounts}{words} bash -c 'cd /app && {script}'"
        command = ["unshare", "--mount", "bash", "-c", inside]
        return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)

    yield run
    buildah("umount", container)
    buildah("rm", container)


def test_the_code_is_a_small_layer_of_its_own(
    buildah: Buildah, built: list[tuple[str, int]], record_testsuite_property: Callable[[str, object], None]
) -> None:
    sizes = [size for _, size in built]
    record_testsuite_property("layer_mb", [round(size / 1e6, 1) for size in sizes])
    *_, environment, code = sizes

    assert environment > 500e6, "all packages"
    assert code < 20e6, "the program alone"


def test_a_change_of_code_replaces_only_the_last_layer(
    buildah: Buildah, built: list[tuple[str, int]], tmp_path: Path
) -> None:
    for name in ("Containerfile", "pyproject.toml", "requirements.lock", "README.md", "entrypoint.sh", ".dockerignore"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("rec_ray", "cluster", "jobs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "rec_ray" / "__init__.py").open("a") as file:
        file.write("# changed\n")
    begun = time.monotonic()
    build(buildah, tmp_path)

    after = [digest for digest, _ in buildah.layers(IMAGE)]
    before = [digest for digest, _ in built]
    assert after[:-1] == before[:-1] and after[-1] != before[-1]
    assert time.monotonic() - begun < 300, "the environment was not installed again"


def test_a_foreign_user_does_a_whole_run_on_a_read_only_root(
    run_in_image: Callable[..., subprocess.CompletedProcess[str]],
    record_testsuite_property: Callable[[str, object], None],
) -> None:
    begun = time.monotonic()
    helped = run_in_image("/app/entrypoint.sh rec-ray --help")
    record_testsuite_property("start_seconds", round(time.monotonic() - begun, 1))
    assert helped.returncode == 0, helped.stderr

    refused = run_in_image("touch /app/file")
    assert "Read-only file system" in refused.stderr

    small = "--set train.epochs=1 --set model.history=mean --set ray.num_cpus=2 --set ray.object_store_memory=300000000"
    ran = run_in_image(
        f"/app/entrypoint.sh init /tmp/shop && /app/entrypoint.sh run -C /tmp/shop {small} && "
        "/app/entrypoint.sh recommend --any -C /tmp/shop"
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-5000:]
    assert "Version 1" in ran.stdout


def test_the_extra_for_texts_is_in_the_image(run_in_image: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    found = run_in_image('python -c "import transformers, kfp, psycopg, redis; print(transformers.__version__)"')

    assert found.returncode == 0, found.stderr
