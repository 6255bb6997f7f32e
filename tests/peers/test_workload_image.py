"""An OCI image that holds torch, built by umoci and packed by skopeo: judged whole, in bounded time."""

import shutil
import time
from pathlib import Path

import pytest

from tests.fixtures.workload import FILES, SITE_PACKAGES, Case, layout_digest, run, umoci_image

PARTS = ("torch", "torchgen", "functorch", "torch-2.13.0+cpu.dist-info")


@pytest.mark.timeout(300)
def test_an_image_with_all_of_torch_passes(tmp_path: Path) -> None:
    site = tmp_path / "site-packages"
    site.mkdir()
    for part in PARTS:  # hard links: the copy that counts is the one in the image
        run("cp", "-rl", SITE_PACKAGES / part, site / part)
    run("find", site, "-name", "__pycache__", "-prune", "-exec", "rm", "-r", "{}", "+")
    layout = umoci_image(tmp_path, {**FILES, "site-packages": site})
    shutil.rmtree(tmp_path / "bundle")
    archive = tmp_path / "image.tar"
    run("skopeo", "--insecure-policy", "copy", f"oci:{layout}:t", f"oci-archive:{archive}:t")
    case = Case(tmp_path, kind="oci", blob=archive, named=layout_digest(layout))
    began = time.monotonic()
    evidence = case.run().evidence
    assert time.monotonic() - began < 120
    assert evidence.scan.known > 12_000 and evidence.scan.own == len(FILES) and evidence.scan.size > 600_000_000
