"""Draw the pictures of the README: the pipeline, a real report, and real pages, as Chromium shows them.

python docs/make_pictures.py                                        # the pipeline
python docs/make_pictures.py --report NAME REPORT.html SECTION …    # and parts of a report, without images of patients
python docs/make_pictures.py --pages MODEL                          # and the pages of the `nocturne up` that runs here
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import httpx
from PIL import Image, ImageChops

from flows.health import mlflow_page
from models.settings import Settings

PICTURES = Path(__file__).parent / "pictures"

STAGES = (
    ("ingest", "headers, checks,", "de-identification"),
    ("preprocess", "fingerprint, plan,", "prepared arrays"),
    ("train", "patches, loop,", "checkpoints"),
    ("evaluate", "metrics, intervals,", "report"),
    ("register", "gate, audit trail,", "champion"),
    ("predict", "the champion", "on new studies"),
)
STORES = ("volumes + catalog", "prepared + plan", "package", "evaluation", "registry", "masks, findings")
WIDTH, HEIGHT, BOX, GAP = 1120, 300, 150, 32


def pipeline() -> str:
    """The stages in a row, what each leaves in a store below, and what is set aside."""
    left = (WIDTH - len(STAGES) * BOX - (len(STAGES) - 1) * GAP) / 2
    shapes = []
    for i, ((name, *words), store) in enumerate(zip(STAGES, STORES, strict=True)):
        x = left + i * (BOX + GAP)
        middle = x + BOX / 2
        shapes += [
            f'<rect class="stage" x="{x}" y="70" width="{BOX}" height="86" rx="8"/>',
            f'<text class="name" x="{middle}" y="96">{name}</text>',
            *(f'<text x="{middle}" y="{118 + 18 * n}">{word}</text>' for n, word in enumerate(words)),
            f'<path class="line" d="M{middle} 156 V196"/><path class="head" d="M{middle - 5} 190 l5 8 l5 -8 z"/>',
            f'<rect class="store" x="{x}" y="200" width="{BOX}" height="34" rx="17"/>',
            f'<text x="{middle}" y="222">{store}</text>',
        ]
        if i:
            shapes += [
                f'<path class="line" d="M{x - GAP} 113 H{x - 4}"/>',
                f'<path class="head" d="M{x - 10} 108 l8 5 l-8 5 z"/>',
            ]
    first = left + BOX / 2
    last = left + (len(STAGES) - 2) * (BOX + GAP) + BOX / 2
    shapes += [
        f'<text class="name" x="{first}" y="32">DICOM studies, labels</text>',
        f'<path class="line" d="M{first} 40 V66"/><path class="head" d="M{first - 5} 60 l5 8 l5 -8 z"/>',
        f'<path class="line dashed" d="M{last} 200 m0 34 V262 H{left + 2 * (BOX + GAP) + BOX / 2} V238"/>',
        f'<text x="{(last + left + 2 * (BOX + GAP) + BOX / 2) / 2}" y="280">'
        "each night: the challenger against the champion, on the same frozen test patients</text>",
        f'<text class="aside" x="{first}" y="262">what fails a check:</text>',
        f'<text class="aside" x="{first}" y="280">quarantine, with its reason</text>',
    ]
    style = (
        "text{font:14px system-ui,sans-serif;text-anchor:middle;fill:#24292f}.name{font-weight:600;font-size:16px}"
        ".aside{fill:#a04000}.stage{fill:#e8f1fa;stroke:#0072b2;stroke-width:1.5}"
        ".store{fill:#f6f8fa;stroke:#8c959f}.line{stroke:#57606a;fill:none;stroke-width:1.5}"
        ".dashed{stroke-dasharray:5 4}.head{fill:#57606a}"
        "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.aside{fill:#ffa657}.stage{fill:#12304a}"
        ".store{fill:#21262d}.line{stroke:#9198a1}.head{fill:#9198a1}}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="The stages of a night and the stores they write to"><style>{style}</style>'
        f"{''.join(shapes)}</svg>\n"
    )


def screenshot(page: str, picture: Path, height: int, *, width: int = 1200, wait_seconds: int = 0) -> None:
    """What headless Chromium shows of a page, `wait_seconds` of its own time after it was loaded."""
    with tempfile.TemporaryDirectory() as profile:
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--no-first-run",
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
            f"--window-size={width},{height}",
            *([f"--virtual-time-budget={1000 * wait_seconds}"] if wait_seconds else []),
            f"--screenshot={picture}",
        ]
        subprocess.run(["chromium", *options, page], check=True, capture_output=True, timeout=120)


SLICES = ("overlays", "saliency", "uncertainty")
"""How the names of pictures begin that show slices of patients' images."""


