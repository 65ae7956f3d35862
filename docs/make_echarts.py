"""Writes the chart library of the report, src/ulorl/report/page/echarts.min.js, and its licences beside it.

It is a build of Apache ECharts with the parts that the report needs: 0.6 MB in place of 1.1 MB. `python
docs/make_echarts.py` needs node with npm and the network; the versions below are fixed.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

PAGE = Path(__file__).parents[1] / "src" / "ulorl" / "report" / "page"
PACKAGES = {"echarts": "6.1.0", "zrender": "6.1.0", "tslib": "2.3.0", "esbuild": "0.28.2"}
LICENCES = {
    "echarts": ("LICENSE", "NOTICE", "licenses/LICENSE-d3"),
    "zrender": ("LICENSE",),
    "tslib": ("LICENSE.txt",),
}
CHARTS = ("LineChart", "CustomChart")
COMPONENTS = (
    "GridComponent", "TooltipComponent", "AxisPointerComponent", "DataZoomComponent", "ToolboxComponent",
    "MarkLineComponent", "LegendComponent",
)  # fmt: skip
ENTRY = f"""
export {{ init, connect }} from "echarts/core";
import {{ use }} from "echarts/core";
import {{ {", ".join(CHARTS)} }} from "echarts/charts";
import {{ {", ".join(COMPONENTS)} }} from "echarts/components";
import {{ SVGRenderer }} from "echarts/renderers";
use([{", ".join([*CHARTS, *COMPONENTS, "SVGRenderer"])}]);
"""
BANNER = (
    "/*! Apache ECharts {echarts} (Apache-2.0) with zrender {zrender} (BSD-3-Clause) and tslib {tslib} (0BSD), built "
    "with esbuild {esbuild} by docs/make_echarts.py. Licences: echarts.licences.txt. */"
)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "entry.js").write_text(ENTRY)
        (folder / "package.json").write_text(json.dumps({"private": True, "dependencies": PACKAGES}))
        subprocess.run(["npm", "install", "--no-audit", "--no-fund"], cwd=folder, check=True)
        options = ["--bundle", "--minify", "--format=iife", "--global-name=echarts", "--target=es2020"]
        banner = f"--banner:js={BANNER.format(**PACKAGES)}"
        build = ["npx", "esbuild", "entry.js", *options, "--legal-comments=none", banner, "--outfile=echarts.min.js"]
        subprocess.run(build, cwd=folder, check=True)
        (PAGE / "echarts.min.js").write_bytes((folder / "echarts.min.js").read_bytes())
        texts = [
            f"{package} {PACKAGES[package]}, {file}\n\n{(folder / 'node_modules' / package / file).read_text()}"
            for package, files in LICENCES.items()
            for file in files
        ]
        (PAGE / "echarts.licences.txt").write_text(("\n\n" + "-" * 80 + "\n\n").join(texts))


if __name__ == "__main__":
    main()
