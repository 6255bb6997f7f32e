"""An OCI image that holds torch: built by umoci, packed by skopeo, judged whole by the workload gate, and run by the launcher."""

import json
import shutil
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fixtures.isolation import LIMITS, job_of, make_world
from tests.fixtures.workload import SITE_PACKAGES, Case, layout_digest, run, umoci_image

PARTS = ("torch", "torchgen", "functorch", "torch-2.13.0+cpu.dist-info")
TRAIN = b"""import json

import torch

mean = float(torch.nn.functional.relu(torch.arange(4.0) - 1).mean())
with open("/out/metrics.json", "w", encoding="utf-8") as stream:
    json.dump({"mean": mean, "own": float(torch.__file__.startswith("/workload/site-packages/"))}, stream)
"""


def packed_image(folder: Path) -> Case:
    """The image with all of torch as an archive, in a case that declares it."""
    site = folder / "site-packages"
    site.mkdir()
    for part in PARTS:  # hard links: the copy that counts is the one in the image
        run("cp", "-rl", SITE_PACKAGES / part, site / part)
    run("find", site, "-name", "__pycache__", "-prune", "-exec", "rm", "-r", "{}", "+")
    layout = umoci_image(folder, {"train.py": TRAIN, "site-packages": site})
    shutil.rmtree(folder / "bundle")
    archive = folder / "image.tar"
    run("skopeo", "--insecure-policy", "copy", f"oci:{layout}:t", f"oci-archive:{archive}:t")
    return Case(folder, kind="oci", blob=archive, named=layout_digest(layout))


@pytest.mark.timeout(400)
def test_an_image_with_all_of_torch_is_built_scanned_and_run(tmp_path: Path) -> None:
    case = packed_image(tmp_path)
    began = time.monotonic()
    evidence = case.run().evidence
    assert time.monotonic() - began < 120
    assert evidence.scan.known > 12_000 and evidence.scan.own == 1 and evidence.scan.size > 600_000_000

    world, job = make_world(), job_of("image")
    try:
        with world.keeper() as keeper:
            keeper.cut(job, 1)
        judged = {"kind": "oci", "workload": case.attempt.folder / "workload", "workload_digest": evidence.folder}
        spec = replace(world.spec("pass"), **judged)
        ours, theirs = socket.socketpair()
        with world.launcher() as launcher, ours, theirs:
            launcher.launch(job, 1, spec, LIMITS, [theirs.fileno()])
            while (now := launcher.wait(5)).state == "running":
                pass
            assert (now.exit, now.reason) == ("completed", "")
            launcher.collect(tmp_path / "out")
    finally:
        world.close()
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == {"mean": 0.75, "own": 1.0}
