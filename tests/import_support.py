"""What the tests of `prepare` and of imports share: small synthetic trees laid out like the real downloads.

Each class value k is a cube of 2 voxels a side at a place in the patient that depends on k alone, and the image is
100 k there: so orientation, and that image and label belong together, can be read off the prepared files.
"""

import hashlib
import json

import nibabel as nib
import numpy as np
from scripts.datalists import check_cases, read_datalist

SHAPE, SPACING = (20, 20, 16), (2.0, 2.5, 3.0)
AFFINE = np.array([[2.0, 0, 0, -19], [0, 2.5, 0, -30], [0, 0, 3.0, 100], [0, 0, 0, 1]])  # RAS
OPTIONS = {"workers": 1, "progress": False}


def corner(k):
    """The first voxel (in RAS order) of the cube of a value."""
    return 2 + 4 * (k % 4), 2 + 4 * (k // 4), 2 + 4 * (k % 3)


def place(k):
    """The centre of that cube in RAS millimetres."""
    return AFFINE[:3, :3] @ (np.array(corner(k)) + 0.5) + AFFINE[:3, 3]


def volumes(values, seed=0):
    """Image and label in RAS order, holding the cubes of some values."""
    image = np.random.default_rng(seed).integers(-20, 20, SHAPE).astype(np.int16)
    label = np.zeros(SHAPE, np.uint8)
    for value in values:
        cube = tuple(slice(i, i + 2) for i in corner(value))
        label[cube] = value
        image[cube] = 100 * value
    return image, label


def stored(array, codes="RAS"):
    """A NIfTI image whose axes point where `codes` say; the place of each voxel in the patient stays."""
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(codes))
    )
    return nib.Nifti1Image(array, AFFINE).as_reoriented(turn)


def save(path, array, codes="RAS"):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(stored(array, codes), path)
    return path


def save_pair(image_path, label_path, values, codes="RAS", seed=0, dtype=np.uint8):
    image, label = volumes(values, seed)
    save(image_path, image, codes)
    save(label_path, label.astype(dtype), codes)


def btcv(root, numbers=(1, 5, 8, 21), values=range(1, 14)):
    for n in numbers:
        folder = root / "Abdomen" / "RawData" / "Training"
        save_pair(folder / "img" / f"img{n:04d}.nii.gz", folder / "label" / f"label{n:04d}.nii.gz", values, "LAS", n)
    save(root / "Abdomen" / "RawData" / "Testing" / "img" / "img0061.nii.gz", volumes([1])[0])  # without labels


def acdc(root, patients=(1, 2, 3)):
    for n in patients:
        name, es = f"patient{n:03d}", 10 + n
        folder = root / "ACDC" / "database" / "training" / name
        for frame in (1, es):
            path = folder / f"{name}_frame{frame:02d}.nii.gz"
            save_pair(path, folder / f"{name}_frame{frame:02d}_gt.nii.gz", [1, 2, 3], "LPS", n + frame)
        save(folder / f"{name}_4d.nii.gz", np.zeros((4, 4, 3, 2), np.int16))
        group = ("DCM", "HCM", "NOR")[n % 3]
        (folder / "Info.cfg").write_text(f"ED: 1\nES: {es}\nGroup: {group}\nHeight: 184.0\nNbFrame: 30\nWeight: 95.0\n")


MNMS = {"A0S9V9": "A", "B3K1M2": "B", "C7Q5P8": "C", "D2X4Z6": "D"}
MNMS_TABLE = "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"


def mnms(root):
    lines = [",External code,VendorName,Vendor,Centre,ED,ES,Age,Pathology,Sex,Height,Weight"]
    for n, (code, vendor) in enumerate(MNMS.items()):
        folder = root / "OpenDataset" / "Training" / "Labeled" / code
        ed, es = 0, 2 + n % 2
        frames = [volumes([1, 2, 3], 10 * n + t) for t in range(4)]
        image = np.stack([frame for frame, _ in frames], axis=-1)
        label = np.stack([mask * (t in (ed, es)) for t, (_, mask) in enumerate(frames)], axis=-1)
        save_4d(folder / f"{code}_sa.nii.gz", image, "LPS")
        save_4d(folder / f"{code}_sa_gt.nii.gz", label, "LPS")
        lines.append(f"{n},{code},Vendor {vendor},{vendor},{n + 1},{ed},{es},55,NOR,F,160,60")
    (root / "OpenDataset" / MNMS_TABLE).write_text("\n".join(lines) + "\n")


def save_4d(path, array, codes):
    frames = [stored(array[..., t], codes) for t in range(array.shape[-1])]
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.stack([np.asarray(f.dataobj) for f in frames], -1), frames[0].affine), path)


def amos22(root, numbers=(1, 4, 507)):
    for n in numbers:
        name = f"amos_{n:04d}.nii.gz"
        save_pair(root / "amos22" / "imagesTr" / name, root / "amos22" / "labelsTr" / name, range(1, 16), "LPS", n)
    save_pair(root / "amos22/imagesVa/amos_0008.nii.gz", root / "amos22/labelsVa/amos_0008.nii.gz", range(1, 16))
    save(root / "amos22" / "imagesTs" / "amos_0002.nii.gz", volumes([1])[0])
    (root / "amos22" / "imagesTr" / "._amos_0001.nii.gz").write_bytes(b"macOS writes such files")


