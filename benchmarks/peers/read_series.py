"""A series by SimpleITK (to uncompressed NIfTI) or by MONAI (into memory). Imports that library alone.

python benchmarks/peers/read_series.py {simpleitk,monai} TARGET SOURCE …     once, and an end
python benchmarks/peers/read_series.py … --serve                             whenever it is asked
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _served import serve


def simpleitk(target: Path, sources: list[Path]) -> None:
    """Its series reader, as its documentation has it."""
    import SimpleITK as sitk  # noqa: N813

    for source in sources:
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(source)))
        sitk.WriteImage(reader.Execute(), str(target / f"{source.name}.nii"))


def monai(target: Path, sources: list[Path]) -> None:
    """`LoadImage`, which reads folders with pydicom where ITK is not installed."""
    from monai.transforms import LoadImage

    for source in sources:
        LoadImage(image_only=True)(str(source))


def main() -> None:
    """As asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", choices=["simpleitk", "monai"])
    parser.add_argument("target", type=Path)
    parser.add_argument("sources", nargs="+", type=Path)
    parser.add_argument("--serve", action="store_true")
    given = parser.parse_args()
    work = partial({"simpleitk": simpleitk, "monai": monai}[given.library], given.target, given.sources)
    if given.serve:
        serve(work)
    else:
        work()


if __name__ == "__main__":
    main()