def report(name: str, page: Path, sections: Sequence[str]) -> None:
    """Sections of a report, without what shows slices, cut off where they end."""
    shown = ", ".join(f"#{section}" for section in sections)
    slices = ", ".join(f'figure[data-name^="{prefix}"]' for prefix in SLICES)
    rules = (
        f"section:not({shown}), .pictures:has({slices}), h3:has(+ .pictures :is({slices})), "
        f"h3:has(+ p + .pictures :is({slices})), h3 + p:has(+ .pictures :is({slices})), footer {{ display: none }}"
    )
    picture = PICTURES / f"report-{name}.png"
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "report.html"
        part.write_text(page.read_text(encoding="utf-8").replace("</style>", f"{rules}</style>", 1), encoding="utf-8")
        screenshot(part.as_uri(), picture, 6000)
    with Image.open(picture) as image:
        seen = image.convert("RGB")
    empty = Image.new("RGB", seen.size, seen.getpixel((0, 0)))
    _, _, _, bottom = ImageChops.difference(seen, empty).getbbox() or (0, 0, 0, seen.height)
    seen.crop((0, 0, seen.width, min(bottom + 40, seen.height))).quantize(200).save(picture, optimize=True)


def pages(model: str) -> None:
    """A night, an arrival, the deployments and the registered model, from the servers of `nocturne up`."""
    settings = Settings.load()
    api, site = settings.prefect(), settings.prefect().removesuffix("/api")
    found = {
        "night": f"{site}/runs/flow-run/{last_run(api, 'retrain')}",
        "night-artifact": f"{site}/artifacts/artifact/{artifact(api, last_run(api, 'retrain'), 'report')}",
        "arrival": f"{site}/runs/flow-run/{last_run(api, 'study arrived')}",
        "arrival-artifact": f"{site}/artifacts/artifact/{artifact(api, last_run(api, 'study arrived'), 'pictures')}",
        "deployments": f"{site}/deployments",
        "mlflow": f"{mlflow_page(settings)}/#/models/{model}",
    }
    for name, page in found.items():
        screenshot(page, PICTURES / f"{name}.png", 1000, width=1500, wait_seconds=20)
        with Image.open(PICTURES / f"{name}.png") as image:
            image.quantize(128).save(PICTURES / f"{name}.png", optimize=True)


def last_run(api: str, flow: str) -> str:
    """The newest finished run of a flow."""
    wanted = {
        "flows": {"name": {"any_": [flow]}},
        "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}},
        "sort": "START_TIME_DESC",
        "limit": 1,
    }
    runs = httpx.post(f"{api}/flow_runs/filter", json=wanted, trust_env=False).raise_for_status().json()
    return str(runs[0]["id"])


def artifact(api: str, run: str, key: str) -> str:
    """A run's artifact of this key."""
    wanted = {"artifacts": {"flow_run_id": {"any_": [run]}, "key": {"any_": [key]}}, "limit": 1}
    found = httpx.post(f"{api}/artifacts/filter", json=wanted, trust_env=False).raise_for_status().json()
    return str(found[0]["id"])


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    (PICTURES / "pipeline.svg").write_text(pipeline(), encoding="utf-8")
    if sys.argv[1:2] == ["--pages"]:
        pages(sys.argv[2])
    elif sys.argv[1:2] == ["--report"]:
        report(sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