_COMORBIDITIES = """myocardial_infarction congestive_heart_failure peripheral_vascular_disease cerebrovascular_disease
dementia copd connective_tissue_disease peptic_ulcer_disease uncomplicated_diabetes_mellitus
diabetes_mellitus_with_end_organ_damage chronic_kidney_disease hemiplegia_from_stroke leukemia malignant_lymphoma
localized_solid_tumor metastatic_solid_tumor mild_liver_disease moderate_to_severe_liver_disease aids"""
COMORBIDITIES = _COMORBIDITIES.split()


def kits_entry(n):
    """A made-up entry with every key of the real kits.json, and the kinds of values that it has."""
    quit_age = ("not_applicable", "33", None)[n % 3]
    return {
        "case_id": f"case_{n:05d}",
        "age_at_nephrectomy": 40 + 3 * n,
        "gender": ("male", "female")[n % 2],
        "body_mass_index": 24.5 + n,
        "comorbidities": {name: i == n for i, name in enumerate(COMORBIDITIES)},
        "smoking_history": ("never_smoked", "previous_smoker", "current_smoker")[n % 3],
        "age_when_quit_smoking": quit_age,
        "pack_years": (0, "7", None)[n % 3],
        "chewing_tobacco_use": "never_or_not_in_last_3mo",
        "alcohol_use": ("two_or_less_daily", "never_or_not_in_last_3mo", "more_than_two_daily")[n % 3],
        "intraoperative_complications": {
            "blood_transfusion": False,
            "injury_to_surrounding_organ": False,
            "cardiac_event": False,
        },
        "hospitalization": 2,
        "ischemia_time": (20, "not_applicable")[n % 2],
        "radiographic_size": 2.5 + n / 2,
        "pathologic_size": 2.1,
        "malignant": True,
        "pathology_t_stage": "1a",
        "pathology_n_stage": ("0", "X")[n % 2],
        "pathology_m_stage": "0",
        "tumor_histologic_subtype": "clear_cell_rcc",
        "tumor_necrosis": False,
        "tumor_isup_grade": (3, None)[n % 2],
        "clavien_surgical_complications": "0",
        "er_visit": False,
        "readmission": False,
        "estimated_blood_loss": 400,
        "surgery_type": "robotic",
        "surgical_procedure": "partial_nephrectomy",
        "surgical_approach": "Transperitoneal",
        "operative_time": 324,
        "cytoreductive": False,
        "positive_resection_margins": False,
        "last_preop_egfr": {"value": (77.0, ">=90", None)[n % 3], "days_before_nephrectomy": (54, 7, None)[n % 3]},
        "first_postop_egfr": {"value": 76.0, "days_before_nephrectomy": 184},
        "last_postop_egfr": {"value": ">=90", "days_before_nephrectomy": 1420},
        "vital_status": "censored",
        "vital_days_after_surgery": 1420,
        "voxel_spacing": {"x_spacing": 0.9, "y_spacing": 0.9, "z_spacing": 0.5},
    }


def kits19(root, numbers=(0, 1, 2, 3), write=save_pair):
    for n in numbers:
        folder = root / "kits19" / "data" / f"case_{n:05d}"
        write(folder / "imaging.nii.gz", folder / "segmentation.nii.gz", [1, 2], "IPL", n)  # slices come first
    save(root / "kits19" / "data" / "case_00210" / "imaging.nii.gz", volumes([1])[0])  # of the test set
    entries = [kits_entry(n) for n in (*numbers, 210)]
    (root / "kits19" / "data" / "kits.json").write_text(json.dumps(entries, indent=2))


def brats21(root, numbers=(0, 2, 3)):
    for n in numbers:
        name = f"BraTS2021_{n:05d}"
        folder = root / "BraTS2021_Training_Data" / name
        for i, channel in enumerate(("t1", "t1ce", "t2", "flair")):
            image, label = volumes([1, 2, 4], n)
            save(folder / f"{name}_{channel}.nii.gz", image + 1000 * i, "LPS")
        save(folder / f"{name}_seg.nii.gz", label, "LPS")


def digests(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def listed(folder):
    """The datalist of a prepared folder: case -> entry."""
    return {case["case_id"]: case for case in json.loads((folder / "dataset.json").read_text())["training"]}


def check_case(folder, case, values, offset=0):
    """Each class lies where it lay in the patient, and the image belongs to it.

    values: value in the download -> class, for the classes that are kept.
    """
    image, label = (nib.load(folder / part / f"{case}.nii.gz") for part in ("imagesTr", "labelsTr"))
    np.testing.assert_array_equal(image.affine, label.affine)
    voxels, mask = np.asarray(image.dataobj), np.asarray(label.dataobj)
    assert set(np.unique(mask)) == {0, *values.values()}
    for value, ours in values.items():
        index = np.argwhere(mask == ours)
        assert len(index) == 8
        np.testing.assert_allclose(nib.affines.apply_affine(label.affine, index).mean(0), place(value), atol=1e-3)
        inside = voxels[mask == ours]
        for channel in range(inside.shape[1] if inside.ndim == 2 else 1):
            seen = inside[:, channel] if inside.ndim == 2 else inside
            np.testing.assert_array_equal(seen, 100 * value + offset * channel)


def prepared(command, folder, *args, **options):
    """What a command makes of its sources, and what it returns; `check_cases` accepts it."""
    done = command(*map(str, args), str(folder), **(OPTIONS | options))
    content = json.loads((folder / "dataset.json").read_text())
    check_cases(read_datalist(folder), list(content["labels"].values()))
    return done, content, listed(folder)
