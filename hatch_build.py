"""Build hook of hatchling: the wheel, and the editable install, get the native code as a library.

A wheel with the library is for Linux on x86-64, as its name says. Where the library cannot be
compiled, the wheel is for every system, and the server runs on another backend.
"""

import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).parent / "service"))

from lewm_serve.backends.native.build import NativeUnavailable, build_library, digest_path


class NativeCode(BuildHookInterface):
    """Compiles the library beside its sources, where the server looks for it."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before each build of a wheel. ``version`` is "standard" or "editable"."""
        try:
            library = build_library()
        except NativeUnavailable as error:
            self.app.display_warning(f"the native code is not compiled: {error}")
            return
        # Git ignores these files, and hatchling would leave them out.
        for file in (library, digest_path(library)):
            build_data["artifacts"].append(f"/{file.relative_to(self.root).as_posix()}")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_')}"
