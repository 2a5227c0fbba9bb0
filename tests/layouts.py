"""Writers of small folders in the layouts of the released data sets; the numbers in them are random."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pandas as pd

ABIDE_PEOPLE = 24
ADHD200_CHILDREN = 20
ADHD200_REGIONS = [k for k in range(1, 201) if k % 20]  # 190 regions: every twentieth carries no signal
MANIFEST_SCANS = 24
ABIDE_COLUMNS = ["SUB_ID", "SITE_ID", "FILE_ID", "DX_GROUP", "AGE_AT_SCAN", "SEX"]
ABIDE_QUALITY = ["qc_rater_1", "qc_anat_rater_2", "qc_func_rater_2", "qc_anat_rater_3", "qc_func_rater_3"]


def abide_series(k: int) -> np.ndarray:
    """Time series of person k."""
    return np.random.default_rng(k).standard_normal((30, 5)).round(4)


def write_abide(folder: Path) -> Path:
    """A small release in nilearn's layout; the last person failed a quality check."""
    home = folder / "ABIDE_pcp"
    series = home / "cpac" / "nofilt_noglobal"
    series.mkdir(parents=True)
    with (home / "Phenotypic_V1_0b_preprocessed1.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["", *ABIDE_COLUMNS, *ABIDE_QUALITY])
        for k in range(ABIDE_PEOPLE):
            row = [50001 + k, ["NYU", "KKI"][k % 2], f"Scan_{50001 + k}", 1 + k // 2 % 2, 6 + k, 1 + k // 4 % 2]
            table.writerow([k, *row, *(["OK"] * 4), "fail" if k == ABIDE_PEOPLE - 1 else "OK"])
            np.savetxt(
                series / f"Scan_{50001 + k}_rois_cc200.1D",
                abide_series(k),
                delimiter="\t",
                header="#1\t#2",
                comments="",
            )
    return folder


def write_adhd200_series(folder: Path, number: int, regions: list[int] = ADHD200_REGIONS, run: int = 1) -> Path:
    """One child's time courses."""
    name = f"sfnwmrda{number:07d}_session_1_rest_{run}"
    home = folder / ("NYU" if number % 2 else "KKI") / f"{number:07d}"
    home.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(number).standard_normal((25, len(regions))).round(5)
    lines = ["\t".join(["File", "Sub-brick", *(f"Mean_{k}" for k in regions)])]
    lines += ["\t".join([f"{name}.nii.gz", f"{t}[?]", *map(str, row)]) for t, row in enumerate(values.tolist())]
    (home / f"{name}_cc200_TCs.1D").write_text("\n".join(lines) + "\n")
    return home / f"{name}_cc200_TCs.1D"


def write_adhd200(folder: Path) -> pd.DataFrame:
    """Time courses in the Athena layout, and the phenotypic table."""
    rows = []
    for k in range(ADHD200_CHILDREN):
        write_adhd200_series(folder, 10001 + k)
        rows.append(
            {
                "": k + 1,
                "ScanDir.ID": 10001 + k,
                "Site": 5 if (10001 + k) % 2 else 3,
                "Gender": ["0", "1", "NA", "-999"][k] if k < 4 else str(k % 2),
                "Age": "-999" if k == 5 else str(7.5 + k / 2),
                "DX": ["0", "1", "2", "3"][k % 4],
                "QC_Athena": "1",
            }
        )
    table = pd.DataFrame(rows)
    table.to_csv(folder / "phenotypes.csv", index=False)
    return table


def write_manifest(folder: Path, suffix: str = ".npy", regions: int = 6, seed: int = 0) -> pd.DataFrame:
    """A folder of scans of 12 people and their manifest."""
    generator = np.random.default_rng(seed)
    rows = []
    for k in range(MANIFEST_SCANS):
        series = generator.standard_normal((30, regions)).round(6)
        path = f"scan{k}{suffix}"
        if suffix == ".npy":
            np.save(folder / path, series)
        else:
            header = {".csv": "a,b,c,d,e,f\n", ".1D": "#1\t#2\t#3\t#4\t#5\t#6\n"}.get(suffix, "")
            separator = {".csv": ",", ".tsv": "\t", ".1D": "\t"}.get(suffix, " ")
            (folder / path).write_text(
                header + "\n".join(separator.join(map(str, row)) for row in series.tolist()) + "\n"
            )
        person = k % 12
        rows.append(
            {
                "id": f"scan{k}",
                "path": path,
                "target": ["control", "patient"][person % 2],
                "subject": f"p{person}",
                "sex": ["F", "M", ""][person % 3],
                "age": str(20 + 5 * person),
            }
        )
    table = pd.DataFrame(rows)
    table.to_csv(folder / "participants.csv", index=False)
    return table
