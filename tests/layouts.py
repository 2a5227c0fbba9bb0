"""Writers of small folders in the layouts of the released data sets; the numbers in them are random."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

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


XRAY_PATIENTS = 24
"""Patients of each X-ray release below; every patient has two images."""


def write_picture(file: Path, seed: int, shape: tuple[int, int] = (40, 50)) -> Path:
    """A grey PNG or JPEG of random blocks."""
    file.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(seed).integers(256, size=(shape[0] // 5, shape[1] // 5), dtype=np.uint8)
    Image.fromarray(np.kron(blocks, np.ones((5, 5), dtype=np.uint8))).save(file)
    return file


def write_dicom(file: Path, stored: np.ndarray, interpretation: str = "MONOCHROME2", **window: float) -> Path:
    """An uncompressed radiograph of 16 bits; needs pydicom."""
    import pydicom

    scan = pydicom.Dataset()
    scan.file_meta = pydicom.dataset.FileMetaDataset()
    scan.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    scan.SOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    scan.SOPInstanceUID = pydicom.uid.generate_uid()
    scan.PhotometricInterpretation = interpretation
    scan.Rows, scan.Columns = stored.shape
    scan.SamplesPerPixel, scan.PixelRepresentation = 1, 0
    scan.BitsAllocated = scan.BitsStored = 16
    scan.HighBit = 15
    for name, value in window.items():
        setattr(scan, name, value)
    scan.PixelData = stored.astype("<u2").tobytes()
    scan.save_as(file, enforce_file_format=True)
    return file


def write_chexpert(folder: Path) -> pd.DataFrame:
    """CheXpert-v1.0-small: a frontal and a lateral image of each patient; every eighth effusion is uncertain."""
    root = folder / "CheXpert-v1.0-small"
    rows = []
    for k in range(XRAY_PATIENTS):
        for view, name in (("Frontal", "view1_frontal.jpg"), ("Lateral", "view2_lateral.jpg")):
            path = f"{'valid' if k < 4 else 'train'}/patient{k + 1:05d}/study1/{name}"
            write_picture(root / path, k)
            rows.append(
                {
                    "Path": f"CheXpert-v1.0-small/{path}",
                    "Sex": ["Female", "Male"][k // 2 % 2] if k != 9 else "Unknown",
                    "Age": 40 + 2 * k,
                    "Frontal/Lateral": view,
                    "AP/PA": ["AP", "PA"][k // 4 % 2] if view == "Frontal" else "",
                    "No Finding": "",
                    "Cardiomegaly": "1.0" if k % 3 == 0 else "",
                    "Pleural Effusion": "-1.0" if k % 8 == 7 else ["1.0", "0.0", "1.0", ""][k % 4],
                }
            )
    table = pd.DataFrame(rows)
    official = table["Path"].str.contains("/valid/")
    table[~official].to_csv(root / "train.csv", index=False)
    table[official].to_csv(root / "valid.csv", index=False)
    return table


def write_mimic_cxr(folder: Path) -> pd.DataFrame:
    """MIMIC-CXR-JPG 2.0.0: two images of one study each; the last study has no labels; and MIMIC-IV's patients."""
    rows, labels, patients = [], [], []
    for k in range(XRAY_PATIENTS):
        subject, study = 10000032 + 1000 * k, 50000001 + k
        for image, view in enumerate((["AP", "PA"][k % 2], "LATERAL")):
            name = f"{k:08x}-{image:08x}"
            write_picture(folder / "files" / f"p{str(subject)[:2]}" / f"p{subject}" / f"s{study}" / f"{name}.jpg", k)
            date = 21800506 if k else 21810506
            rows.append([name, subject, study, "CHEST", view, 2544, 3056, date])
        if k < XRAY_PATIENTS - 1:
            labels.append([subject, study, "", ["1.0", "", "0.0", "1.0"][k % 4] if k != 5 else "-1.0"])
        patients.append([subject, "FM"[k // 2 % 2], 40 + k, 2178, "2014 - 2016", ""])
    titles = ["dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows"]
    table = pd.DataFrame(rows, columns=[*titles, "Columns", "StudyDate"])
    table.to_csv(folder / "mimic-cxr-2.0.0-metadata.csv.gz", index=False)
    found = pd.DataFrame(labels, columns=["subject_id", "study_id", "Atelectasis", "Pleural Effusion"])
    for labeler in ("chexpert", "negbio"):
        found.to_csv(folder / f"mimic-cxr-2.0.0-{labeler}.csv.gz", index=False)
    people = ["subject_id", "gender", "anchor_age", "anchor_year", "anchor_year_group", "dod"]
    pd.DataFrame(patients, columns=people).to_csv(folder / "patients.csv.gz", index=False)
    return table


def write_nih(folder: Path) -> pd.DataFrame:
    """NIH ChestX-ray14: half of the images in images_001/images, half in images_002/images; one age is 411."""
    rows = []
    for k in range(2 * XRAY_PATIENTS):
        patient = k // 2
        name = f"{patient + 1:08d}_{k % 2:03d}.png"
        write_picture(folder / f"images_{1 + k % 2:03d}" / "images" / name, k, (50, 50))
        rows.append(
            {
                "Image Index": name,
                "Finding Labels": ["No Finding", "Effusion", "Cardiomegaly|Effusion", "Hernia"][patient % 4],
                "Follow-up #": k % 2,
                "Patient ID": patient + 1,
                "Patient Age": "411Y" if k == 6 else f"{38 + 2 * patient:03d}Y",
                "Patient Gender": "MF"[patient // 2 % 2],
                "View Position": ["PA", "AP"][k % 2],
                "OriginalImage[Width": 2682,
                "Height]": 2749,
            }
        )
    table = pd.DataFrame(rows)
    table.to_csv(folder / "Data_Entry_2017.csv", index=False)
    return table


def write_covid(folder: Path) -> pd.DataFrame:
    """The COVID-19 image data collection; the first row is unlabelled, the second has no view, the third no age."""
    rows = []
    for k in range(2 * XRAY_PATIENTS):
        patient = k // 2
        write_picture(folder / "images" / f"{k:06d}.jpg", k)
        rows.append(
            {
                "image": f"images/{k:06d}.jpg",
                "patientid": 100 + patient,
                "sex": "MF"[patient // 2 % 2],
                "age": "" if k == 2 else f"{44 + 1.5 * patient:.1f}",
                "finding": "todo"
                if k == 0
                else ["COVID-19", "Klebsiella", "COVID-19, ARDS", "No Finding"][patient % 4],
                "view": "" if k == 1 else ["PA", "AP", "AP Supine"][k % 3],
            }
        )
    table = pd.DataFrame(rows)
    table.to_csv(folder / "metadata.csv", index=False)
    return table


def write_xray_manifest(folder: Path) -> pd.DataFrame:
    """PNG files of 12 people and their manifest."""
    rows = []
    for k in range(24):
        write_picture(folder / f"scan{k}.png", k)
        person = k % 12
        sex, age = ["F", "M", ""][person % 3], 20 + 5 * person
        rows.append([f"scan{k}.png", ["healthy", "ill"][person % 2], f"p{person}", sex, age, ["A", "B"][person // 6]])
    table = pd.DataFrame(rows, columns=["image", "target", "subject", "sex", "age", "scanner"])
    table.to_csv(folder / "images.csv", index=False)
    return table


def write_idx(file: Path, array: np.ndarray) -> None:
    """Bytes in MNIST's idx format, packed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
    file.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


def write_morpho_mnist(
    folder: Path, released: bool = False, train: int = 200, test: int = 100
) -> dict[str, np.ndarray]:
    """Random digits as one archive, or as the released idx files of thin and thick digits."""
    generator = np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", train), ("test", test)):
        arrays[f"{part}_digit"] = (np.arange(n) % 10).astype(np.uint8)
        arrays[f"{part}_index"] = np.arange(n, dtype=np.int32)
        thin = generator.integers(100, size=(n, 28, 28), dtype=np.uint8)
        arrays[f"{part}_thin"], arrays[f"{part}_thick"] = thin, thin + 100
        if released:
            stem = {"train": "train", "test": "t10k"}[part]
            for home, name in (("thin", "thin"), ("thic", "thick")):
                write_idx(folder / home / f"{stem}-images-idx3-ubyte.gz", arrays[f"{part}_{name}"])
                write_idx(folder / home / f"{stem}-labels-idx1-ubyte.gz", arrays[f"{part}_digit"])
    if not released:
        np.savez_compressed(folder / "morpho_mnist_thin_thick.npz", **arrays)
    return arrays


OASIS_PEOPLE = 20


def write_oasis(folder: Path) -> pd.DataFrame:
    """OASIS-1 slices of random pixels, and their table."""
    rows = []
    generator = np.random.default_rng(0)
    (folder / "images").mkdir()
    for k in range(OASIS_PEOPLE):
        row = {"id": f"OAS1_{k:04d}_MR1", "sex": "FM"[k % 2], "age": 61 + k, "cdr": [0, 0.5, 0, 1][k // 2 % 4]}
        for plane, size in {"axial": (208, 176), "coronal": (176, 176), "sagittal": (176, 208)}.items():
            row[plane] = f"images/{row['id']}_{plane}.png"
            Image.fromarray(generator.integers(1, 255, size, dtype=np.uint8)).save(folder / row[plane])
        rows.append(row)
    table = pd.DataFrame(rows)
    table.to_csv(folder / "oasis1_cross_sectional.csv", index=False)
    return table


def write_volume(file: Path, seed: int, shape: tuple[int, ...] = (8, 10, 8)) -> None:
    """A NIfTI volume of random voxels of 2 mm."""
    import nibabel as nib

    file.parent.mkdir(parents=True, exist_ok=True)
    data = np.random.default_rng(seed).uniform(1, 9, shape).astype(np.float32)
    nib.save(nib.Nifti1Image(data, np.diag([2.0, 2.0, 2.0, 1.0])), file)


def write_ukb(folder: Path) -> pd.DataFrame:
    """A manifest of T1 volumes with the columns that configs/data/ukb.yaml asks for."""
    rows = []
    for k in range(32):
        write_volume(folder / "scans" / f"{k}.nii.gz", k)
        people = {"id": f"ukb{k}", "volume": f"scans/{k}.nii.gz", "diabetes": ["no", "yes"][k % 2]}
        rows.append({**people, "sex": ["female", "male"][k // 2 % 2], "age": 50 + k, "centre": "AB"[k // 4 % 2]})
    table = pd.DataFrame(rows)
    table.to_csv(folder / "volumes.csv", index=False)
    return table


MIMIC_REPORT = (
    "                                 FINAL REPORT\n EXAMINATION:  CHEST (PA AND LAT)",
    "INDICATION:  ___F with cough, evaluate for pneumonia at 10:30",
    "COMPARISON:  None.",
    "FINDINGS: ",
    "The heart of patient {k} is normal in size.  There is a small\n effusion of 3.5 cm.",
    "IMPRESSION: ",
    "Small effusion number {k}.",
)


def write_mimic_reports(folder: Path) -> None:
    """Reports of `write_mimic_cxr`: the first is missing, one is empty, one has no section, one no findings."""
    for k in range(1, XRAY_PATIENTS):
        subject, study = 10000032 + 1000 * k, 50000001 + k
        paragraphs = MIMIC_REPORT
        if k == 1:
            paragraphs = (" FINAL REPORT\n FINDINGS:", "IMPRESSION:")
        if k == 2:
            paragraphs = (" WET READ: ___ 8:13 PM\n No change.", "AP CHEST, 7:49 A.M. ON ___", "Lungs are clear.")
        if k == 3:
            paragraphs = paragraphs[-2:]
        file = folder / "files" / f"p{str(subject)[:2]}" / f"p{subject}" / f"s{study}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(" \n \n ".join(paragraphs).format(k=k) + "\n", encoding="utf-8")


def write_covid_notes(folder: Path) -> pd.DataFrame:
    """`write_covid` with notes and lung boxes: both images of a patient share a note, every fifth patient has none."""
    table = write_covid(folder)
    patient = table["patientid"] - 100
    notes = [f"Cough of patient {k}. COVID-19 was found in 2.5 days." if k % 5 else "" for k in patient]
    table["clinical_notes"] = notes
    table["note_masked"] = [note.replace("COVID-19", "[finding]") for note in notes]
    table["width"], table["height"] = 50, 40
    for side, left in (("right", 5), ("left", 30)):
        for part, value in zip("xywh", (left, 10, 15, 20), strict=True):
            table[f"{side}_{part}"] = [f"{value:.1f}"] * len(table)
    table.to_csv(folder / "metadata.csv", index=False)
    return table


def write_xray_text_manifest(folder: Path) -> pd.DataFrame:
    """`write_xray_manifest` with reports: none in the first row, in a file in the second, in the cell in all others."""
    table = write_xray_manifest(folder)
    table["report"] = ["", "reports/1.txt", *(f"Lungs are clear. Heart of scan {k} is normal." for k in range(2, 24))]
    (folder / "reports").mkdir()
    (folder / "reports" / "1.txt").write_text("FINDINGS: Café is no finding.\n\nTECHNIQUE: PA.\n", encoding="utf-8")
    table.to_csv(folder / "images.csv", index=False)
    return table


OSIE_IMAGES = 24


def write_osie(folder: Path) -> pd.DataFrame:
    """OSIE's colour pictures, each seen by 4 viewers of 5 fixations: even ones at one place, odd ones everywhere."""
    generator = np.random.default_rng(0)
    (folder / "stimuli_320").mkdir()
    rows = []
    for k in range(OSIE_IMAGES):
        pixels = np.repeat(np.repeat(generator.integers(256, size=(6, 8, 3), dtype=np.uint8), 5, axis=0), 5, axis=1)
        Image.fromarray(pixels).save(folder / "stimuli_320" / f"{1001 + k}.jpg", quality=95)
        for viewer, fixation in np.ndindex(4, 5):
            x, y = generator.uniform((0, 0), (799, 599)) if k % 2 else (200 + 30 * fixation, 450)
            rows.append([f"{1001 + k}.jpg", viewer, fixation, round(x, 1), round(y, 1), 100 + 50 * fixation])
    table = pd.DataFrame(rows, columns=["image", "subject", "fix_index", "x_px800", "y_px600", "duration_ms"])
    table["x_px320"], table["y_px240"] = table["x_px800"] / 2.5, table["y_px600"] / 2.5
    table.to_csv(folder / "fixations.csv.gz", index=False)
    return table
