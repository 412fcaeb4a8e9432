"""Render the chart and check what it makes: `python -m deploy.helm.check`, a part of `make check`.

Objects of Kubernetes are held to its own schemas, strictly: unknown fields are errors, too. Rules
are checked by promtool, where it is installed. A chart cannot read files outside of its folder, so
it has copies of the rules, which must be the same as the originals.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import yaml

FOLDER = Path(__file__).parent
CHART = FOLDER / "lewm-serve"
RULES = FOLDER.parent / "prometheus"
VALUE_FILES = sorted((FOLDER / "values").glob("*.yaml"))

KUBERNETES_VERSIONS = ("1.27", "1.33", "1.37")
"""The oldest that the chart allows, one in between, and the newest whose schemas are installed."""

NAMESPACE, RELEASE = "robots", "demo"

Object = dict[str, Any]


class ChartError(Exception):
    """The chart refuses the values, or makes an object that Kubernetes would refuse."""


def render(values: dict[str, Any]) -> dict[str, Object]:
    """The objects that the chart makes of values, by kind and name.

    Raises:
        ChartError: the chart refuses the values.
    """
    try:
        with helm_python.Chart.load(str(CHART)) as chart:
            files = chart.render(values, name=RELEASE, namespace=NAMESPACE)
    except helm_python.HelmError as error:
        raise ChartError(str(error)) from None
    texts = [text for name, text in files.items() if name.endswith(".yaml")]
    objects = [found for text in texts for found in yaml.safe_load_all(text) if found]
    by_name = {f"{found['kind']}/{found['metadata']['name']}": found for found in objects}
    if len(by_name) < len(objects):
        raise ChartError("two objects of one kind have the same name")
    return by_name


def is_of_kubernetes(found: Object) -> bool:
    """Whether Kubernetes itself defines the object's kind, and not an operator."""
    group = found["apiVersion"].rpartition("/")[0]
    return "." not in group or group.endswith(".k8s.io")


def check(objects: dict[str, Object]) -> None:
    """Check objects of Kubernetes by its schemas, and rules by promtool.

    Raises:
        ChartError: one of them is wrong.
    """
    for name, found in objects.items():
        for version in KUBERNETES_VERSIONS if is_of_kubernetes(found) else ():
            try:
                kubernetes_validate.validate(found, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                path = ".".join(map(str, error.path))
                raise ChartError(f"{name}, {path}: {error.message}") from None
        if found["kind"] == "PrometheusRule" and shutil.which("promtool") is not None:
            _check_rules(found["spec"])


def _check_rules(rules: Object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rules.yml"
        file.write_text(yaml.safe_dump(rules))
        command = ["promtool", "check", "rules", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ChartError(done.stdout + done.stderr)


def check_copies(folder: Path) -> None:
    """Check that the copies in a folder are the same as the rules of Prometheus.

    Raises:
        ChartError: one of them differs.
    """
    for copy in sorted(folder.iterdir()):
        if copy.read_bytes() != (RULES / copy.name).read_bytes():
            raise ChartError(f"{copy} differs from {RULES / copy.name}: copy it again")


def main() -> None:
    """Check the copies, and what the chart makes of each file of values."""
    try:
        check_copies(CHART / "files")
    except ChartError as error:
        sys.exit(str(error))
    for file in VALUE_FILES:
        try:
            objects = render(yaml.safe_load(file.read_text()))
            check(objects)
        except ChartError as error:
            sys.exit(f"{file.name}: {error}")
        print(f"{file.name}: {', '.join(objects)}")


if __name__ == "__main__":
    main()
